"""Figures, tables and the report of a study, from its run table alone."""

from eqscale.report.search import write_search_report
from eqscale.report.study import AXES, write_report

__all__ = ["AXES", "write_report", "write_search_report"]
