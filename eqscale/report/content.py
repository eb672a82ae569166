"""What a report is written from."""

from __future__ import annotations

import dataclasses

from eqscale.report.analysis import Analysis
from eqscale.report.conclusions import Conclusion
from eqscale.report.data_grid import DataGrid
from eqscale.report.exhibits import FigureGroup
from eqscale.report.parts import Study


@dataclasses.dataclass(frozen=True)
class Content:
    """Everything a report says, computed."""

    study: Study
    analysis: Analysis
    grid: DataGrid | None
    conclusions: list[Conclusion]
    figures: list[FigureGroup]
