"""What ``check-arm`` and ``check-task`` say about files that are right, and about ones that aren't."""

import pytest

from eqscale.cli import main
from eqscale.measure import own
from tests.jobs import ROOT

ARM, TASK = ROOT / "docs/examples/deep_sets.py", ROOT / "docs/examples/charged_particles.py"
pytestmark = pytest.mark.usefixtures("forgetful")


@pytest.fixture(autouse=True)
def unknown(monkeypatch):
    """The examples are not registered yet, whatever other tests did."""
    from eqscale import arms, plugins, tasks

    monkeypatch.delitem(arms.base._ARMS, "deep_sets", raising=False)
    monkeypatch.delitem(tasks._TASKS, "charged_particles", raising=False)
    for path in list(plugins._loaded):
        monkeypatch.delitem(plugins._loaded, path)


def wrong(capsys):
    """What the printed table calls wrong."""
    return [line.split("│")[2].strip() for line in capsys.readouterr().out.splitlines() if "│ wrong" in line]


def test_the_example_arm_is_right(capsys):
    assert main(["check-arm", str(ARM)]) == 0
    assert wrong(capsys) == []


@pytest.mark.parametrize(
    ("said", "instead", "found"),
    [
        ("6.0 * weights - 2.0 * embed", "3.0 * weights", ["executed FLOPs at 8x2", "executed FLOPs at 48x4"]),
        ("(x * mask).sum(1", "x.sum(1", ["change by what padding holds"]),
        ("(8, 2), (12, 2)", "(12, 2), (8, 2)", ["ladder"]),
        ("return pooled(self.readout(x), batch)", "return self.readout(x)[:, :1]", ["shape of a prediction"]),
        (
            "Role.LEARN",
            "Role.BUILD_IN",
            [f"symmetry error, {name}" for name in ("yaw", "rotation", "reflection", "translation")],
        ),
    ],
)
def test_a_fault_of_an_arm_is_found(tmp_path, capsys, said, instead, found):
    code = ARM.read_text()
    assert said in code
    (tmp_path / "mine.py").write_text(code.replace(said, instead))
    assert main(["check-arm", str(tmp_path / "mine.py")]) == 1
    assert wrong(capsys) == found


def test_an_arm_without_a_product_that_pytorch_counts_is_not_called_wrong(capsys, monkeypatch):
    monkeypatch.setattr(own.FlopCounterMode, "get_total_flops", lambda counter: 0)
    assert main(["check-arm", str(ARM)]) == 0
    assert capsys.readouterr().out.count("not checked: PyTorch counts none") == 2


def test_a_file_of_a_task_that_registers_no_arm_is_named(capsys):
    assert main(["check-arm", str(TASK), "--task-file", str(TASK)]) == 2
    assert capsys.readouterr().err.startswith(f"error: arm file {str(TASK)!r} registers no arm")


def test_the_example_task_is_right(capsys):
    assert main(["check-task", str(TASK)]) == 0
    assert wrong(capsys) == []


@pytest.mark.parametrize(
    ("said", "instead", "found"),
    [
        ("default_rng([seed, (", "default_rng([seed + start, (", ["systems 3 to 7 made alone"]),
        ('("train", "test").index(split)', "0", ["test systems"]),
        ("scale=0.6", "scale=60.0", ["size of velocity over its scale"]),
        ("x.T, v.T", "x.T + [0.0, 0.0, 1.0], v.T", ["labels under E(3)"]),
    ],
)
def test_a_fault_of_a_task_is_found(tmp_path, capsys, said, instead, found):
    code = TASK.read_text()
    assert said in code
    (tmp_path / "mine.py").write_text(code.replace(said, instead))
    assert main(["check-task", str(tmp_path / "mine.py")]) == 1
    assert wrong(capsys) == found
