"""Arms against each other: which parameters they share, how much one is worth in terms of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from eqscale.errors import InputError
from eqscale.laws.arms import ArmFit
from eqscale.laws.fit import Fit, efficiency, fit_internal
from eqscale.laws.forms import Centre, Evaluation, Features, Form
from eqscale.laws.frontier import cost_to_reach, frontier_values
from eqscale.laws.solver import minimise

Array = np.ndarray

SHARINGS: tuple[tuple[str, ...], ...] = (
    (),
    ("E",),
    ("alpha",),
    ("beta",),
    ("alpha", "beta"),
    ("E", "alpha", "beta"),
    ("E", "A", "B", "alpha", "beta"),
)
"""Hypotheses of a comparison: the parameters that all arms have in common."""


class JointForm(Form):
    """Several arms under one form, some parameters shared: one law over the pooled runs.

    Parameters are named as the base form's where shared and ``name[arm]`` where separate.
    """

    def __init__(self, base: Form, arms: Sequence[str], shared: Sequence[str], starts: Array | None = None):
        self.base, self.arms, self.shared = base, tuple(arms), tuple(shared)
        names: list[str] = [n for n in base.names if n in shared]
        for arm in arms:
            names += [f"{n}[{arm}]" for n in base.names if n not in shared]
        own = [{n: n if n in shared else f"{n}[{arm}]" for n in base.names} for arm in arms]
        self.names = tuple(names)  # type: ignore[misc]
        self.name = f"{base.name}, shared {', '.join(shared) or 'nothing'}"  # type: ignore[misc]
        self.formula, self.columns = base.formula, base.columns  # type: ignore[misc]
        self.log_names = tuple({m[n] for m in own for n in base.log_names})  # type: ignore[misc]
        self.powers = {m[p]: (m[e], r) for m in own for p, (e, r) in base.powers.items()}  # type: ignore[misc]
        self.floors = tuple({m[n] for m in own for n in base.floors})  # type: ignore[misc]
        self.bounds = {m[n]: b for m in own for n, b in base.bounds.items()}  # type: ignore[misc]
        self._index = np.array([[names.index(m[n]) for n in base.names] for m in own])
        self._starts = starts

    def features(self, columns: Mapping[str, Array], centre: Centre) -> dict[str, Array]:
        """The base form's features, and the arm of each run."""
        return {**self.base.features(columns, centre), "arm": columns["arm"]}

    def evaluate(self, theta: Array, x: Features, curvature: bool = True) -> Evaluation:
        """Each arm's runs under its own parameters."""
        b, m = theta.shape[0], len(x["arm"])
        value, jac = np.empty((b, m)), np.zeros((b, len(self.names), m))
        parts = []
        for g, index in enumerate(self._index):
            here = np.flatnonzero(x["arm"] == g)
            ev = self.base.evaluate(theta[:, index], {k: v[here] for k, v in x.items() if k != "arm"})
            value[:, here] = ev.value
            jac[:, index[:, None], here] = ev.jacobian
            parts.append((index, here, ev.curvature))

        def contract(q: Array) -> Array:
            h = np.zeros((b, len(self.names), len(self.names)))
            for index, here, curve in parts:
                h[:, index[:, None], index] += curve(q[:, here])
            return h

        return Evaluation(value, jac, contract)

    def starts(self, x: Features, loss: Array, weights: Array, fixed: Mapping[int, float]) -> Array:
        """Where the separate fits lead (see ``joint_fit``)."""
        assert self._starts is not None
        return self._starts

    def split(self, theta: Array) -> list[Array]:
        """Internal parameters by arm, each (b, p of the base form)."""
        return [theta[..., index] for index in self._index]

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
        InputError: arms of different forms or losses, or an unknown parameter.
    """
    first = next(iter(arms.values())).fit
    for name, arm in arms.items():
        if arm.fit.form.name != first.form.name or arm.fit.loss != first.loss:
            raise InputError(f"arm {name!r}: joint fits need one form and one loss function for all arms")
    base = first.form
    for name in shared:
        if name not in base.names:
            raise InputError(f"cannot share {name!r}; the form {base.name!r} has {', '.join(base.names)}")
    fits = [a.fit for a in arms.values()]
    columns = {c: np.concatenate([f.columns[c] for f in fits]) for c in base.columns}
    columns["arm"] = np.repeat(np.arange(len(fits)), [f.n for f in fits]).astype(float)
    loss = np.concatenate([f.observed for f in fits])
    weights = np.concatenate([f.weights for f in fits])
    centre = Centre(
        float(np.log(loss).mean()),
        {
            c: float(np.log(columns[c]).mean()) if not first.fixed else first.centre.logs[c]
            for c in base.columns
        },
    )
    form = JointForm(base, list(arms), shared)
    lower, upper = form.internal_bounds()
    for g, f in enumerate(fits):
        for name in f.fixed:
            i = form._index[g][base.names.index(name)]
            lower[i] = upper[i] = base.to_internal(f.params, centre)[base.names.index(name)]
    form._starts = _joint_starts(form, fits, columns, loss, weights, centre, lower, upper)
    return fit_internal(form, first.loss, columns, loss, weights, centre, lower, upper, {})


def _joint_starts(form: JointForm, fits, columns, loss, weights, centre, lower, upper) -> Array:
    """The mean of the arms' shared parameters and each arm's own, the rest refitted given them."""
    base = form.base
    own = np.array([base.to_internal(f.params, centre) for f in fits])
    own = np.maximum(np.where(np.isfinite(own), own, -30.0), -30.0)  # a term that vanished starts tiny
    shared = [base.names.index(n) for n in form.shared]
    candidates = [own.mean(0), *own] if shared else [own[0]]
    y, x = loss / np.exp(centre.log_loss), form.features(columns, centre)
    out = []
    for candidate in candidates:
        start = np.empty(len(form.names))
        for g, index in enumerate(form._index):
            local = own[g].copy()
            local[shared] = candidate[shared]
            here = columns["arm"] == g
            lo, hi = lower[index].copy(), upper[index].copy()
            lo[shared] = hi[shared] = local[shared]
            xs = {k: v[here] for k, v in x.items() if k != "arm"}
            t, *_ = minimise(
                base, local[None], xs, y[here][None], weights[here][None], 1e-2, fits[0].loss.is_log, lo, hi,
                tolerance=1e-4,
            )  # fmt: skip
            start[index] = t[0]
        out.append(start)
    return np.array(out)


@dataclass(frozen=True)
class Hypothesis:
    """One way of sharing parameters, and what the runs say about it against separate laws."""

    shared: tuple[str, ...]
    parameters: int
    objective: float
    verdict: str
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


@dataclass(frozen=True)
class Multiplier:
    """An arm's worth at one cost: the factors that the reference needs for the same loss."""

    C: float
    loss: float
    """The arm's compute-optimal loss at C."""
    compute: tuple[float, float, float]
    """Estimate, low, high (95 % bootstrap): infinite where the reference never gets there."""
    data: tuple[float, float, float]
    parameters: tuple[float, float, float]
    compute_model: tuple[float, float]
    """Gauss–Newton interval of the compute multiplier."""
    probability_better: float
    """Share of resamples in which the arm's loss at C is below the reference's."""
    extrapolated: bool
    """Whether C lies outside the runs of either arm, or the reference's equivalent outside its runs."""


@dataclass(frozen=True)
class Crossing:
    """Where the compute-optimal losses of two arms meet."""

    C: float | None
    """Of the point estimates; None if there is none in range."""
    interval: tuple[float, float] | None
    """95 % of the resamples that cross in range."""
    probability: float
    """Share of resamples that cross in range."""
    range: tuple[float, float]
    """Costs searched."""
    better_below: str
    better_above: str

    def describe(self) -> str:
        """In words."""
        if not self.better_below:
            return "undecidable: an arm's law lost a term and has no compute-optimal point (see its verdict)"
        low, high = self.range
        where = f"between C = {low:.3g} and {high:.3g}"
        if self.C is None:
            share = f"{100 * self.probability:.0f} % of resamples cross"
            return f"none in range ({where} {self.better_below} is ahead; {share})"
        low, high = self.interval or (np.nan, np.nan)
        return (
            f"at C = {self.C:.3g} [{low:.3g}, {high:.3g}]: {self.better_below} ahead below, "
            f"{self.better_above} above ({100 * self.probability:.0f} % of resamples cross {where})"
        )


@dataclass(frozen=True)
class Comparison:
    """One arm against a reference on one cost axis."""

    arm: str
    reference: str
    axis: str
    multipliers: tuple[Multiplier, ...]
    crossing: Crossing
    notes: tuple[str, ...] = field(default=())


def compare_hypotheses(
    arms: Mapping[str, ArmFit],
    sharings: Sequence[Sequence[str]] = SHARINGS,
    *,
    resamples: int = 199,
    seed: int = 0,
) -> list[Hypothesis]:
    """Test which parameters the arms share: F test, bootstrap likelihood ratio, AICc weights.

    Args:
        arms: separately fitted arms, at least two.
        sharings: hypotheses; those that name parameters the form lacks or fixed are left out.
        resamples: of the bootstrap likelihood ratio; 0 for none.
        seed: of the bootstrap.
    """
    first = next(iter(arms.values())).fit
    if len(arms) < 2:
        raise InputError("a comparison needs at least two arms")
    sharings = [s for s in sharings if all(n in first.form.names and n not in first.fixed for n in s)]
    full = joint_fit(arms, ())
    noise = full.noise
    c = efficiency(noise, full.loss)
    fits = [full if not s else joint_fit(arms, s) for s in sharings]
    n = full.n
    rows = []
    for shared, found in zip(sharings, fits, strict=True):
        k = int(np.sum(found.lower < found.upper))
        aicc = 2 * c * found.objective + 2 * k + 2 * k * (k + 1) / max(n - k - 1, 1)
        q = len(full.theta[full.lower < full.upper]) - k
        f_stat = f_p = boot_p = None
        if q > 0:
            df = max(n - k - q, 1)
            f_stat = max(2 * c * (found.objective - full.objective) / q, 0.0)
            f_p = float(stats.f.sf(f_stat, q, df))
            if resamples:
                boot_p = _bootstrap_ratio(found, full, resamples, seed)
        rows.append((tuple(shared), k, found, aicc, f_stat, f_p, boot_p))
    best = min(r[3] for r in rows)
    weights = np.exp(-0.5 * (np.array([r[3] for r in rows]) - best))
    weights /= weights.sum()
    return [
        Hypothesis(s, k, found.objective, found.verdict, aicc, float(w), f_stat, f_p, boot_p, found.params)
        for (s, k, found, aicc, f_stat, f_p, boot_p), w in zip(rows, weights, strict=True)
    ]


def _bootstrap_ratio(null: Fit, full: Fit, resamples: int, seed: int) -> float:
    """p value of the drop in objective from ``null`` to ``full``, by residuals resampled within each arm."""
    rng = np.random.default_rng(seed)
    fitted = null.form.evaluate(null.theta[None], null.features, curvature=False).value
    arm = null.columns["arm"]
    r = full.residuals if full.loss.is_log else full.residuals / np.exp(full.centre.log_loss)
    drawn = np.empty((resamples, null.n))
    for g in np.unique(arm):
        here = np.flatnonzero(arm == g)
        p = len(full.free) / len(np.unique(arm))
        pool = (r[here] - r[here].mean()) * np.sqrt(len(here) / max(len(here) - p, 1))
        drawn[:, here] = rng.choice(pool, (resamples, len(here)))
    y = fitted * np.exp(drawn) if null.loss.is_log else np.maximum(fitted + drawn, 1e-3 * fitted)
    objectives = []
    for found in (null, full):
        _, f, _ = minimise(
            found.form, np.repeat(found.theta[None], resamples, 0), found.features, y, found.weights[None],
            max(found.loss.threshold, 1e-4), found.loss.is_log, found.lower, found.upper, tolerance=1e-7,
        )  # fmt: skip
        objectives.append(f)
    unit = 1.0 if null.loss.kind != "lad" else 1e4
    scale = 1.0 if null.loss.is_log else np.exp(2 * null.centre.log_loss)
    drop = (objectives[0] - objectives[1]) * unit * scale
    return float((1 + np.sum(drop >= null.objective - full.objective)) / (resamples + 1))


def check_overlap(arm: str, C: Array, reference: str, reference_C: Array, axis: str) -> None:
    """Refuse two arms whose runs (by their costs) only an extrapolation would compare.

    Raises:
        InputError: no cost in common.
    """
    low, high = max(C.min(), reference_C.min()), min(C.max(), reference_C.max())
    if low > high * (1 + 1e-9):
        raise InputError(
            f"{axis}: the runs of {arm} ({C.min():.3g} to {C.max():.3g}) and {reference} "
            f"({reference_C.min():.3g} to {reference_C.max():.3g}) have no cost in common; "
            "comparing them would rest on extrapolation alone"
        )


def common_range(arms: Mapping[str, ArmFit]) -> tuple[float, float]:
    """Costs that all arms' runs cover."""
    return max(a.C.min() for a in arms.values()), min(a.C.max() for a in arms.values())


def compare_arms(
    arm: ArmFit,
    reference: ArmFit,
    *,
    C: Sequence[float] | Array | None = None,
    axis: str = "C",
    beyond: float = 10.0,
) -> Comparison:
    """What an arm is worth against a reference: multipliers over C, P(better) and the crossing.

    To reach the loss that ``arm`` attains compute-optimally at cost C, the reference (trained
    compute-optimally too) needs ``compute`` times the cost, ``data`` times the tokens and ``parameters``
    times the parameters; factors above one favour ``arm``.

    Args:
        arm, reference: fitted arms with bootstraps.
        C: costs; five over the range that both arms' runs cover if None.
        axis: name of the cost axis.
        beyond: the crossing is searched from the smallest cost over ``beyond`` to the largest times it.

    Raises:
        InputError: no cost in common, or an arm without a bootstrap.
    """
    check_overlap(arm.name, arm.C, reference.name, reference.C, axis)
    if arm.boot is None or reference.boot is None:
        raise InputError("a comparison with intervals needs a bootstrap of each arm")
    low, high = common_range({"a": arm, "b": reference})
    C = np.geomspace(low, high, 5) if C is None else np.asarray(C, float)
    size = min(arm.boot.resamples, reference.boot.resamples)
    ours = {k: np.concatenate([arm.fit.coefficients[k], v[:size]]) for k, v in arm.boot.coefficients.items()}
    theirs = {
        k: np.concatenate([reference.fit.coefficients[k], v[:size]])
        for k, v in reference.boot.coefficients.items()
    }
    log_n, log_d, log_l = frontier_values(ours, arm.cost, C)
    _, _, log_l_ref = frontier_values(theirs, reference.cost, C)
    needs = cost_to_reach(theirs, reference.cost, np.exp(log_l))
    have = (np.log(C)[None], log_n, log_d)
    with np.errstate(invalid="ignore", over="ignore"):
        factors = [np.exp(np.minimum(a - b, 700.0)) for a, b in zip(needs, have, strict=True)]
    model = _model_interval(arm, reference, C)
    known = ~np.isnan(log_l + log_l_ref)[1:]
    with np.errstate(invalid="ignore"):
        better = np.sum((log_l < log_l_ref)[1:] & known, axis=0) / known.sum(0)
    better = np.where(np.isnan(log_l + log_l_ref)[0], np.nan, better)
    span = reference.C.min(), reference.C.max()
    out = []
    for i, c in enumerate(C):
        trip = [_percentiles(f[:, i]) for f in factors]
        equivalent = c * min(trip[0][0], 1e100)
        outside = not (low <= c * (1 + 1e-9) and c <= high * (1 + 1e-9) and span[0] <= equivalent <= span[1])
        out.append(
            Multiplier(
                float(c), float(np.exp(log_l[0, i])), trip[0], trip[2], trip[1], model[i],
                float(better[i]), outside,
            )
        )  # fmt: skip
    return Comparison(
        arm.name, reference.name, axis, tuple(out), _crossing(arm, reference, ours, theirs, beyond)
    )


def _percentiles(v: Array) -> tuple[float, float, float]:
    """Point estimate (first) and 95 % interval of the resamples; infinities are kept as such."""
    draws = v[1:][~np.isnan(v[1:])]
    if np.isnan(v[0]) or not len(draws):
        return np.nan, np.nan, np.nan
    low, high = np.percentile(draws, [2.5, 97.5], method="nearest")
    return float(v[0]), float(low), float(high)


def _model_interval(arm: ArmFit, reference: ArmFit, C: Array) -> list[tuple[float, float]]:
    """Gauss–Newton interval of the compute multiplier: independent errors of the two laws add."""
    loss = np.exp(frontier_values(arm.fit.coefficients, arm.cost, C)[2])
    needed = cost_to_reach(reference.fit.coefficients, reference.cost, loss)[0][0]

    def of_ours(c):
        reached = np.exp(frontier_values(c, arm.cost, C)[2])
        rows = {k: np.repeat(v, len(reached)) for k, v in reference.fit.coefficients.items()}
        return cost_to_reach(rows, reference.cost, reached)[0]

    def of_theirs(c):
        return cost_to_reach(c, reference.cost, np.broadcast_to(loss, (len(c["E"]), len(C))))[0]

    with np.errstate(invalid="ignore"):
        se = np.hypot(arm.fit.standard_error(of_ours), reference.fit.standard_error(of_theirs))
        t = max(arm.fit.t_value(0.95), reference.fit.t_value(0.95))
        estimate = needed - np.log(C)
        low, high = np.exp(np.minimum(estimate - t * se, 700)), np.exp(np.minimum(estimate + t * se, 700))
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _crossing(arm: ArmFit, reference: ArmFit, ours, theirs, beyond: float) -> Crossing:
    low = min(arm.C.min(), reference.C.min()) / beyond
    high = max(arm.C.max(), reference.C.max()) * beyond
    grid = np.geomspace(low, high, 121)
    gap = frontier_values(ours, arm.cost, grid)[2] - frontier_values(theirs, reference.cost, grid)[2]
    with np.errstate(invalid="ignore"):
        change = (gap[:, :-1] * gap[:, 1:]) <= 0
    crosses = change.any(1)
    # the crossing nearest to the runs both arms have
    middle = 0.5 * np.sum(np.log(common_range({"a": arm, "b": reference})))
    log_grid = np.log(grid)
    distance = np.where(change, np.abs(0.5 * (log_grid[:-1] + log_grid[1:]) - middle), np.inf)
    k = np.argmin(distance, axis=1)
    rows = np.arange(len(gap))
    g0, g1 = gap[rows, k], gap[rows, k + 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        at = log_grid[k] + (log_grid[k + 1] - log_grid[k]) * np.where(g0 == g1, 0.0, g0 / (g0 - g1))
    draws = np.exp(at[1:][crosses[1:]])
    names = (arm.name, reference.name)
    if crosses[0]:
        below = names[0] if g0[0] < 0 else names[1]
        above = names[1] if below == names[0] else names[0]
        interval = tuple(float(v) for v in np.percentile(draws, [2.5, 97.5])) if len(draws) else None
        return Crossing(float(np.exp(at[0])), interval, float(crosses[1:].mean()), (low, high), below, above)  # type: ignore[arg-type]
    if np.isnan(gap[0]).any():
        return Crossing(None, None, float(crosses[1:].mean()), (low, high), "", "")
    ahead = names[0] if gap[0, 0] < 0 else names[1]
    return Crossing(None, None, float(crosses[1:].mean()), (low, high), ahead, ahead)
