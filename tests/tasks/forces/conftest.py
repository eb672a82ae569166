import importlib.util

import pytest

from eqscale.tasks.forces.xtb import PACKAGES

MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def pytest_collection_modifyitems(items):
    """Without the extra only the tests of its absence run."""
    for item in items:
        if MISSING and "tests/tasks/forces/" in item.nodeid and item.name != "test_without_the_extra_one_line_says_so":
            item.add_marker(pytest.mark.skip(reason=f"pip install 'eqscale[forces]': {', '.join(MISSING)} missing"))


@pytest.fixture(scope="session")
def task():
    from eqscale.tasks import get_task

    return get_task("forces")


@pytest.fixture(scope="session")
def molecules(tmp_path_factory):
    """An .xyz file of nine small molecules: the fifth is never trained on."""
    path = tmp_path_factory.mktemp("molecules") / "small.xyz"
    blocks = []
    for k in range(3):
        blocks += [
            f"3\nwater {k}\nO 0 0 {k}\nH 0.76 0 {k + 0.59}\nH -0.76 0 {k + 0.59}\n",
            "2\n\nN 0 0 0\nO 0 0 1.15\n",
            "4\ncharge=1\nO 0 0 0\nH 0.9 0.3 0.1\nH -0.7 0.6 0.1\nH -0.2 -0.9 0.2\n",
        ]
    path.write_text("\n".join(blocks))
    return str(path)


@pytest.fixture(scope="session")
def data(molecules, tmp_path_factory):
    """Specification and samples of both splits: 16 and 12 systems of 8 geometries."""
    from eqscale.tasks import dataset
    from eqscale.tasks.dataset import DataSpec, open_split, prepare

    root, spec = tmp_path_factory.mktemp("forces"), DataSpec("forces", (("family", molecules),), 0, 16, 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "MEASURED_SYSTEMS", 16)
        prepare(spec, root, workers=1)
    return spec, open_split(spec, root, "train"), open_split(spec, root, "test")
