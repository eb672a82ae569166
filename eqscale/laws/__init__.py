"""Scaling laws: fit them to run tables, say how sure one can be, compare arms and plan the next runs.

Needs numpy, scipy and pandas only; matplotlib and MLflow are imported by the functions that use them.
"""

from eqscale.laws.fit import Certificate, Fit, alloc_exponents, fit
from eqscale.laws.forms import FORMS, Form
from eqscale.laws.frontier import CostModel, Frontier, fit_cost, frontier, nd_cost
from eqscale.laws.table import check_runs, read_runs
from eqscale.laws.uncertainty import Bootstrap, Interval, Target, bootstrap, disagreement, intervals

__all__ = [
    "FORMS",
    "Bootstrap",
    "Certificate",
    "CostModel",
    "Fit",
    "Form",
    "Frontier",
    "Interval",
    "Target",
    "alloc_exponents",
    "bootstrap",
    "check_runs",
    "disagreement",
    "fit",
    "fit_cost",
    "frontier",
    "intervals",
    "nd_cost",
    "read_runs",
]
