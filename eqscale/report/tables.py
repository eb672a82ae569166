"""The tables of a report: numbered, each a header and rows of text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from eqscale.laws import Interval
from eqscale.laws.arms import ArmFit
from eqscale.laws.axes import AXES
from eqscale.laws.compare import Comparison
from eqscale.laws.contrast import Estimate, contrast, log_optimum, scaled, slope
from eqscale.laws.minima import combine, compute_multiplier, loss_ratio, lowest_loss, weights_at
from eqscale.laws.render import factor_text, interval_text, markdown_table, number
from eqscale.report.analysis import Analysis, pooled_noise
from eqscale.report.axes import EQUIVARIANT
from eqscale.report.parts import PARTS, Study

COEFFICIENTS = ("E", "A", "B", "alpha", "beta")
_GREEK = {"alpha": "α", "beta": "β"}


@dataclasses.dataclass(frozen=True)
class Table:
    """One numbered table."""

    number: int
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """Caption with an anchor, then the table."""
        caption = (
            f'<a id="table{self.number}"></a>**Table {self.number}. {self.title}.** {self.note}'.rstrip()
        )
        return f"{caption}\n\n{markdown_table(self.header, self.rows)}"


def link(number: int, kind: str = "table") -> str:
    """A reference to a table or figure."""
    return f"[{'Table' if kind == 'table' else 'Figure'} {number}](#{'table' if kind == 'table' else 'fig'}{number})"


def two_intervals(interval: Interval, digits: int = 3) -> str:
    """An interval's estimate, model-based limits and robust limits on three lines of a cell."""
    model = ", ".join(number(v, digits) for v in interval.model)
    robust = ", ".join(number(v, digits) for v in interval.robust) if interval.robust else "–"
    return f"{number(interval.estimate, digits)}<br>[{model}]<br>[{robust}]"


def _cell(e: Estimate, digits: int = 3) -> str:
    model, robust = (", ".join(number(v, digits) for v in limits) for limits in (e.model, e.robust))
    return f"{number(e.value, digits)}<br>[{model}]<br>[{robust}]"


def _bound_or_cell(e: Estimate) -> str:
    """A factor that is infinite on one side is a bound."""
    if math.isinf(e.model[1]):
        return f"> {number(e.value, 3)}"
    return f"< {number(e.value, 3)}" if e.model[0] == 0 else _cell(e)


def coefficient_table(analysis: Analysis) -> Table:
    """Table 1: coefficients with both intervals, and whether the form fits."""
    rows = []
    for arm, found in analysis.intervals.items():
        test = analysis.lack_of_fit[arm]
        rows.append(
            [
                f"`{arm}`",
                str(analysis.arms["executed"][arm].fit.n),
                *(two_intervals(found[name]) for name in COEFFICIENTS),
                f"{100 * analysis.arms['executed'][arm].fit.spread:.2g} %",
                "no replicates" if test is None else f"p = {test.p_value:.2g}",
                analysis.arms["executed"][arm].fit.verdict,
            ]
        )
    header = [
        "arm",
        "runs",
        *(_GREEK.get(n, n) for n in COEFFICIENTS),
        "residual scatter",
        "lack of fit",
        "verdict",
    ]
    return Table(
        1, "Coefficients of L(N, D) = E + A/N^α + B/D^β", header, rows,
        "Log-Huber fit (δ = 1e-3). Under each estimate its 95 % intervals: [model-based, Gauss–Newton t] and [robust, "
        "case bootstrap]. The law is in parameters and tokens, so its coefficients are the same on all three axes; "
        "*lack of fit* tests the form against the scatter of seeds (below 0.05: it misses structure).",
    )  # fmt: skip


def coefficients_frame(analysis: Analysis) -> pd.DataFrame:
    """Table 1 in numbers, one row an arm and coefficient (``a`` = β/(α+β) included)."""
    rows = [
        (arm, name, found[name].estimate, *found[name].model, *(found[name].robust or (math.nan, math.nan)))
        for arm, found in analysis.intervals.items()
        for name in (*COEFFICIENTS, "a")
        if name in found
    ]
    columns = ["arm", "coefficient", "estimate", "model_low", "model_high", "robust_low", "robust_high"]
    return pd.DataFrame(rows, columns=columns)


def exponents(arm: ArmFit) -> dict[str, Estimate]:
    """Exponents of C over the costs of an arm's runs: of N_opt, D_opt, C/D_opt and L_opt."""
    low, high = float(arm.C.min()), float(arm.C.max())
    width = math.log(high / low)

    def of(what: str, sign: float = 1.0) -> Estimate:
        between = slope(log_optimum(arm.cost, low, what), log_optimum(arm.cost, high, what), width)
        return contrast([(arm, scaled(between, sign))])

    D = of("D")
    per_token = Estimate(1 - D.value, (1 - D.model[1], 1 - D.model[0]), (1 - D.robust[1], 1 - D.robust[0]))
    return {"N": of("N"), "D": D, "cost per token": per_token, "loss": of("loss")}


def allocation_table(analysis: Analysis) -> Table:
    """Table 2: exponents of compute-optimal allocation on each axis."""
    rows = [
        [AXES[axis].label, f"`{name}`", *(_cell(e) for e in exponents(arm).values())]
        for axis, arms in analysis.arms.items()
        for name, arm in arms.items()
    ]
    return Table(
        2, "Exponents of compute-optimal allocation",
        ["axis", "arm", "N_opt", "D_opt", "cost per token", "L_opt"], rows,
        "x in N_opt ∝ C^x and so on, between the smallest and the largest cost of the arm's runs, under the measured "
        "cost of its own runs. Intervals as in Table 1.",
    )  # fmt: skip


def allocation_frame(analysis: Analysis) -> pd.DataFrame:
    """Table 2 in numbers."""
    rows = [
        (axis, name, what, e.value, *e.model, *e.robust)
        for axis, arms in analysis.arms.items()
        for name, arm in arms.items()
        for what, e in exponents(arm).items()
    ]
    columns = ["axis", "arm", "exponent", "estimate", "model_low", "model_high", "robust_low", "robust_high"]
    return pd.DataFrame(rows, columns=columns)


def ranking_table(analysis: Analysis) -> Table:
    """Table 3: which arm is ahead at which cost, and how sure that is."""
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
        3, "Arms by compute-optimal loss", ["axis", "cost", "best first: loss [95 %, robust] (P(best))"], rows,
        "At the lowest, middle and highest cost that the runs of all arms cover. P(best): share of the resamples in "
        "which the arm has the lowest loss.",
    )  # fmt: skip


def comparison_table(analysis: Analysis) -> Table:
    """Table 4: what arms are worth in each other's compute, and where their lines cross."""
    rows = []
    for axis, pairs in analysis.comparisons.items():
        for pair in pairs:
            if isinstance(pair, Comparison):
                top = pair.multipliers[-1]
                limits = interval_text(top.compute_model)
                rows.append(
                    [
                        AXES[axis].label,
                        f"`{pair.arm}` against `{pair.reference}`",
                        f"{top.C:.3g} {AXES[axis].unit}" + (" *" if top.extrapolated else ""),
                        f"{factor_text(top.compute)} {limits}",
                        "–"
                        if math.isnan(top.probability_better)
                        else f"{100 * top.probability_better:.0f} %",
                        pair.crossing.describe(),
                    ]
                )
            else:
                rows.append([AXES[axis].label, pair, "–", "–", "–", "–"])
    return Table(
        4, "What arms are worth against each other, and where their lines cross",
        ["axis", "pair", "at", "compute the second needs for the first's loss", "P(first ahead)", "crossing"], rows,
        "Factors with robust, then model-based 95 % intervals. A star: the second's equivalent lies beyond its "
        "runs. Crossings are searched from a tenth of the lowest to ten times the highest cost.",
    )  # fmt: skip


def minima_table(analysis: Analysis) -> Table:
    """Table 17: optima of the runs at equal cost, and losses relative to the equivariant arm's, without a law."""
    rows = []
    for axis, minima in analysis.minima.items():
        reference = minima.get(EQUIVARIANT)
        for cost in sorted({float(c) for m in minima.values() for c in m.cost}):
            for name, m in minima.items():
                if cost not in m.cost:
                    continue
                at = weights_at(m, np.array([cost]), np.ones(1))
                size = combine([(m, m.N, at)]).exp()
                ratio = saved = "–"
                if reference is not None and m is not reference:
                    saved = _bound_or_cell(compute_multiplier(reference, m, cost).exp())
                    if cost in reference.cost:
                        ratio = _cell(loss_ratio(reference, m, cost).exp())
                rows.append(
                    [
                        AXES[axis].label,
                        f"{cost:.3g} {AXES[axis].unit}",
                        f"`{name}`",
                        _cell(lowest_loss(m, cost).exp()),
                        "at an edge" if math.isnan(size.value) else _cell(size),
                        ratio,
                        saved,
                    ]
                )
    scatter = ", ".join(
        f"`{name}` {100 * m.scatter:.2g} %" for name, m in analysis.minima.get("executed", {}).items()
    )
    return Table(
        17, "Measured optima at equal cost, without a law",
        ["axis", "cost", "arm", "lowest loss", "N_opt", f"loss over that of `{EQUIVARIANT}`",
         f"this cost over what `{EQUIVARIANT}` takes for this loss"], rows,
        "Vertex of a parabola in log N through the log losses of the runs at one cost (approach 2 of Hoffmann et al. "
        "2022), within the sizes that were run. On executed FLOPs these are the budgets; on the other axes runs are "
        "moved along their laws to the nearest of a few costs, residual kept. Intervals: [t of the scatter about all "
        f"parabolas of an arm, on executed FLOPs {scatter}] and [residual bootstrap]. The last column joins the losses "
        f"of `{EQUIVARIANT}` by power laws from one cost to the next; > and < where they don't reach.",
    )  # fmt: skip


def best_runs_table(finished: pd.DataFrame, noise: pd.DataFrame) -> Table:
    """Table 6: best measured loss at each budget: the size with the lowest mean over seeds."""
    cells: dict[tuple[float, str], str] = {}
    for (budget, arm), runs in finished.groupby(["budget", "arm"], sort=False):
        by_size = runs.groupby("N")["loss"].agg(["mean", "size"])
        N = by_size["mean"].idxmin()
        at, n = runs[runs["N"] == N], int(by_size.loc[N, "size"])
        sd = pooled_noise(noise, str(arm))[0]
        seeds = f", {n} seeds" if n > 1 else ""
        error = at["loss"].mean() * sd / math.sqrt(n) if math.isfinite(sd) else math.nan
        spread = f" ± {error:.4f}" if math.isfinite(error) else ""
        test = f" ± {at['loss_se'].mean():.4f}" if at["loss_se"].notna().any() else ""
        cells[budget, str(arm)] = f"{at['loss'].mean():.4f}{spread}{test} (N = {N:.0f}{seeds})"
    names = list(dict.fromkeys(finished["arm"]))
    budgets = sorted(finished["budget"].unique())
    rows = [[f"{b:.3g}", *(cells.get((b, name), "–") for name in names)] for b in budgets]
    seeds_known = len(noise) > 0
    return Table(
        6, "Best measured loss at each budget", ["budget (executed FLOPs)", *(f"`{n}`" for n in names)], rows,
        "Best of the sizes that were run, mean over seeds. ± is "
        + ("first the standard error from seeds, then that " if seeds_known else "one standard error ")
        + "over test scenes, which all runs share.",
    )  # fmt: skip


def noise_table(at_sizes: pd.DataFrame, noise: pd.DataFrame) -> Table:
    """Table 7: scatter between seeds at every size with replicates, and pooled over budgets and sizes."""
    rows = []
    for arm, cells in at_sizes.groupby("arm", sort=False):
        rows += [
            [
                f"`{arm}`",
                f"{r.budget:.3g}",
                f"{r.N:.0f}",
                str(r.seeds),
                f"{100 * r.sd:.2g} %",
                str(r.seeds - 1),
            ]
            for r in cells.itertuples()
        ]
        sd, df = pooled_noise(noise, str(arm))
        rows.append([f"`{arm}`", "all", "", "", f"**{100 * sd:.2g} %**", str(df)])
    return Table(
        7, "Seed noise", ["arm", "budget", "N", "seeds", "standard deviation of the loss", "degrees of freedom"],
        rows, "Of the log loss at equal arm, budget and size; a seed sets initialisation, data order and augmentation.",
    )  # fmt: skip


def edge_table(analysis: Analysis) -> Table:
    """Table 8: where the sizes don't bracket the measured optimum."""
    rows = [
        [
            AXES[e.axis].label,
            f"`{e.arm}`",
            f"{e.budget:.3g}",
            f"the {e.side}, N = {e.N:.0f}",
            f"N ≈ {e.suggested:.2g}",
        ]
        for e in analysis.edges
    ]
    return Table(
        8, "Optima at an edge of the sizes", ["axis", "arm", "budget", "best size", "size to add"], rows,
        "Means over seeds; within a budget, losses are moved along the law to equal cost on the axis. With the best "
        "size at an edge the optimum is not bracketed and rests on the law's form.",
    )  # fmt: skip


def fate(run: pd.Series) -> str:
    """Status of a run that did not finish, with the reason where the table has it."""
    reason = run.get("reason")
    return f"{run['status']}: {reason}" if isinstance(reason, str) and reason else str(run["status"])


def run_rows(study: Study, analysis: Analysis) -> list[dict[str, object]]:
    """Every run of every part with what became of it, for Table 12 and the pages that show runs on hovering."""
    residual: dict[int, float] = {}
    odd: dict[int, float] = {}
    for name, arm in analysis.arms.get("executed", {}).items():
        percent = 100 * np.expm1(arm.fit.residuals)
        residual |= dict(zip(map(int, arm.rows), percent.tolist(), strict=True))  # type: ignore[arg-type]
        odd |= {int(arm.rows[o.index]): o.score for o in analysis.outliers[name]}  # type: ignore[index]
    out: list[dict[str, object]] = []
    for row, run in study.runs.iterrows():
        if run["status"] != "finished":
            became = fate(run)
        elif run["part"] == "compute":
            became = (
                f"not fitted: {analysis.unfitted[run['arm']]}"
                if run["arm"] in analysis.unfitted
                else "fitted"
            )
            became += f", outlier ({odd[row]:+.1f} sd)" if row in odd else ""  # type: ignore[index]
        else:
            became = PARTS[str(run["part"])]
        out.append({"run": run, "fate": became, "residual": residual.get(row)})  # type: ignore[call-overload]
    return out


_RUN_HEADER = [
    "run", "arm", "budget", "seed", "N", "D", "epochs", "loss", "executed FLOPs", "nominal FLOPs", "seconds",
    "off the law", "in the fits?",
]  # fmt: skip


def run_cells(entry: Mapping[str, object]) -> list[str]:
    """Cells of one run in the order of Table 12."""
    run, residual = entry["run"], entry["residual"]
    assert isinstance(run, pd.Series)
    values = [number(run[c], 4) for c in ("N", "D", "epochs")]
    costs = [number(run[axis.column], 3) for axis in AXES.values()]
    off = "–" if not isinstance(residual, float) else f"{residual:+.1f} %"
    return [
        str(run["name"]), str(run["arm"]), f"{run['budget']:.3g}", str(run["seed"]), *values,
        number(run["loss"], 4), *costs, off, str(entry["fate"]).replace("|", "\\|"),
    ]  # fmt: skip


def run_table(study: Study, analysis: Analysis) -> Table:
    """Table 12: every run."""
    rows = [run_cells(entry) for entry in run_rows(study, analysis)]
    return Table(12, "Every run", _RUN_HEADER, rows, "Off the law: observed over fitted loss.")
