"""The tables of a compute grid and its laws."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from eqscale.laws.arms import ArmFit
from eqscale.laws.axes import AXES
from eqscale.laws.compare import Comparison
from eqscale.laws.contrast import Estimate, contrast, log_optimum, slope
from eqscale.laws.minima import Minima, best_size, compute_multiplier, loss_ratio, lowest_loss
from eqscale.laws.render import with_interval
from eqscale.numbers import number
from eqscale.report.analysis import Analysis, pooled_noise
from eqscale.report.checks import SIMILAR, cannot_tell, change_of_ratio
from eqscale.report.exhibits import UNSEEN, Table, wide
from eqscale.report.parts import PARTS, Study
from eqscale.report.roles import Roles

COEFFICIENTS = ("E", "A", "B", "alpha", "beta")
_ESTIMATE = ("estimate", "model_low", "model_high", "robust_low", "robust_high")


def coefficient_table(analysis: Analysis) -> Table:
    """Coefficients with the interval to quote, and whether the form fits."""
    rows = []
    for arm, found in analysis.intervals.items():
        fit = analysis.arms["executed"][arm].fit
        test = fit.lack_of_fit
        shown = [with_interval(i.estimate, *i.recommended) for i in (found[name] for name in COEFFICIENTS)]
        replicates = "no replicates" if test is None else f"p = {test.p_value:.2g}"
        rows.append(
            [
                f"`{arm}`",
                str(fit.n),
                *shown,
                f"{100 * fit.spread:.2g} %",
                replicates,
                f"{fit.verdict.state}: {fit.verdict.reason}".removesuffix(": "),
            ]
        )
    header = ["arm", "runs", "E", "A", "B", "α", "β", "residual scatter", "lack of fit", "verdict"]
    return Table(
        "coefficients", "Coefficients of L(N, D) = E + A/N^α + B/D^β", header, rows,
        "Log-Huber fit (δ = 1e-3); the same on all axes. 95 % intervals are profile limits; `coefficients.csv` has "
        "those of Gauss–Newton and of the bootstrap. *Lack of fit* tests the form against the scatter of seeds (below "
        "0.05: it misses structure).",
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
    """Exponents of compute-optimal allocation on executed FLOPs, by laws that can tell them."""
    laws = analysis.arms.get("executed", {})
    rows = [
        [f"`{name}`", *(wide(e) for e in exponents(arm).values())] for name, arm in laws.items() if not cannot_tell(arm)
    ]
    return Table(
        "allocation", "Exponents of compute-optimal allocation, by the laws",
        ["arm", "N_opt", "D_opt", "cost per token", "L_opt"], rows,
        "x in N_opt ∝ C^x and so on, between the smallest and the largest executed cost of the arm's runs. "
        + "Left out: arms whose law misses structure, or isn't determined by its runs. " * (len(rows) < len(laws))
        + "`allocation.csv` has all arms and axes.",
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


def ranking_frame(analysis: Analysis) -> pd.DataFrame:
    """Which arm is ahead at which cost by the laws, and how surely, best first."""
    rows = [
        (axis, a.C, a.arm, a.loss, *a.loss_band, a.probability_best)
        for axis, levels in analysis.ranking.items()
        for level in levels
        for a in level
    ]
    return pd.DataFrame(rows, columns=["axis", "cost", "arm", "loss", "robust_low", "robust_high", "probability_best"])


def comparison_frame(analysis: Analysis) -> pd.DataFrame:
    """What arms are worth in each other's compute by the laws, and where their lines cross."""
    rows = []
    for axis, pairs in analysis.comparisons.items():
        for pair in pairs:
            if isinstance(pair, Comparison):
                top = pair.multipliers[-1]
                at = (axis, pair.arm, pair.reference, top.C, top.extrapolated)
                rows.append((*at, *top.compute, *top.compute_model, top.probability_better, pair.crossing.describe()))
    factors = ["factor", "profile_low", "profile_high", "model_low", "model_high"]
    return pd.DataFrame(
        rows,
        columns=["axis", "arm", "reference", "cost", "beyond_runs", *factors, "probability_arm_better", "crossing"],
    )


_Optimum = dict[str, Estimate]
"""What is known of an arm at one cost: its lowest loss, N_opt, and these relative to each built-in arm."""


def _optima(analysis: Analysis, axis: str, references: Sequence[str]) -> Iterator[tuple[float, str, _Optimum]]:
    """Cost, arm and measured optimum; values that can't be had are left out."""
    minima = analysis.minima.get(axis, {})
    for cost in sorted({float(c) for m in minima.values() for c in m.cost}):
        for name, m in minima.items():
            if cost not in m.cost:
                continue
            found = {"loss": lowest_loss(m, cost).exp()}
            if not math.isnan((size := best_size(m, cost).exp()).value):
                found["N"] = size
            for reference in references:
                other = minima.get(reference)
                if other is None or other is m:
                    continue
                if cost in other.cost:
                    found[f"loss over {reference}"] = loss_ratio(other, m, cost).exp()
                found[f"cost over {reference}"] = compute_multiplier(other, m, cost).exp()
            yield cost, name, found


def minima_table(analysis: Analysis) -> Table:
    """Optima of the budgets' runs, without a law."""
    cells: dict[float, dict[str, str]] = {}
    for cost, name, found in _optima(analysis, "executed", []):
        size = wide(found["N"]) if "N" in found else "at an edge"
        cells.setdefault(cost, {})[name] = f"{wide(found['loss'])}<br>{size}"
    arms = dict.fromkeys(name for row in cells.values() for name in row)
    return Table(
        "minima", "Measured optima at equal cost, without a law",
        [AXES["executed"].label, *(f"`{name}`" for name in arms)],
        [[number(cost, 3), *(row.get(name, UNSEEN) for name in arms)] for cost, row in cells.items()],
        "Lowest loss, and below it N_opt: minimum of a cubic in log N through the log losses of the runs at one cost "
        "(after approach 2 of Hoffmann et al. 2022), of sizes up to 20 % above the best or the best five. "
        "`minima.csv` has both intervals, ratios of losses and of compute, and the other axes, to which runs are moved "
        "along their laws.",
    )  # fmt: skip


def lead_table(analysis: Analysis, roles: Roles) -> Table:
    """Whether the ratio of losses, baseline over built-in arm, lasts from the lowest to the highest common cost."""
    pairs = [(arm, roles.baseline) for arm in roles.built_in if roles.baseline]
    axes = [axis for axis, minima in analysis.minima.items() if minima]
    rows = [[f"`{arm}`", *(_lasting(analysis.minima[axis], arm, base) for axis in axes)] for arm, base in pairs]
    return Table(
        "lead", "How the lead changes", ["arm", *(AXES[axis].label for axis in axes)], rows if axes else [],
        f"The loss of `{roles.baseline}` over that of the arm at the highest cost that both have, over the same at the "
        "lowest, by measured optima. *Grows* and *shrinks*: the 95 % interval excludes 1; *lasts*: it lies above "
        f"1/{SIMILAR:g}.",
    )  # fmt: skip


def _lasting(minima: Mapping[str, Minima], arm: str, base: str) -> str:
    if not {arm, base} <= minima.keys() or len(np.intersect1d(minima[arm].cost, minima[base].cost)) < 2:
        return UNSEEN
    e, said = change_of_lead(minima[arm], minima[base])
    return f"{wide(e)}: {said}"


def change_of_lead(arm: Minima, base: Minima) -> tuple[Estimate, str]:
    """The factor by which a ratio of losses changes over the costs that both arms have, and what that is called."""
    e = change_of_ratio(arm, base).exp()
    return e, "grows" if e.low > 1 else "shrinks" if e.high < 1 else "lasts" if e.low > 1 / SIMILAR else "open"


def minima_frame(analysis: Analysis) -> pd.DataFrame:
    """The optima on every axis in numbers, relative to those of every other arm, too."""
    rows = [
        (axis, cost, name, what, e.value, *e.model, *e.robust)
        for axis in analysis.minima
        for cost, name, found in _optima(analysis, axis, list(analysis.minima[axis]))
        for what, e in found.items()
    ]
    return pd.DataFrame(rows, columns=["axis", "cost", "arm", "quantity", *_ESTIMATE])


def noise_table(noise: pd.DataFrame) -> Table:
    """Scatter between seeds, pooled over the sizes of a budget and over all."""
    budgets = sorted(noise["budget"].unique())
    rows = []
    for arm, cells in noise.groupby("arm", sort=False):
        found = [pooled_noise(cells[cells["budget"] == budget], str(arm)) for budget in budgets]
        sd, df = pooled_noise(cells, str(arm))
        shown = [f"{100 * at:.2g} %" if n else UNSEEN for at, n in found]
        rows.append([f"`{arm}`", *shown, f"**{100 * sd:.2g} %**", str(df)])
    return Table(
        "seed_noise", "Seed noise",
        ["arm", *(number(budget, 3) for budget in budgets), "all budgets", "degrees of freedom"], rows,
        "Standard deviation of the log loss at equal arm, budget and size (`seed_noise.csv`); a seed sets "
        "initialisation, data order and augmentation.",
    )  # fmt: skip


def edge_table(analysis: Analysis) -> Table:
    """Where the sizes don't bracket the measured optimum."""
    rows = [
        [AXES[e.axis].short, f"`{e.arm}`", number(e.budget, 3), f"the {e.side}, N = {e.N:.0f}",
         f"N ≈ {number(e.suggested, 2)}"]
        for e in analysis.edges
    ]  # fmt: skip
    return Table(
        "edges", "Optima at an edge of the sizes", ["axis", "arm", "budget", "best size", "size to add"], rows,
        "There the optimum is not bracketed and rests on the law's form.",
    )  # fmt: skip


def fate(run: pd.Series) -> str:
    """Status of a run that did not finish, with the reason if the table has it."""
    reason = run.get("reason")
    return f"{run['status']}: {reason}" if isinstance(reason, str) and reason else str(run["status"])


def run_frame(study: Study, analysis: Analysis) -> pd.DataFrame:
    """What became of every run: observed over fitted loss minus 1, and whether the run is in the fits."""
    residual: dict[object, float] = {}
    odd: dict[object, float] = {}
    for name, arm in analysis.arms.get("executed", {}).items():
        residual |= dict(zip(arm.rows, np.expm1(arm.fit.residuals), strict=True))  # type: ignore[arg-type]
        odd |= {arm.rows[o.index]: o.score for o in analysis.outliers[name]}  # type: ignore[index]

    def became(row: object, run: pd.Series) -> str:
        if run["status"] != "finished":
            return fate(run)
        if run["part"] != "compute":
            return PARTS[str(run["part"])]
        why = analysis.unfitted.get(run["arm"])
        outlier = f", outlier ({odd[row]:+.1f} sd)" if row in odd else ""
        return ("fitted" if why is None else f"not fitted: {why}") + outlier

    runs = study.runs
    shown = runs[["name", "arm", "budget", "seed", "N", "D", "epochs", "loss", *(a.column for a in AXES.values())]]
    fates = [became(row, run) for row, run in runs.iterrows()]
    return shown.assign(off_the_law=pd.Series(residual, dtype=float), fate=fates)


def run_table(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and rows of ``run_frame`` for the HTML page, which shows a row when its dot is hovered over."""
    header = ["run", "arm", "budget", "seed", "N", "D", "epochs", "loss", *(axis.short for axis in AXES.values())]
    rows = [
        [
            str(name), str(arm), number(budget, 3), str(seed), *(number(value, 4) for value in values[:4]),
            *(number(value, 3) for value in values[4:]), UNSEEN if math.isnan(off) else f"{100 * off:+.1f} %", became,
        ]
        for name, arm, budget, seed, *values, off, became in frame.itertuples(index=False)
    ]  # fmt: skip
    return [*header, "off the law", "in the fits?"], rows
