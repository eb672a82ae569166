"""``eqscale fit``, ``eqscale compare`` and ``eqscale plan``: scaling laws of any run table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqscale.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from eqscale.laws import Bootstrap, Fit
    from eqscale.laws.arms import ArmFit

_FIT_HELP = """\
Fit a scaling law to a table with one row a run and print its coefficients with two kinds of intervals, the
compute-optimal frontier, and a verdict on whether the runs determine the law at all.

examples:
  eqscale fit runs.csv
  eqscale fit runs.parquet --where status=finished --by arm --map C=flops_executed
  eqscale fit runs.csv --map N=params,D=tokens,loss=val_loss --form gamma --json fit.json
  eqscale fit runs.csv --fix E=0 --bootstrap cluster:budget --resamples 4000
  eqscale fit mlflow:my-experiment --map N=params,D=tokens,loss=test_loss
"""


_COMPARE_HELP = """\
Compare the arms of a study: which parameters of the law they share (F test, bootstrap likelihood ratio,
AICc weights), how many times the compute, data or parameters the reference needs to reach the same loss,
with bands over C, the probability that an arm is ahead, and where the two lines cross.

examples:
  eqscale compare runs.csv --map C=flops_executed --reference transformer
  eqscale compare runs.parquet --where status=finished --axis flops_executed --axis seconds --json cmp.json
"""

_PLAN_HELP = """\
With --compute: which arm to train with that much compute, how large and how long.
With --question and --spend: which further runs would most reduce the uncertainty of an answer, per unit of
cost, and what standard error to expect after each.

examples:
  eqscale plan --from results/cpu --compute 1e14 --axis seconds
  eqscale plan runs.csv --arms gatr,transformer --question gap@1e15 --spend 1e14
  eqscale plan runs.csv --arms gatr --question a --spend 1e14
"""


def register(subparsers: Any) -> None:
    """Add the verbs of this group."""
    parser = subparsers.add_parser(
        "fit",
        help="fit a scaling law to any table with N, D and loss",
        description=_FIT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_table_options(parser)
    _add_law_options(parser)
    parser.add_argument("--by", metavar="COLUMN", help="fit each group of this column separately, e.g. arm")
    parser.add_argument(
        "--budget",
        metavar="COLUMN",
        help="column with the nominal budget of each run (default: grouped from the costs)",
    )
    parser.add_argument(
        "--hold-out",
        type=int,
        default=0,
        metavar="K",
        help="also predict the K largest budgets from the others",
    )
    parser.add_argument("--profile", action="store_true", help="also print profile likelihood intervals")
    parser.add_argument(
        "--at", metavar="C,…", help="also print the optimum at these costs (default: the range of the runs)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--latex", type=Path, metavar="FILE", help="write the coefficients as a LaTeX table")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the same as a Markdown table")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw the figures into this folder")
    parser.set_defaults(run=_run_fit)

    parser = subparsers.add_parser(
        "compare",
        help="compare the scaling laws of the arms in a table",
        description=_COMPARE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_table_options(parser)
    _add_law_options(parser)
    _add_arm_options(parser)
    parser.add_argument(
        "--reference", metavar="ARM", help="the arm others are measured in (default: the first)"
    )
    parser.add_argument(
        "--at", metavar="C,…", help="costs to compare at (default: five over the range all arms share)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--latex", type=Path, metavar="FILE", help="write the tables as LaTeX")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw the figures into this folder")
    parser.set_defaults(run=_run_compare)

    parser = subparsers.add_parser(
        "plan",
        help="what to train with a given cost, or which runs would answer a question best",
        description=_PLAN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_table_options(parser, optional=True)
    _add_law_options(parser)
    _add_arm_options(parser)
    parser.add_argument(
        "--from",
        dest="study",
        type=Path,
        metavar="DIR",
        help="a study's folder: its runs.parquet or runs.csv",
    )
    parser.add_argument("--compute", type=float, metavar="C", help="advise what to train with this cost")
    parser.add_argument(
        "--question",
        metavar="Q",
        help="plan runs for: alpha, beta, E, a, size@C, loss@C (one arm), gap@C or crossing (two arms)",
    )
    parser.add_argument("--arms", metavar="ARM,…", help="the arms in question (default: all)")
    parser.add_argument("--spend", type=float, metavar="C", help="total cost of the new runs")
    parser.add_argument("--most", type=float, metavar="C", help="highest cost of one new run")
    parser.add_argument("--runs-planned", type=int, default=10, metavar="K", help="most runs (default: 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    parser.set_defaults(run=_run_plan)


def _add_arm_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the arms")
    group.add_argument(
        "--by", metavar="COLUMN", default="arm", help="column that names the arm (default: arm)"
    )
    group.add_argument(
        "--axis",
        metavar="COLUMN",
        action="append",
        default=[],
        help="cost column: FLOPs or seconds; repeatable (default: C if there is one, else 6ND)",
    )


def _add_table_options(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    group = parser.add_argument_group("the run table")
    group.add_argument(
        "runs",
        metavar="RUNS",
        nargs="?" if optional else None,
        help="a .csv or .parquet file, or mlflow:EXPERIMENT",
    )
    group.add_argument(
        "--map",
        metavar="ROLE=COLUMN,…",
        help="columns that play the roles N, D, loss, C (cost: FLOPs or seconds) and U (unique tokens) "
        "if they have other names",
    )
    group.add_argument(
        "--where",
        metavar="COLUMN=VALUE",
        action="append",
        default=[],
        help="keep only these rows; repeatable",
    )
    group.add_argument(
        "--duplicates",
        choices=("error", "drop", "keep"),
        default="error",
        help="what to do with a row that repeats another entirely (default: %(default)s)",
    )


def _add_law_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the law")
    group.add_argument(
        "--form",
        default="chinchilla",
        metavar="FORM",
        help="chinchilla: E + A/N^alpha + B/D^beta (default); gamma: E + (A/N^alpha + B/D^beta)^gamma; "
        "repetition: D counts for less when repeated (needs U); power:C, power:D, power:N: one variable",
    )
    group.add_argument(
        "--loss-fn",
        default="log-huber",
        metavar="NAME",
        help="log-huber (default), log-lsq, lsq (residuals of the loss itself) or lad (least absolute "
        "deviations of the log loss)",
    )
    group.add_argument(
        "--delta", type=float, default=1e-3, help="threshold of log-huber (default: %(default)s)"
    )
    group.add_argument(
        "--fix", metavar="NAME=VALUE,…", action="append", default=[], help="hold parameters, e.g. E=0"
    )
    group.add_argument("--weights", metavar="COLUMN", help="weight of each run")
    group = parser.add_argument_group("uncertainty")
    group.add_argument(
        "--bootstrap",
        default="case",
        metavar="KIND",
        help="case (default), residual, wild, cluster:COLUMN (whole groups, e.g. cluster:budget) or none",
    )
    group.add_argument(
        "--resamples",
        type=int,
        default=1000,
        metavar="K",
        help="refits of the bootstrap (default: %(default)s)",
    )
    group.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")


def _parse_fixed(entries: list[str]) -> dict[str, float]:
    out: dict[str, float] = {}
    for entry in ",".join(entries).split(","):
        if not entry.strip():
            continue
        name, sep, value = (part.strip() for part in entry.partition("="))
        try:
            out[name] = float(value)
        except ValueError:
            sep = ""
        if not sep:
            raise InputError(f"--fix: bad entry {entry!r}; write NAME=NUMBER, e.g. E=0")
    return out


def _parse_costs(text: str | None) -> list[float]:
    try:
        costs = [float(v) for v in (text or "").split(",") if v.strip()]
    except ValueError:
        raise InputError(f"--at: {text!r} is not a list of numbers such as 1e18,1e21") from None
    if any(not 0 < v < float("inf") for v in costs):
        raise InputError(f"--at: every cost must be positive and finite, not {text!r}")
    return costs


def _read(args: argparse.Namespace, extra: tuple[str, ...] = ()) -> pd.DataFrame:
    from eqscale.laws.fit import resolve_form
    from eqscale.laws.table import parse_map, parse_where, read_runs

    required = (*resolve_form(args.form).columns, "loss")
    frame = read_runs(
        args.runs,
        parse_map(args.map),
        required=required,
        where=parse_where(args.where),
        duplicates=args.duplicates,
    )
    for column in filter(None, (*extra, args.weights, _cluster_column(args))):
        if column not in frame.columns:
            raise InputError(
                f"{args.runs}: no column {column!r}; columns: {', '.join(map(str, frame.columns))}"
            )
    return frame


def _cluster_column(args: argparse.Namespace) -> str | None:
    kind, _, column = args.bootstrap.partition(":")
    if kind == "cluster" and not column:
        raise InputError("--bootstrap cluster needs a column: cluster:COLUMN, e.g. cluster:budget")
    return column if kind == "cluster" else None


def _groups(frame: pd.DataFrame, by: str | None, source: str) -> dict[str, pd.DataFrame]:
    """Tables by group label; one group with an empty label without ``--by``."""
    if by is None:
        return {"": frame}
    labels = frame[by].astype(str)
    for i in (frame[by].isna()).to_numpy().nonzero()[0]:
        raise InputError(f"{source}: row {i + 1}, column {by!r}: empty group")
    return {label: frame[labels == label].reset_index(drop=True) for label in sorted(labels.unique())}


def _fit_group(args: argparse.Namespace, frame: pd.DataFrame, where: str) -> tuple[Fit, Bootstrap | None]:
    from eqscale.laws import bootstrap, fit

    columns = {c: frame[c] for c in ("N", "D", "U", "C") if c in frame.columns}
    found = fit(
        loss=frame["loss"],
        form=args.form,
        loss_fn=args.loss_fn,
        delta=args.delta,
        fix=_parse_fixed(args.fix),
        weights=frame[args.weights] if args.weights else None,
        where=where,
        **columns,
    )
    if args.bootstrap == "none":
        return found, None
    cluster = _cluster_column(args)
    boot = bootstrap(
        found,
        args.bootstrap.partition(":")[0],
        resamples=args.resamples,
        seed=args.seed,
        clusters=frame[cluster].to_numpy() if cluster else None,
    )
    return found, boot


def _table(console: Any, header: list[str], rows: list[list[str]], title: str = "") -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(*header, title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)


def _run_fit(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.markup import escape

    from eqscale.laws import disagreement, intervals
    from eqscale.laws.render import (
        COEFFICIENT_HEADER,
        check_folder,
        check_writable,
        coefficient_rows,
        fit_record,
        latex_table,
        markdown_table,
        write_json,
        write_text,
    )

    check_writable(args.json, args.latex, args.markdown)
    check_folder(args.figures)
    at = _parse_costs(args.at)
    frame = _read(args, tuple(filter(None, (args.by, args.budget))))
    console = Console()
    records, rows, arms = {}, [], {}
    for label, group in _groups(frame, args.by, args.runs).items():
        name = f"{args.by} = {label}" if label else ""
        found, boot = _fit_group(args, group, f"{args.runs}, {name}" if name else args.runs)
        limits = intervals(found, boot)
        record = fit_record(found, limits, boot)
        console.print(f"\n[bold]{escape(name or args.runs)}[/bold]  {found.n} runs, L = {found.form.formula}")
        _table(console, COEFFICIENT_HEADER, coefficient_rows(limits))
        rows += [[label, *row] if label else row for row in coefficient_rows(limits)]
        colour = "green" if found.verdict == "converged" else "yellow"
        console.print(f"verdict: [{colour}]{escape(found.verdict)}[/{colour}]", highlight=False)
        console.print(
            f"objective ({found.loss.kind}, summed): {found.objective:.12g}; gradient "
            f"{found.certificate.gradient:.0e}, {found.certificate.basins} basin(s) from "
            f"{found.certificate.starts} start(s), condition {found.certificate.condition:.0f}",
            highlight=False,
        )
        if warning := disagreement(limits):
            console.print(f"[yellow]warning:[/yellow] {warning}", highlight=False)
        if args.profile:
            record["profile"] = _print_profile(console, found)
        record |= _print_checks(console, args, found, group)
        if {"N", "D"} <= set(found.form.columns):
            arm = _arm_of(args, label, found, boot, group)
            arms[label or "law"] = arm
            record["frontier"] = _print_frontier(console, arm, at)
        records[label] = record
    if args.json:
        write_json(args.json, {"by": args.by, "groups": records} if args.by else records[""])
    header = ([args.by] if args.by else []) + COEFFICIENT_HEADER
    if args.markdown:
        write_text(args.markdown, markdown_table(header, rows))
    if args.latex:
        write_text(args.latex, latex_table(header, rows))
    if args.figures:
        _draw(console, args.figures, arms)
    return 0


def _arm_of(
    args: argparse.Namespace, label: str, fit: Fit, boot: Bootstrap | None, frame: pd.DataFrame
) -> ArmFit:
    """The group as an arm: its own C where the table has one, 6ND otherwise."""
    from eqscale.laws import fit_cost, nd_cost
    from eqscale.laws.arms import ArmFit, group_budgets

    own = "C" in frame.columns
    cost = fit_cost(frame["N"], frame["D"], frame["C"]) if own else nd_cost()
    spent = (frame["C"] if own else 6 * frame["N"] * frame["D"]).to_numpy(float)
    budget = _budgets(frame, args.budget) if args.budget else group_budgets(spent)
    return ArmFit(label or "law", fit, boot, cost, spent, budget)


def _budgets(frame: pd.DataFrame, column: str) -> Any:
    from eqscale.laws.table import positive_column

    return positive_column(frame, column, "budgets")


def _print_profile(console: Any, fit: Fit) -> dict[str, list[float]]:
    from eqscale.laws.render import interval_text
    from eqscale.laws.validate import profile_interval

    free = [n for n in fit.form.names if n not in fit.fixed]
    found = {n: list(profile_interval(fit, n)) for n in free}
    _table(
        console, ["parameter", "95 % profile likelihood"], [[n, interval_text(v)] for n, v in found.items()]
    )
    return found


def _print_checks(console: Any, args: argparse.Namespace, fit: Fit, frame: pd.DataFrame) -> dict[str, Any]:
    """Outliers, lack of fit, hold-outs and the classical approaches, as far as the runs allow."""
    from eqscale.laws.render import number, plain
    from eqscale.laws.validate import hold_out_top, lack_of_fit, leave_one_budget_out, outliers

    record: dict[str, Any] = {}
    odd = outliers(fit)
    record["outliers"] = plain(odd)
    if odd:
        shown = ", ".join(f"run {o.index + 1} ({100 * o.residual:+.1f} %)" for o in odd[:8])
        console.print(f"outliers: {shown}{', …' if len(odd) > 8 else ''}", highlight=False)
    test = lack_of_fit(fit)
    record["lack_of_fit"] = plain(test)
    if test:
        console.print(f"replicates: {test.describe()}", highlight=False)
    if args.hold_out:
        if not {"N", "D"} <= set(fit.form.columns):
            raise InputError("--hold-out needs a law in N and D")
        budget = _arm_of(args, "", fit, None, frame).budget
        held = [hold_out_top(fit, budget, k) for k in range(1, args.hold_out + 1)]
        each = leave_one_budget_out(fit, budget)
        rows = [
            [what, number(h.budgets[0], 3), str(len(h.observed)), f"{100 * h.median_error:.2f} %",
             f"{100 * h.bias:+.2f} %", f"{100 * h.covered:.0f} %"]
            for what, group in (("top", held), ("one out", each))
            for h in group
        ]  # fmt: skip
        header = ["held out", "from C", "runs", "median error", "bias", "within 95 %"]
        _table(console, header, rows, "predicted from the other budgets")
        record["hold_out"] = [{**plain(h), "median_error": h.median_error, "bias": h.bias} for h in held]
        record["leave_one_budget_out"] = [{**plain(h), "median_error": h.median_error} for h in each]
    return record


def _print_frontier(console: Any, arm: ArmFit, at: list[float]) -> dict[str, Any]:
    import numpy as np

    from eqscale.laws import frontier
    from eqscale.laws.approaches import approach_bias, isoflop_optima
    from eqscale.laws.render import interval_text, number, plain

    C = np.array(at) if at else np.geomspace(arm.C.min(), arm.C.max(), 5)
    best = frontier(arm.fit, C, arm.cost, arm.boot)
    console.print(f"cost: {arm.cost.describe()}", highlight=False)
    rows = [
        [
            number(c, 3) + ("" if best.inside[i] else " *"),
            number(best.N[i]),
            number(best.D[i]),
            number(best.loss[i]),
            *(
                interval_text((band["loss"].low[i], band["loss"].high[i])) if band else "–"
                for band in (best.model, best.robust)
            ),
        ]
        for i, c in enumerate(C)
    ]
    _table(console, ["C", "N_opt", "D_opt", "L_opt", "95 % model-based", "95 % robust"], rows)
    if not best.inside.all():
        console.print("* beyond the cost of the runs: an extrapolation")
    record = plain(best)
    record["approaches"] = []
    for approach in (1, 2):
        try:
            found = isoflop_optima(arm.N, arm.D, arm.loss, arm.budget, approach)
            bias = approach_bias(arm.fit, arm.cost, arm.budget, float(C[-1]), approach)
        except InputError:
            continue  # the runs are no isoFLOP grid
        console.print(
            f"approach {approach}: N_opt ∝ C^{found.a:.3f} {interval_text(found.a_interval)} from "
            f"{len(found.budgets)} budgets; its design alone errs by {100 * bias.N_error:+.1f} % in N and "
            f"{100 * bias.D_error:+.1f} % in D at C = {C[-1]:.3g}",
            highlight=False,
        )
        record["approaches"].append({**plain(found), "bias": plain(bias)})
    return record


def _draw(console: Any, folder: Path, arms: dict[str, ArmFit], unit: str = "C") -> None:
    from eqscale.laws import plots

    if not arms:
        return
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "loss_against_compute": plots.loss_against_compute(arms, axis=unit),
        "surface": plots.surface_panels(arms),
        "optimal_size": plots.optimal_size(arms, axis=unit),
        "optimal_tokens": plots.optimal_tokens(arms, axis=unit),
        "residuals": plots.residual_panels(arms),
    }
    budgets = {b for arm in arms.values() for b in arm.budget}
    if len(budgets) <= 12:
        figures["isoflop"] = plots.isoflop_panels(arms, unit="")
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")
    console.print(f"figures: {folder}", highlight=False)


def _read_arms(args: argparse.Namespace, axis: str | None, frame: pd.DataFrame) -> dict[str, ArmFit]:
    from eqscale.laws.arms import fit_arms
    from eqscale.laws.table import positive_column

    if axis is not None:
        frame = frame.assign(**{axis: positive_column(frame, axis, args.runs)})
    if args.bootstrap == "none":
        raise InputError(
            "--bootstrap none: bands over C need resamples; choose case, residual, wild or cluster:COLUMN"
        )
    return fit_arms(
        frame,
        by=args.by,
        cost=axis,
        form=args.form,
        loss_fn=args.loss_fn,
        delta=args.delta,
        fix=_parse_fixed(args.fix),
        weights=args.weights,
        kind=args.bootstrap.partition(":")[0],
        cluster=_cluster_column(args),
        resamples=args.resamples,
        seed=args.seed,
        where=args.runs,
    )


def _axes(args: argparse.Namespace, frame: pd.DataFrame) -> list[str | None]:
    """Cost columns asked for; C if the table has one, 6ND (None) if not."""
    for axis in args.axis:
        if axis not in frame.columns:
            raise InputError(
                f"{args.runs}: no column {axis!r}; columns: {', '.join(map(str, frame.columns))}"
            )
    return list(dict.fromkeys(args.axis)) or (["C"] if "C" in frame.columns else [None])


def _run_compare(args: argparse.Namespace) -> int:
    from rich.console import Console

    from eqscale.laws.compare import compare_arms, compare_hypotheses
    from eqscale.laws.render import (
        HYPOTHESIS_HEADER,
        MULTIPLIER_HEADER,
        check_folder,
        check_writable,
        hypothesis_rows,
        latex_table,
        markdown_table,
        multiplier_rows,
        plain,
        write_json,
        write_text,
    )

    check_writable(args.json, args.markdown, args.latex)
    check_folder(args.figures)
    at = _parse_costs(args.at)
    frame = _read(args, (args.by,))
    axes = _axes(args, frame)
    arms = _read_arms(args, axes[0], frame)
    if len(arms) < 2:
        raise InputError(f"{args.runs}: only one {args.by} ({', '.join(arms)}); a comparison needs two")
    reference = args.reference or next(iter(arms))
    if reference not in arms:
        raise InputError(f"--reference {reference!r}: not one of {', '.join(arms)}")
    console = Console()
    for name, arm in arms.items():
        console.print(f"{name}: {arm.fit.n} runs, {arm.fit.verdict}", highlight=False)
    others = [n for n in arms if n != reference]
    tested = compare_hypotheses(arms, resamples=min(args.resamples, 499), seed=args.seed)
    _table(console, HYPOTHESIS_HEADER, hypothesis_rows(tested), "which parameters do the arms share?")
    texts = [markdown_table(HYPOTHESIS_HEADER, hypothesis_rows(tested))]
    latex = [latex_table(HYPOTHESIS_HEADER, hypothesis_rows(tested), "Parameters shared by the arms.")]
    record: dict[str, Any] = {"reference": reference, "hypotheses": plain(tested), "comparisons": []}
    for axis in axes:
        here = arms if axis == axes[0] else _read_arms(args, axis, frame)
        label = axis or "6ND"
        for name in others:
            found = compare_arms(here[name], here[reference], C=at or None, axis=label)
            title = f"{name} against {reference} on {label}: factors that the reference needs for equal loss"
            _table(console, MULTIPLIER_HEADER, multiplier_rows(found), title)
            console.print(f"crossing: {found.crossing.describe()}", highlight=False)
            texts.append(f"{title}\n\n{markdown_table(MULTIPLIER_HEADER, multiplier_rows(found))}")
            texts.append(f"Crossing: {found.crossing.describe()}.\n")
            latex.append(latex_table(MULTIPLIER_HEADER, multiplier_rows(found), title))
            record["comparisons"].append(plain(found))
        if args.figures:
            folder = args.figures / label if len(axes) > 1 else args.figures
            _draw(console, folder, here, label)
    if args.json:
        write_json(args.json, record)
    if args.markdown:
        write_text(args.markdown, "\n".join(texts))
    if args.latex:
        write_text(args.latex, "\n".join(latex))
    return 0


def _study_table(folder: Path) -> str:
    for name in ("runs.parquet", "runs.csv"):
        if (folder / name).is_file():
            return str(folder / name)
    raise InputError(f"--from {folder}: holds neither runs.parquet nor runs.csv")


def _run_plan(args: argparse.Namespace) -> int:
    from rich.console import Console

    from eqscale.laws.plan import advise, parse_question, plan_runs
    from eqscale.laws.render import check_writable, interval_text, number, plain, write_json

    check_writable(args.json)
    if (args.runs is None) == (args.study is None):
        raise InputError("plan: give either a run table or --from DIR")
    if (args.compute is None) == (args.question is None):
        raise InputError("plan: give either --compute C or --question Q with --spend C")
    if args.question is not None and args.spend is None:
        raise InputError("plan: --question needs --spend C, the total cost of the new runs")
    if args.study is not None:
        args.runs = _study_table(args.study)
        import pandas as pd

        columns = (pd.read_parquet if args.runs.endswith("parquet") else pd.read_csv)(args.runs).columns
        if "status" in columns and not args.where:
            args.where = ["status=finished"]
    frame = _read(args, (args.by,))
    axes = _axes(args, frame)
    if len(axes) > 1:
        raise InputError("plan: one --axis at a time")
    arms = _read_arms(args, axes[0], frame)
    wanted = [a.strip() for a in (args.arms or "").split(",") if a.strip()] or list(arms)
    for name in wanted:
        if name not in arms:
            raise InputError(f"--arms: no {args.by} {name!r}; there are {', '.join(arms)}")
    arms = {name: arms[name] for name in wanted}
    console, label = Console(), axes[0] or "6ND"
    if args.compute is not None:
        found = advise(arms, args.compute)
        rows = [
            [
                a.arm,
                f"{number(a.N)} {interval_text(a.N_band)}",
                number(a.D),
                f"{number(a.loss)} {interval_text(a.loss_band)}",
                "–" if a.probability_best is None else f"{a.probability_best:.2f}",
            ]
            for a in found
        ]
        header = [args.by, "parameters N", "tokens D", "expected loss", "P(best)"]
        _table(console, header, rows, f"{label} = {args.compute:.3g}")
        if any(a.extrapolated for a in found):
            console.print("this cost is beyond the runs: an extrapolation", style="yellow")
        record: Any = {"axis": label, "advice": plain(found)}
    else:
        plan = plan_runs(
            parse_question(args.question, arms),
            arms,
            budget=args.spend,
            most=args.most,
            runs=args.runs_planned,
        )
        console.print(
            f"{plan.question}: {plan.estimate:.4g}, standard error now {plan.se_now:.3g}", highlight=False
        )
        rows = [[r.arm, number(r.N), number(r.D), number(r.C), number(r.expected_se, 3)] for r in plan.runs]
        _table(
            console,
            [args.by, "N", "D", label, "standard error after"],
            rows,
            f"total {label} = {plan.cost:.3g}",
        )
        record = {"axis": label, **plain(plan), "cost": plan.cost}
    if args.json:
        write_json(args.json, record)
    return 0
