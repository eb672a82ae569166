"""Scaling laws: fit them to run tables, say how sure one can be, compare arms and plan the next runs.

Needs numpy, scipy and pandas only; matplotlib and MLflow are imported by the functions that use them.
"""

from eqscale.laws.certificate import Certificate
from eqscale.laws.cost import CostModel, fit_cost, nd_cost
from eqscale.laws.fit import Fit, fit
from eqscale.laws.forms import FORMS, Form, register
from eqscale.laws.frontier import Frontier, frontier
from eqscale.laws.table import check_runs, read_runs
from eqscale.laws.uncertainty import Bootstrap, Interval, Target, bootstrap, disagreement, intervals

__all__ = [
    "FORMS", "Bootstrap", "Certificate", "CostModel", "Fit", "Form", "Frontier", "Interval", "Target", "bootstrap",
    "check_runs", "disagreement", "fit", "fit_cost", "frontier", "intervals", "nd_cost", "read_runs", "register",
]  # fmt: skip
