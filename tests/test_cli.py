import errno
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
from mlflow.server.security_utils import is_allowed_host_header, should_block_cors_request
from mlflow.tracking import MlflowClient

from eqscale.cli import main, run_or_exit
from eqscale.study.overview import VIEW_TAG
from eqscale.tracking import tracking_uri
from tests.jobs import ROOT, run_here

WRONG = """
import sys
sys.modules |= dict.fromkeys(["ray", "mlflow", "matplotlib", "scipy.stats", "mujoco"])  # to import them is an error
from eqscale.cli import main
sys.exit(main(["run", "grid", *sys.argv[1:]]))
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "huge"], "unknown preset 'huge'; choose from first, quick, cpu, forces-quick"),
        (["--budgest", "1e10"], "unrecognized arguments: --budgest 1e10"),
    ],
)
def test_a_wrong_word_is_one_line_before_anything_large_is_imported(words, message):
    command = [sys.executable, "-c", WRONG, *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"error: {message}")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fot"],
        ["run"],
        ["run", "gird"],
        ["run", "grid", "--next", "nan"],
        ["run", "grid", "--workers", "two"],
        ["fit"],
        ["ui", "--port", "x"],
        ["scenes", "--seed", "x"],
    ],
)
def test_a_command_line_that_makes_no_sense_is_one_line(words, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", [["-m", "eqscale"], ["tune_jobs/validation.py", "--preset", "x"]])
def test_the_command_and_the_scripts_of_a_clone_are_one(command):
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")


def test_reading_from_mlflow_creates_no_database_and_obeys_its_variable(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["ui"]) == 2
    assert main(["fit", "mlflow:eqscale-first", "--by", "arm"]) == 2
    assert capsys.readouterr().err.count(f"there is no MLflow database '{tmp_path / 'mlruns.db'}'") == 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    assert main(["ui"]) == 2
    assert main(["fit", "mlflow:eqscale-first", "--by", "arm"]) == 2
    assert capsys.readouterr().err.count(f"there is no MLflow database '{tmp_path / 'other.db'}'") == 2
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_tells_what_the_whole_plan_costs_and_whether_a_law_can_follow(tmp_path):
    result = run_here(tmp_path, "grid", "--dry-run", "--budgets", "1e10", "--arms", "gatr")
    assert result.returncode == 0, result.stderr
    assert "gatr: no law can be fitted to 3 points, which takes 7" in result.stdout
    assert "the whole plan: 3 runs, 3e10 FLOPs, about " in result.stdout
    assert "done: 0 runs, 0 FLOPs, about 0 s of one worker" in result.stdout


def test_a_taken_port_is_said_before_links_to_somebody_elses_server(tmp_path, monkeypatch, capsys, empty_database):
    shutil.copy(empty_database, tmp_path / "mlruns.db")
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["ui", "--port", port]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: --host 127.0.0.1 --port {port}: Address already in use")
    assert printed.err.count("\n") == 1
    assert main(["ui", "--port", "99999"]) == 2
    assert "name another with --port" in capsys.readouterr().err


@pytest.fixture
def served(tmp_path, monkeypatch, capsys, empty_database):
    """``eqscale ui`` without its server: what it prints, and how it would start it."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_database, "mlruns.db")
    client = MlflowClient(tracking_uri=tracking_uri())
    client.set_experiment_tag(client.create_experiment("eqscale-mine"), VIEW_TAG, "{}")
    client.create_experiment("eqscale-earlier")
    client.create_experiment("of somebody else")
    commands = []
    monkeypatch.setattr(os, "execve", lambda program, command, environment: commands.append(command))

    def ui(*words):
        assert main(["ui", "--port", "0", *words]) == 0
        options = commands.pop()
        return capsys.readouterr().out, {name: options[options.index(name) + 1] for name in options if "--" in name}

    return ui


@pytest.mark.parametrize(
    ("words", "name", "others"),
    [
        ([], "eqscale.localhost", ["localhost", "127.0.0.1"]),
        (["--host", "0.0.0.0"], socket.gethostname(), ["eqscale.localhost", "127.0.0.1"]),
        (["--host", "0.0.0.0", "--name", "gpu.example.org"], "gpu.example.org", [socket.gethostname()]),
        (["--host", "127.0.0.2"], "127.0.0.2", []),
    ],
)
def test_the_ui_is_open_at_the_address_that_it_prints_and_under_the_names_of_the_machine(served, words, name, others):
    printed, options = served(*words)
    port = options["--port"]
    assert int(port) > 0
    assert f"mine: http://{name}:{port}/#/experiments/1/runs?workflowType=machine_learning&" in printed
    assert "earlier: not drawn yet" in printed
    assert "somebody" not in printed
    hosts, origins = options["--allowed-hosts"].split(","), options["--cors-allowed-origins"].split(",")
    for known in (name, *others):
        assert is_allowed_host_header(hosts, f"{known}:{port}")
        assert not should_block_cors_request(f"http://{known}:{port}", "POST", origins)
    assert not is_allowed_host_header(hosts, f"evil.example:{port}")
    assert should_block_cors_request("http://evil.example", "POST", origins)


def test_a_name_that_is_no_host_is_one_line(served, capsys):
    assert main(["ui", "--host", "no such host"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --host no such host --port 5000: ")
    assert error.endswith("name another with --host\n")


def test_a_full_disk_is_one_line_that_names_the_file(capsys):
    def write():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "results/report.md")

    assert run_or_exit(write) == 1
    assert capsys.readouterr().err == (
        "error: results/report.md can't be written: No space left on device; free some space, and start it again\n"
    )


def test_the_users_matplotlib_settings_change_no_command(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    code = (
        "from eqscale.cli import main\nmain(['fit', 'nothing.csv'])\nimport matplotlib\n"
        "print(matplotlib.get_backend().lower(), matplotlib.rcParams['text.usetex'])"
    )
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.none", "MATPLOTLIBRC": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.stdout.split() == ["agg", "False"], ended.stderr


def test_text_files_have_their_encoding_named():
    unnamed = re.compile(r"\.read_text\(\)|\.write_text\((?!.*encoding)")
    own = [path for path in (ROOT / "eqscale").rglob("*.py") if path.name != "cores.py"]
    lines = [(path.name, line.strip()) for path in own for line in path.read_text("utf-8").splitlines()]
    assert [line for line in lines if unnamed.search(line[1]) and "/proc/cpuinfo" not in line[1]] == []
