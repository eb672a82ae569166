"""The tables of a compute grid and its laws."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from eqscale.laws import Interval
from eqscale.laws.arms import ArmFit
from eqscale.laws.axes import AXES
from eqscale.laws.compare import Comparison
from eqscale.laws.contrast import Estimate, contrast, log_optimum, slope
from eqscale.laws.minima import combine, compute_multiplier, loss_ratio, lowest_loss, weights_at
from eqscale.laws.render import factor_text, interval_text, number
from eqscale.report.analysis import Analysis, pooled_noise
from eqscale.report.exhibits import UNSEEN, Table, numbered
from eqscale.report.parts import PARTS, Study

COEFFICIENTS = ("E", "A", "B", "alpha", "beta")
_ESTIMATE = ("estimate", "model_low", "model_high", "robust_low", "robust_high")


def two_intervals(e: Estimate | Interval) -> str:
    """A number, its model-based and its robust limits on three lines of a cell."""
    value = e.estimate if isinstance(e, Interval) else e.value
    limits = (", ".join(number(v, 3) for v in pair) for pair in (e.model, e.robust or (math.nan,)))
    return "<br>".join([number(value, 3), *(f"[{pair}]" for pair in limits)])


def bound(e: Estimate) -> str:
    """A factor with a one-sided interval as a bound; empty for any other."""
    sign = ">" if math.isinf(e.model[1]) else "<" if e.model[0] == 0 else ""
    return sign and f"{sign} {number(e.value, 3)}"


def coefficient_table(analysis: Analysis) -> Table:
    """Coefficients with both intervals, and whether the form fits."""
    rows = []
    for arm, found in analysis.intervals.items():
        fit, test = analysis.arms["executed"][arm].fit, analysis.lack_of_fit[arm]
        shown = [two_intervals(found[name]) for name in COEFFICIENTS]
        replicates = "no replicates" if test is None else f"p = {test.p_value:.2g}"
        rows.append([f"`{arm}`", str(fit.n), *shown, f"{100 * fit.spread:.2g} %", replicates, str(fit.verdict)])
    header = ["arm", "runs", "E", "A", "B", "α", "β", "residual scatter", "lack of fit", "verdict"]
    return Table(
        "coefficients", "Coefficients of L(N, D) = E + A/N^α + B/D^β", header, rows,
        "Log-Huber fit (δ = 1e-3). Under each estimate its 95 % intervals: [model-based, Gauss–Newton t] and [robust, "
        "case bootstrap]. The law is in parameters and tokens, so its coefficients are the same on all three axes; "
        "*lack of fit* tests the form against the scatter of seeds (below 0.05: it misses structure).",
    )  # fmt: skip


def coefficients_frame(analysis: Analysis) -> pd.DataFrame:
    """The coefficients in numbers, one row an arm and coefficient (``a`` = β/(α+β) included)."""
    rows = [
        (arm, name, found[name].estimate, *found[name].model, *(found[name].robust or (math.nan, math.nan)))
        for arm, found in analysis.intervals.items()
        for name in (*COEFFICIENTS, "a")
        if name in found
    ]
    return pd.DataFrame(rows, columns=["arm", "coefficient", *_ESTIMATE])


def exponents(arm: ArmFit) -> dict[str, Estimate]:
    """Exponents of C over the costs of an arm's runs: of N_opt, D_opt, C/D_opt and L_opt."""
    low, high = float(arm.C.min()), float(arm.C.max())

    def of(what: str) -> Estimate:
        at_low, at_high = (log_optimum(arm.cost, C, what) for C in (low, high))
        return contrast([(arm, slope(at_low, at_high, math.log(high / low)))])

    D = of("D")
    per_token = Estimate(1 - D.value, *((1 - high, 1 - low) for low, high in (D.model, D.robust)))
    return {"N": of("N"), "D": D, "cost per token": per_token, "loss": of("loss")}


def allocation_table(analysis: Analysis) -> Table:
    """Exponents of compute-optimal allocation on each axis."""
    rows = [
        [AXES[axis].label, f"`{name}`", *(two_intervals(e) for e in exponents(arm).values())]
        for axis, arms in analysis.arms.items()
        for name, arm in arms.items()
    ]
    return Table(
        "allocation", "Exponents of compute-optimal allocation",
        ["axis", "arm", "N_opt", "D_opt", "cost per token", "L_opt"], rows,
        "x in N_opt ∝ C^x and so on, between the smallest and the largest cost of the arm's runs, by the cost per "
        f"token of these runs. Intervals as in {numbered('coefficients')}.",
    )  # fmt: skip


def allocation_frame(analysis: Analysis) -> pd.DataFrame:
    """The exponents in numbers."""
    rows = [
        (axis, name, what, e.value, *e.model, *e.robust)
        for axis, arms in analysis.arms.items()
        for name, arm in arms.items()
        for what, e in exponents(arm).items()
    ]
    return pd.DataFrame(rows, columns=["axis", "arm", "exponent", *_ESTIMATE])


def ranking_table(analysis: Analysis) -> Table:
    """Which arm is ahead at which cost, and how surely."""
    rows = []
    for axis, levels in analysis.ranking.items():
        for level in levels:
            ranked = "; ".join(
                f"`{a.arm}` {number(a.loss)} {interval_text(a.loss_band)}"
                + ("" if a.probability_best is None else f" ({100 * a.probability_best:.0f} %)")
                for a in level
            )
            rows.append([AXES[axis].label, f"{level[0].C:.3g} {AXES[axis].unit}", ranked])
    return Table(
        "ranking", "Arms by compute-optimal loss", ["axis", "cost", "best first: loss [95 %, robust] (P(best))"], rows,
        "At the lowest, middle and highest cost that the runs of all arms cover. P(best): share of the resamples in "
        "which the arm has the lowest loss.",
    )  # fmt: skip


def comparison_table(analysis: Analysis) -> Table:
    """What arms are worth in each other's compute, and where their lines cross."""
    rows = []
    for axis, pairs in analysis.comparisons.items():
        for pair in pairs:
            cells = [str(pair), *[UNSEEN] * 4]
            if isinstance(pair, Comparison):
                top, sure = pair.multipliers[-1], pair.multipliers[-1].probability_better
                cells = [
                    f"`{pair.arm}` against `{pair.reference}`",
                    f"{top.C:.3g} {AXES[axis].unit}" + (" *" if top.extrapolated else ""),
                    f"{factor_text(top.compute)} {interval_text(top.compute_model)}",
                    UNSEEN if math.isnan(sure) else f"{100 * sure:.0f} %", pair.crossing.describe(),
                ]  # fmt: skip
            rows.append([AXES[axis].label, *cells])
    return Table(
        "comparisons", "Compute that arms need for each other's losses, and where their lines cross",
        ["axis", "pair", "at", "compute the second needs for the first's loss", "P(first ahead)", "crossing"], rows,
        "Factors with profile, then model-based 95 % intervals; P is the share of the resamples. Crossings are stated "
        "where one arm is shown to be ahead below and the other above. A star marks a cost beyond the second's "
        "runs. Crossings are searched from a tenth of the lowest to ten times the highest cost.",
    )  # fmt: skip


_Optimum = dict[str, Estimate]
"""What is known of an arm at one cost: its lowest loss, N_opt, and these relative to each built-in arm."""


def _optima(analysis: Analysis, axis: str, built_in: Sequence[str]) -> Iterator[tuple[float, str, _Optimum]]:
    """Cost, arm and measured optimum; values that can't be had are left out."""
    minima = analysis.minima.get(axis, {})
    for cost in sorted({float(c) for m in minima.values() for c in m.cost}):
        for name, m in minima.items():
            if cost not in m.cost:
                continue
            found = {"loss": lowest_loss(m, cost).exp()}
            size = combine([(m, m.N, weights_at(m, np.array([cost]), np.ones(1)))]).exp()
            if not math.isnan(size.value):
                found["N"] = size
            for reference in built_in:
                other = minima.get(reference)
                if other is None or other is m:
                    continue
                if cost in other.cost:
                    found[f"loss over {reference}"] = loss_ratio(other, m, cost).exp()
                found[f"cost over {reference}"] = compute_multiplier(other, m, cost).exp()
            yield cost, name, found


def minima_table(analysis: Analysis, built_in: Sequence[str]) -> Table:
    """Optima of the budgets' runs, without a law, and relative to those of each built-in arm."""
    header = {"loss": "lowest loss", "N": "N_opt"}
    for name in built_in:
        header[f"loss over {name}"] = f"loss over that of `{name}`"
        header[f"cost over {name}"] = f"this cost over what `{name}` needs for this loss"
    rows = []
    for cost, name, found in _optima(analysis, "executed", built_in):
        shown = {what: two_intervals(e) for what, e in found.items()}
        shown |= {what: said for what, e in found.items() if what.startswith("cost") and (said := bound(e))}
        cells = [shown.get(what, "at an edge" if what == "N" else UNSEEN) for what in header]
        rows.append([f"{cost:.3g} {AXES['executed'].unit}", f"`{name}`", *cells])
    scatter = ", ".join(f"`{name}` {100 * m.scatter:.2g} %" for name, m in analysis.minima.get("executed", {}).items())
    joined = (
        " The cost that an arm needs for a loss is read off power laws that join its losses from one cost to the next; "
        "> and < are bounds, where its losses don't reach that far."
    )
    return Table(
        "minima", "Measured optima at equal cost, without a law",
        [AXES["executed"].label, "arm", *header.values()], rows,
        "Minimum of a parabola in log N through the log losses of the runs at one cost (approach 2 of Hoffmann et al. "
        f"2022), within the sizes that were run. Intervals: [t of the scatter about an arm's parabolas, {scatter}] "
        "and [residual bootstrap]. On the other axes, in `minima.csv`, runs are moved along their laws to the nearest "
        "of a few costs and keep their residuals." + (joined if built_in else ""),
    )  # fmt: skip


def minima_frame(analysis: Analysis, built_in: Sequence[str]) -> pd.DataFrame:
    """The optima on every axis in numbers."""
    rows = [
        (axis, cost, name, what, e.value, *e.model, *e.robust)
        for axis in analysis.minima
        for cost, name, found in _optima(analysis, axis, built_in)
        for what, e in found.items()
    ]
    return pd.DataFrame(rows, columns=["axis", "cost", "arm", "quantity", *_ESTIMATE])


def best_runs_table(finished: pd.DataFrame, noise: pd.DataFrame, units: str) -> Table:
    """Best measured loss at each budget: the size with the lowest mean over seeds."""
    cells: dict[tuple[float, str], str] = {}
    for (budget, arm), runs in finished.groupby(["budget", "arm"], sort=False):
        N = runs.groupby("N")["loss"].mean().idxmin()
        at = runs[runs["N"] == N]
        mean, n = at["loss"].mean(), len(at)
        errors = (mean * pooled_noise(noise, str(arm))[0] / math.sqrt(n), at["loss_se"].mean())
        shown = "".join(f" ± {error:.4f}" for error in errors if math.isfinite(error))
        seeds = f", {n} seeds" if n > 1 else ""
        cells[budget, str(arm)] = f"{mean:.4f}{shown} (N = {N:.0f}{seeds})"
    names = list(dict.fromkeys(finished["arm"]))
    rows = [
        [f"{budget:.3g}", *(cells.get((budget, name), UNSEEN) for name in names)]
        for budget in sorted(finished["budget"].unique())
    ]
    return Table(
        "best_runs", "Best measured loss at each budget", ["budget (executed FLOPs)", *(f"`{n}`" for n in names)], rows,
        "Best of the sizes that were run, mean over seeds. ± is "
        + ("first the standard error from seeds, then that " if len(noise) else "one standard error ")
        + f"over test {units}, which all runs share.",
    )  # fmt: skip


def noise_table(noise: pd.DataFrame) -> Table:
    """Scatter between seeds, pooled over the sizes of a budget and over all."""
    rows = []
    for arm, cells in noise.groupby("arm", sort=False):
        parts = [(f"{budget:.3g}", own) for budget, own in cells.groupby("budget")]
        for budget, own in (*parts, ("all", cells)):
            sd, df = pooled_noise(own, str(arm))
            shown = f"{100 * sd:.2g} %"
            rows.append([f"`{arm}`", budget, str(len(own)), f"**{shown}**" if budget == "all" else shown, str(df)])
    return Table(
        "seed_noise", "Seed noise",
        ["arm", "budget", "sizes", "standard deviation of the loss", "degrees of freedom"], rows,
        "Of the log loss at equal arm, budget and size, pooled over sizes (`seed_noise.csv` has each); a seed sets "
        "initialisation, data order and augmentation.",
    )  # fmt: skip


def edge_table(analysis: Analysis) -> Table:
    """Where the sizes don't bracket the measured optimum."""
    rows = [
        [AXES[e.axis].label, f"`{e.arm}`", f"{e.budget:.3g}", f"the {e.side}, N = {e.N:.0f}", f"N ≈ {e.suggested:.2g}"]
        for e in analysis.edges
    ]  # fmt: skip
    return Table(
        "edges", "Optima at an edge of the sizes", ["axis", "arm", "budget", "best size", "size to add"], rows,
        "Means over seeds; within a budget, losses are moved along the law to equal cost on the axis. With the best "
        "size at an edge the optimum is not bracketed and rests on the law's form.",
    )  # fmt: skip


def fate(run: pd.Series) -> str:
    """Status of a run that did not finish, with the reason if the table has it."""
    reason = run.get("reason")
    return f"{run['status']}: {reason}" if isinstance(reason, str) and reason else str(run["status"])


def run_table(study: Study, analysis: Analysis) -> Table:
    """Every run of every part with what became of it; the HTML page shows a row when its dot is hovered over."""
    residual: dict[object, float] = {}
    odd: dict[object, float] = {}
    for name, arm in analysis.arms.get("executed", {}).items():
        residual |= dict(zip(arm.rows, 100 * np.expm1(arm.fit.residuals), strict=True))  # type: ignore[arg-type]
        odd |= {arm.rows[o.index]: o.score for o in analysis.outliers[name]}  # type: ignore[index]

    def became(row: object, run: pd.Series) -> str:
        if run["status"] != "finished":
            return fate(run)
        if run["part"] != "compute":
            return PARTS[str(run["part"])]
        why = analysis.unfitted.get(run["arm"])
        outlier = f", outlier ({odd[row]:+.1f} sd)" if row in odd else ""
        return ("fitted" if why is None else f"not fitted: {why}") + outlier

    rows = [
        [
            str(run["name"]), str(run["arm"]), f"{run['budget']:.3g}", str(run["seed"]),
            *(number(run[column], 4) for column in ("N", "D", "epochs", "loss")),
            *(number(run[axis.column], 3) for axis in AXES.values()),
            f"{residual[row]:+.1f} %" if row in residual else UNSEEN,
            became(row, run),
        ]
        for row, run in study.runs.iterrows()
    ]  # fmt: skip
    header = [
        "run", "arm", "budget", "seed", "N", "D", "epochs", "loss", *(axis.short for axis in AXES.values()),
        "off the law", "in the fits?",
    ]  # fmt: skip
    return Table("runs", "Every run", header, rows, "Off the law: observed over fitted loss.")
