"""The built-in forms beside a fit: which one describes the runs best, and which predicts the top budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eqscale.errors import InputError
from eqscale.laws.arms import group_budgets
from eqscale.laws.certificate import Verdict
from eqscale.laws.fit import Fit, fit_problem, pose
from eqscale.laws.forms import FORMS, Form
from eqscale.laws.noise import aicc_penalty, efficiency
from eqscale.laws.structure import EXACT, some_runs
from eqscale.laws.validate import hold_out_top

Array = np.ndarray

RIVALS = ("chinchilla", "gamma", "repetition", "muennighoff", "power:C", "power:D", "power:N")
"""Forms that a fit is compared with where its runs have their columns."""
CLEAR = 10.0
"""Difference of AICc from which a form is clearly worse (Burnham & Anderson 2002, section 2.6)."""
_STARTS = 4  # of the search for a rival's minimum, best first: a full search of each would take ten times as long
_HELD_OUT = 0.1  # share of the runs in the top budgets that are predicted


@dataclass(frozen=True)
class FormFit:
    """One form fitted to the runs of a comparison."""

    name: str
    formula: str
    parameters: int
    """That were free."""
    aicc: float
    """Above that of the best form compared: robust AIC (Ronchetti 1985) with the small-sample correction."""
    held_out: float | None
    """Median relative error of the top budgets, predicted from the others; None where these can't determine it."""
    verdict: Verdict


def compare_forms(fit: Fit, budget: Array | None = None) -> list[FormFit]:
    """The form of a fit, the same with floors at zero, and the built-in forms for the same runs.

    Args:
        fit: the fit to put beside others; what its user fixed holds for its own form alone.
        budget: of each run, (n,): the top budgets with at least a tenth of the runs are held out. None: grouped from
            the product of the regressors N and D, or the first of others.

    Returns:
        The fit's own form first, then the others.
    """
    if budget is None:
        known = [fit.columns[name] for name in ("N", "D") if name in fit.columns]
        budget = group_budgets(np.prod(known, axis=0) if known else fit.columns[fit.form.columns[0]])
    if len(rows := some_runs(np.arange(fit.n))) < fit.n:
        fit, budget = fit.refit(rows, fit.theta[None]), budget[rows]
    own = _label(fit.form, fit.fixed)
    fits = {own: fit}
    floors = {name: 0.0 for name in fit.form.floors}
    for form, fixed in ((fit.form, fit.fixed | floors), *((FORMS[name], {}) for name in RIVALS if name in FORMS)):
        label = _label(form, fixed)
        if label not in fits and _comparable(form, fit):
            fits[label] = _rival(fit, form, fixed)
    sharpest = min(fits.values(), key=lambda f: f.spread)
    # residuals of exact losses are rounding errors, which tell no form from another
    scale = 2 * efficiency(max(sharpest.noise, EXACT * fit.residual_unit), fit.loss)
    n, size = int((fit.weights > 0).sum()), {k: int(np.sum(f.lower < f.upper)) for k, f in fits.items()}
    aicc = {k: float(scale * f.objective + aicc_penalty(size[k], n)) for k, f in fits.items()}
    top, best = _top(budget), min(aicc.values())
    return [
        FormFit(k, f.form.formula, size[k], aicc[k] - best, _held_out(f, budget, top), f.verdict)
        for k, f in fits.items()
    ]


def _label(form: Form, fixed: dict[str, float]) -> str:
    return ", ".join([form.name, *(f"{name} = {value:g}" for name, value in fixed.items())])


def _comparable(form: Form, fit: Fit) -> bool:
    """Whether the runs of a fit have the columns of a form, and it looks at what theirs does: N and D, or one alone."""
    have, need = set(fit.form.columns), set(form.columns)
    return need <= have and (need & {"N", "D"} == have & {"N", "D"})


def _rival(fit: Fit, form: Form, fixed: dict[str, float]) -> Fit:
    """Another law fitted to the runs of a fit by the same loss."""
    columns = {name: fit.columns[name] for name in form.columns}
    problem = pose(form, fit.loss, columns, fit.observed, fit.weights, fixed)
    problem = replace(problem, chosen=fit.chosen, points=fit.points)
    held = {int(i): float(problem.lower[i]) for i in np.flatnonzero(problem.lower == problem.upper)}
    starts = form.starts(problem.features, problem.scaled_loss, fit.weights, held)
    starts = np.clip(starts, problem.lower, problem.upper)
    objective = problem.loss.rho(problem.residuals_at(starts)) @ fit.weights
    return fit_problem(problem, starts[np.argsort(objective, kind="stable")[:_STARTS]])


def _top(budget: Array) -> int:
    """Number of the largest budgets to hold out."""
    _, runs = np.unique(budget, return_counts=True)
    return int(np.searchsorted(np.cumsum(runs[::-1]), _HELD_OUT * len(budget))) + 1


def _held_out(fit: Fit, budget: Array, top: int) -> float | None:
    try:
        return hold_out_top(fit, budget, top, fit.theta[None]).median_error
    except InputError:
        return None


def clearly_better(forms: Sequence[FormFit]) -> FormFit | None:
    """The form that describes the runs clearly better than the first and predicts the top budgets no worse."""
    own, best = forms[0], min(forms, key=lambda form: form.aicc)
    worse = own.held_out is not None and best.held_out is not None and best.held_out > own.held_out
    return None if worse or own.aicc < CLEAR else best


def judged(fit: Fit, forms: Sequence[FormFit]) -> Fit:
    """The fit with what the comparison adds to its verdict if that is a misfit: which form does better."""
    own, better = forms[0], clearly_better(forms)
    if better is None:
        return replace(fit, remark="no built-in form describes the runs clearly better")
    said = f"best described by the {better.name} form: AICc {better.aicc - own.aicc:.0f}"
    if own.held_out is not None and better.held_out is not None:
        said += f", held-out error {100 * better.held_out:.2g} % against {100 * own.held_out:.2g} %"
    return replace(fit, remark=said)
