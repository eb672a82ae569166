"""Commands that README and docs show: each is understood; ``benchmarks/readme.py`` runs them."""

import argparse
import re
import shlex
import shutil
import subprocess

import pytest

from benchmarks.readme import ADDED, NOT_HERE, STANDS_FOR, ready, shown
from eqscale.cli import build_parser
from eqscale.jobs import JOBS
from eqscale.study import presets
from eqscale.study.options import parse_options
from eqscale.tasks import DEFAULT, get_task
from tests.jobs import ROOT, forgotten_plugins

COMMANDS = list(shown(ROOT))
EQSCALE = re.compile("(python -m )?eqscale ")
OF_EQSCALE = sorted({(item.small, item.program) for item in COMMANDS if EQSCALE.match(item.command)})


@pytest.mark.parametrize(("command", "program"), OF_EQSCALE, ids=[command for command, _ in OF_EQSCALE])
def test_a_command_is_understood(command, program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    words = shlex.split(ready(command, program, tmp_path).removeprefix("python -m "))
    args, rest = build_parser().parse_known_args(words[1:])
    assert not rest or args.takes_rest
    if words[1] == "run":
        job, own = JOBS[args.job], argparse.ArgumentParser(add_help=False)
        job.add_options(own)
        get_task(DEFAULT)  # registers it, which isn't to be forgotten
        with forgotten_plugins():
            parse_options("", getattr(presets, job.presets), args.job, job.part, args.words, own)


def test_scripts_that_are_shown_exist():
    scripts = {word for item in COMMANDS for word in item.command.split() if re.match(r"(tune_jobs|benchmarks)/", word)}
    assert scripts
    assert all((ROOT / script).is_file() for script in scripts)


def test_what_is_said_of_commands_is_said_of_some():
    shown_here = [item.command for item in COMMANDS]
    for pattern in (*NOT_HERE, *ADDED, *map(re.escape, STANDS_FOR)):
        assert any(re.search(pattern, command) for command in shown_here), pattern


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 700


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="not a clone")
def test_git_ignores_a_study_of_ones_own_but_nothing_of_a_published_one():
    def ignored(*paths):
        command = ["git", "check-ignore", *paths]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()

    own = ["results/first/runs.csv", "results/mine/report.md", "studies/first/ledger/a.json", "mlruns.db", "data/a.npy"]
    assert ignored(*own) == own
    tracked = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    published = sorted({"/".join(path.split("/")[:2]) for path in tracked})
    assert published
    assert not ignored(*(f"{folder}/new.csv" for folder in published))
