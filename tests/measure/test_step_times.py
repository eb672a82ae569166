import dataclasses

from eqscale.arms import Size
from eqscale.measure.step_times import open_shapes
from tests.training.conftest import DATA
from tests.training.test_loop import make_spec


def test_shapes_of_the_same_data_share_their_samples(data_root):
    spec = dataclasses.replace(make_spec(), data=DATA.digest)
    wider = dataclasses.replace(spec, size=Size(16, 1, 2))
    fewer = dataclasses.replace(spec, size=Size(24, 1, 2), train_systems=5)
    shapes = open_shapes([spec, wider, fewer], data_root)
    assert len(shapes) == 3
    assert shapes[spec][0] is shapes[wider][0]
    assert [len(shapes[one][0]) for one in (spec, fewer)] == [24 * spec.train_systems, 24 * 5]
    assert len({id(test) for _, test in shapes.values()}) == 1
