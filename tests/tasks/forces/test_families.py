from pathlib import Path

import numpy as np
import pytest

from eqscale.errors import InputError
from eqscale.tasks.dataset import DataSpec
from eqscale.tasks.forces import xtb
from eqscale.tasks.forces.families import UNSOUND, family_of_file, find_family, pack_water

WATER = "3\n\nO 0 0 0\nH 0.76 0 0.59\nH -0.76 0 0.59\n"


def read(tmp_path: Path, text: str):
    path = tmp_path / "mine.xyz"
    path.write_text(text)
    return family_of_file(path)


def test_without_the_extra_one_line_says_so(monkeypatch):
    monkeypatch.setattr(xtb, "PACKAGES", ("ase", "tblite_that_is_not_there"))
    with pytest.raises(InputError) as caught:
        find_family("g2")
    assert str(caught.value) == "task 'forces' needs tblite_that_is_not_there: pip install 'eqscale[forces]'"


def test_the_g2_set_has_what_is_said():
    g2 = find_family("g2")
    assert (len(g2.molecules), len(g2.unseen), g2.max_atoms) == (145, 18, 14)
    assert min(map(len, g2.molecules)) == 2
    assert not UNSOUND.keys() & {molecule.name for molecule in g2.molecules}
    assert {molecule.name for molecule in g2.molecules if molecule.unpaired == 2} >= {"O2", "CH2_s3B1d", "SO"}


def test_unseen_molecules_are_of_all_sizes_and_have_no_unseen_element():
    g2 = find_family("g2")
    seen, unseen = ([g2.molecules[k] for k in ks] for ks in (g2.seen_molecules, g2.unseen_molecules))
    assert {z for m in unseen for z in m.numbers} <= {z for m in seen for z in m.numbers}
    assert {2, 3, 4, 5, 10} <= {len(m) for m in unseen}
    assert not {m.name for m in seen} & {m.name for m in unseen}


def test_water_clusters_have_2_to_16_molecules_that_keep_apart():
    water = find_family("water")
    assert [len(molecule) // 3 for molecule in water.molecules] == list(range(2, 17))
    x = pack_water(16, np.random.default_rng(0)).reshape(16, 3, 3)
    apart = np.linalg.norm(x[:, None, :, None] - x[None, :, None], axis=-1)
    own = np.eye(16, dtype=bool)
    assert apart[~own].min() > 1.8
    assert apart[~own][:, 0, 0].min() > 2.6
    assert np.allclose(apart[own][:, 0, 1:], 0.957, atol=1e-3)


def test_a_file_makes_a_family(tmp_path):
    others = "\n2\nunpaired=2 charge=0\nO 0 0 0\nO 0 0 1.2\n2\ncharge=-1\nO 0 0 0\nH 0 0 1\n"
    family = read(tmp_path, WATER + others)
    assert family.name == "mine"
    assert {(len(m), m.charge, m.unpaired) for m in family.molecules} == {(3, 0, 0), (2, 0, 2), (2, -1, 0)}
    assert {m.where.rpartition(" ")[2] for m in family.molecules} == {"1", "7", "11"}
    assert not family.unseen


def test_the_data_are_those_of_the_molecules_not_of_the_path(tmp_path):
    digests = []
    for folder, text in (("a", WATER), ("b", WATER), ("c", WATER.replace("0.59", "0.6"))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.xyz").write_text(text)
        digests.append(DataSpec("forces", (("family", str(tmp_path / folder / "mine.xyz")),)).digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (WATER.replace("O", "Xx"), 3, "unknown element 'Xx'; choose from H, Li, Be, B, C, N, O, F, Na, "),
        (WATER.replace("-0.76", "0.7"), 5, "overlaps with the atom of line 4: less than 0.5 Å apart"),
        (WATER.replace("0.76", "x", 1), 4, "'H x 0 0.59': wanted an element and three coordinates in Å"),
        (WATER.replace("0.76", "nan", 1), 4, "a coordinate isn't finite"),
        (WATER.replace("3\n", "4\n"), 5, "the file ends within a molecule of 4 atoms"),
        (WATER.replace("3\n", "65\n"), 1, "65 atoms; a molecule may have 64"),
        (WATER.replace("3\n", "1\n"), 1, "'1': wanted the number of a molecule's atoms, at least 2"),
        (WATER + "O 0 0 0\n", 6, "'O 0 0 0': wanted the number of a molecule's atoms, at least 2"),
        (WATER.replace("\n\n", "\ncharge=1 unpaired=0\n"), 2, "charge 1 and 0 unpaired"),
        (WATER.replace("\n\n", "\ncharge=half\n"), 2, "charge and unpaired must be whole numbers"),
    ],
)  # fmt: skip
def test_faults_of_a_file_are_named_by_line(tmp_path, text, line, message):
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'mine.xyz'}, line {line}: {message}")
    assert "\n" not in str(caught.value)


def test_a_file_without_molecules_or_a_missing_one_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no molecule"):
        read(tmp_path, "\n\n")
    with pytest.raises(InputError, match=r"cannot read absent\.xyz: No such file"):
        DataSpec("forces", (("family", "absent.xyz"),))
    with pytest.raises(InputError, match=r"unknown family 'g3'; choose from g2, water, or name an \.xyz file"):
        DataSpec("forces", (("family", "g3"),))
