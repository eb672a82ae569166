import shutil

import pytest

from eqscale.errors import InputError
from eqscale.places import find_results, remember_results, remembered_results


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a study ``mine``, whose results lie in ``elsewhere/out``."""
    folder = tmp_path / "project"
    for name in ("studies/mine/ledger", "elsewhere/out"):
        (folder / name).mkdir(parents=True)
    monkeypatch.chdir(folder)
    remember_results(folder / "studies/mine", folder / "elsewhere/out")
    return folder


def test_results_are_found_by_the_name_of_their_study(project):
    assert str(find_results("mine")) == "elsewhere/out"
    assert str(find_results("elsewhere/out")) == "elsewhere/out"
    with pytest.raises(InputError, match=r"'yours' is neither .* nor a study in 'studies'; there are: mine"):
        find_results("yours")


def test_a_study_and_its_results_can_move_together(project, tmp_path, monkeypatch):
    moved = shutil.move(project, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert remembered_results(moved / "studies/mine") == (moved / "elsewhere/out").relative_to(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"results": 3}', "\0\0"])
def test_a_damaged_note_counts_as_none(project, content):
    (project / "studies/mine/places.json").write_text(content)
    assert remembered_results(project / "studies/mine") is None
