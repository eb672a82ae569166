"""Which parameters do arms share? Joint fits of several arms, tested against separate ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from eqscale.errors import InputError
from eqscale.laws.arms import ArmFit
from eqscale.laws.certificate import Verdict
from eqscale.laws.fit import Fit, fit_problem
from eqscale.laws.forms import Evaluation, Form
from eqscale.laws.forms.base import Features
from eqscale.laws.noise import aicc_penalty, efficiency
from eqscale.laws.problem import Problem
from eqscale.laws.solver import minimise
from eqscale.laws.uncertainty import with_residuals

Array = np.ndarray


class JointForm(Form):
    """Several arms under one form, some parameters shared: one law over the pooled runs.

    Parameters are named as the base form's where shared and ``name[arm]`` where separate. ``member`` is the arm of
    each run, by number, (n,).
    """

    def __init__(self, base: Form, arms: Sequence[str], shared: Sequence[str], member: Array):
        self.base, self.shared, self.member = base, tuple(shared), member
        own = [{n: n if n in shared else f"{n}[{arm}]" for n in base.names} for arm in arms]
        names = [n for n in base.names if n in shared]
        names += [m[n] for m in own for n in base.names if n not in shared]
        self.names = tuple(names)
        self.name = f"{base.name}, shared {', '.join(shared) or 'nothing'}"
        self.formula, self.columns = base.formula, base.columns
        self.log_names = tuple({m[n] for m in own for n in base.log_names})
        self.powers = {m[p]: (m[e], r) for m in own for p, (e, r) in base.powers.items()}
        self.floors = tuple({m[n] for m in own for n in base.floors})
        self.bounds = {m[n]: b for m in own for n, b in base.bounds.items()}
        self.places = np.array([[names.index(m[n]) for n in base.names] for m in own])
        """Where the joint parameters hold those of each arm, (arms, p of the base form)."""

    def for_runs(self, rows: Array) -> JointForm:
        """See ``Form.for_runs``."""
        found = copy.copy(self)
        found.member = self.member[rows]
        return found

    def evaluate(self, theta: Array, x: Features) -> Evaluation:
        """Each arm's runs under its own parameters."""
        b, p, m = len(theta), len(self.names), len(self.member)
        parts = []
        value = np.empty((b, m))
        for g, place in enumerate(self.places):
            here = np.flatnonzero(self.member == g)
            ev = self.base.evaluate(theta[:, place], {k: v[here] for k, v in x.items()})
            value[:, here] = ev.value
            parts.append((place, here, ev))

        def jacobian() -> Array:
            jac = np.zeros((b, p, m))
            for place, here, ev in parts:
                jac[:, place[:, None], here] = ev.jacobian()
            return jac

        def curvature(q: Array) -> Array:
            h = np.zeros((b, p, p))
            for place, here, ev in parts:
                h[:, place[:, None], place] += ev.curvature(q[:, here])
            return h

        return Evaluation(value, jacobian, curvature)

    def loss_power(self, name, values):
        """As the base form's."""
        base = name.partition("[")[0]
        arm = name[len(base) :]
        return self.base.loss_power(base, {n: values.get(n + arm, values.get(n)) for n in self.base.names})


def joint_fit(arms: Mapping[str, ArmFit], shared: Sequence[str]) -> Fit:
    """Fit all arms at once with the given parameters shared.

    Args:
        arms: separately fitted arms of one form and loss.
        shared: names of shared parameters; none gives the separate fits again.

    Raises:
        InputError: arms of different forms or losses, an unknown parameter, or a shared prefactor whose unit
            depends on a parameter that isn't shared.
    """
    fits = [arm.fit for arm in arms.values()]
    base = fits[0].form
    for name, arm in arms.items():
        if arm.fit.form.name != base.name or arm.fit.loss != fits[0].loss:
            raise InputError(f"arm {name!r}: joint fits need one form and one loss function for all arms")
    for name in shared:
        if name not in base.names:
            raise InputError(f"cannot share {name!r}; the form {base.name!r} has {', '.join(base.names)}")
        if name in base.powers and (apart := set(base.names) - set(base.powers) - set(base.floors) - set(shared)):
            raise InputError(f"cannot share {name!r} without {', '.join(sorted(apart))}: its unit depends on them")
    columns = {c: np.concatenate([f.columns[c] for f in fits]) for c in base.columns}
    loss = np.concatenate([f.observed for f in fits])
    weights = np.concatenate([f.weights for f in fits])
    form = JointForm(base, list(arms), shared, np.repeat(np.arange(len(fits)), [f.n for f in fits]))
    centre = base.centre(columns, loss, fits[0].fixed)
    lower, upper = form.internal_bounds()
    for place, f in zip(form.places, fits, strict=True):
        for name in f.fixed:
            i = base.names.index(name)
            lower[place[i]] = upper[place[i]] = base.to_internal(f.params, centre)[i]
    of_arm = {"arm": np.repeat(list(arms), [f.n for f in fits])}
    problem = Problem(form, fits[0].loss, columns, loss, weights, centre, lower, upper, {}, chosen=of_arm)
    return fit_problem(problem, _joint_starts(problem, form, fits))


def _joint_starts(problem: Problem, form: JointForm, fits: Sequence[Fit]) -> Array:
    """The mean of the arms' shared parameters and each arm's own, the rest refitted given them."""
    base = form.base
    own = np.array([base.to_internal(f.params, problem.centre) for f in fits])
    own = np.maximum(np.where(np.isfinite(own), own, -30.0), -30.0)  # a term that vanished starts tiny
    shared = [base.names.index(n) for n in form.shared]
    out = []
    for candidate in [own.mean(0), *own] if shared else [own[0]]:
        guesses = own.copy()
        guesses[:, shared] = candidate[shared]
        out.append(start_from(problem, guesses))
    return np.array(out)


def start_from(problem: Problem, guesses: Array) -> Array:
    """A start of a joint problem: shared parameters as guessed, those of each arm refitted to its runs given them.

    ``guesses`` are the parameters of each arm, (arms, p of the base form).
    """
    form: JointForm = problem.form  # type: ignore[assignment]
    shared = [form.base.names.index(n) for n in form.shared]
    start = np.empty(len(form.names))
    for arm, (place, guess) in enumerate(zip(form.places, guesses, strict=True)):
        lower, upper = problem.lower[place], problem.upper[place]
        lower[shared] = upper[shared] = guess[shared]
        alone = replace(problem.only(form.member == arm), form=form.base, lower=lower, upper=upper)
        start[place] = minimise(alone, guess[None], delta=1e-2, tolerance=1e-4)[0][0]
    return start


@dataclass(frozen=True)
class Hypothesis:
    """One way of sharing parameters, and what the runs say about it against separate laws."""

    shared: tuple[str, ...]
    parameters: int
    objective: float
    verdict: Verdict
    aicc: float
    """Robust AIC (Ronchetti 1985) with the small-sample correction; differences matter only."""
    weight: float
    """Akaike weight among the hypotheses compared."""
    f_statistic: float | None
    f_p_value: float | None
    """Of the drop in dispersion against separate laws (Huber & Ronchetti 2009, ch. 7)."""
    bootstrap_p_value: float | None
    """Share of residual-bootstrap data sets made under this hypothesis that favour separate laws at least as
    much as the runs do."""
    params: dict[str, float]


def compare_hypotheses(arms: Mapping[str, ArmFit], *, resamples: int = 199, seed: int = 0) -> list[Hypothesis]:
    """Test which parameters the arms share: F test, bootstrap likelihood ratio, AICc weights.

    Args:
        arms: separately fitted arms, at least two, of one form: its ``sharings`` without what is fixed are tested.
        resamples: of the bootstrap likelihood ratio; 0 for none.
        seed: of the bootstrap.
    """
    if len(arms) < 2:
        raise InputError("a comparison needs at least two arms")
    first = next(iter(arms.values())).fit
    full = joint_fit(arms, ())
    fits = {s: joint_fit(arms, s) if s else full for s in first.form.sharings() if not set(s) & set(first.fixed)}
    c = efficiency(full.noise, full.loss)
    size = {s: int(np.sum(f.lower < f.upper)) for s, f in fits.items()}
    aicc = np.array([2 * c * f.objective + aicc_penalty(size[s], full.n) for s, f in fits.items()])
    weights = np.exp(-0.5 * (aicc - aicc.min()))
    weights /= weights.sum()
    out = []
    for (shared, found), a, weight in zip(fits.items(), aicc, weights, strict=True):
        k, q = size[shared], size[()] - size[shared]
        f_stat = f_p = boot_p = None
        if q > 0:
            f_stat = max(2 * c * (found.objective - full.objective) / q, 0.0)
            f_p = float(special.fdtrc(q, max(full.n - k - q, 1), f_stat))
            boot_p = _bootstrap_ratio(found, full, resamples, seed) if resamples else None
        evidence = (float(a), float(weight), f_stat, f_p, boot_p)
        out.append(Hypothesis(shared, k, found.objective, found.verdict, *evidence, found.params))
    return out


def _bootstrap_ratio(null: Fit, full: Fit, resamples: int, seed: int) -> float:
    """p value of the drop in objective from ``null`` to ``full``, by residuals resampled within each arm."""
    rng = np.random.default_rng(seed)
    member = null.form.member  # type: ignore[attr-defined]
    r = full.residuals / full.residual_unit
    drawn = np.empty((resamples, null.n))
    for g in np.unique(member):
        here = np.flatnonzero(member == g)
        p = len(full.free) / len(np.unique(member))
        pool = (r[here] - r[here].mean()) * np.sqrt(len(here) / max(len(here) - p, 1))
        drawn[:, here] = rng.choice(pool, (resamples, len(here)))
    y = with_residuals(null, drawn)
    delta, scale = null.smoothed(1e-4)
    objectives = [
        minimise(law, np.repeat(law.theta[None], resamples, 0), loss=y, delta=delta, tolerance=1e-7)[1]
        for law in (null, full)
    ]
    drop = (objectives[0] - objectives[1]) * scale
    return float((1 + np.sum(drop >= null.objective - full.objective)) / (resamples + 1))
