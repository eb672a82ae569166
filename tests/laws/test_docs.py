"""The commands of docs/laws.md print what the page shows."""

import re
import shutil
from pathlib import Path

import pytest

from eqscale.cli import main

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "docs" / "laws.md").read_text(), re.DOTALL)
MAKERS = [code for language, code in BLOCKS if language == "python" and "to_csv" in code]
COMMANDS = [
    piece.split("\n", 1)
    for language, text in BLOCKS
    if not language and text.startswith("$ ")
    for piece in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
]


def words(line):
    """What a line says without frames of tables; the gradient of a converged fit is rounding noise."""
    return re.sub(r"[│┃]", " ", re.sub(r"gradient \S+?;?,", "gradient,", line)).split()


def agree(shown, printed):
    """Equal words, numbers to 2 %: other processors may round the last digit otherwise."""
    if shown[-1] == "…":
        shown, printed = shown[:-1], printed[: len(shown) - 1]
    return len(shown) == len(printed) and all(map(_same, shown, printed))


def _same(a, b):
    number = r"[-+]?\d+(?:,\d{3})*\.?\d*(?:e[-+]?\d+)?"
    x, y = ([float(v.replace(",", "")) for v in re.findall(number, t.rstrip(","))] for t in (a, b))
    return re.sub(number, "#", a) == re.sub(number, "#", b) and x == pytest.approx(y, rel=0.02)


@pytest.fixture(scope="module")
def folder(chinchilla_csv, tmp_path_factory):
    path = tmp_path_factory.mktemp("docs")
    shutil.copy(chinchilla_csv, path)
    (path / "results").symlink_to(ROOT / "results")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        for code in MAKERS:
            exec(code, {})
    return path


def test_the_page_has_commands():
    assert len(MAKERS) == 2
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize(("command", "shown"), COMMANDS, ids=[c for c, _ in COMMANDS])
def test_commands_print_what_the_page_shows(folder, monkeypatch, capsys, command, shown):
    monkeypatch.chdir(folder)
    assert main(command.split()[1:]) == 0
    printed = iter([w for line in capsys.readouterr().out.splitlines() if (w := words(line))])
    for line in shown.splitlines():
        expected = words(line)
        if expected in ([], ["…"]):
            continue
        assert any(agree(expected, found) for found in printed), f"not printed, or out of order: {line}"
