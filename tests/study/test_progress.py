import io

import pytest
from rich.console import Console

from eqscale.study import progress
from eqscale.study.estimate import Estimator
from eqscale.study.job import prepare_data
from eqscale.study.progress import StudyProgress
from eqscale.study.schedule import Allotment
from eqscale.tasks.dataset import DataSpec
from eqscale.training.spec import CurvePoint
from tests.study.test_ledger import make_record, make_spec


@pytest.mark.parametrize(("quiet", "said"), [(0.0, True), (600.0, False)])
def test_a_log_file_hears_of_running_trials_when_nothing_has_ended_for_long(monkeypatch, quiet, said):
    monkeypatch.setattr(progress, "QUIET_SECONDS", quiet)
    record = make_record(make_spec())
    out = io.StringIO()
    spec = record.spec
    with StudyProgress([Allotment(spec, 1.0)], Estimator(), 1, Console(file=out, width=60)) as shown:
        shown.started(spec)
        shown.point(spec, CurvePoint(spec.steps // 4, 0.61, 0.52, 0.0, 12.5))
        about = f"[0/1] {spec.name} 25 %  train 0.610  test 0.520, about "
        assert any(about in line and line.endswith(" left") for line in out.getvalue().splitlines()) == said
        shown.ended(spec, record)
    assert f"[1/1] {spec.name}" in out.getvalue()


@pytest.mark.parametrize(("quiet", "said"), [(0.0, True), (600.0, False)])
def test_a_log_file_hears_how_much_data_is_prepared(monkeypatch, tmp_path, quiet, said):
    monkeypatch.setattr(progress, "QUIET_SECONDS", quiet)
    out = io.StringIO()
    prepare_data(DataSpec(train_systems=4, test_systems=2), tmp_path, Console(file=out, width=60))
    assert ("prepared 25 of 130 scenes" in out.getvalue()) == said
