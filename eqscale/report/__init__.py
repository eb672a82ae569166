"""Figures, tables and the report of a study, from its run tables alone."""

from eqscale.laws.axes import AXES
from eqscale.report.search import CHECK_ROUNDS, GOAL, write_search_report
from eqscale.report.shapes import write_shape_report
from eqscale.report.study import write_report

__all__ = ["AXES", "CHECK_ROUNDS", "GOAL", "write_report", "write_search_report", "write_shape_report"]
