"""Figures, tables and the report of a study, from its run table alone."""

from eqscale.report.study import AXES, write_report

__all__ = ["AXES", "write_report"]
