"""``eqscale fit``, ``eqscale compare`` and ``eqscale plan``: scaling laws of any run table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqscale.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from eqscale.laws import Bootstrap, CostModel, Fit

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
        "--at", metavar="C,…", help="also print the optimum at these costs (default: the range of the runs)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--latex", type=Path, metavar="FILE", help="write the coefficients as a LaTeX table")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the same as a Markdown table")
    parser.set_defaults(run=_run_fit)


def _add_table_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the run table")
    group.add_argument("runs", metavar="RUNS", help="a .csv or .parquet file, or mlflow:EXPERIMENT")
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


def _cost_of(frame: pd.DataFrame, fit: Fit) -> CostModel | None:
    """The cost model of the runs: their own C where there is one, 6ND otherwise, None without N and D."""
    from eqscale.laws import fit_cost, nd_cost

    if not {"N", "D"} <= set(fit.form.columns):
        return None
    return fit_cost(frame["N"], frame["D"], frame["C"]) if "C" in frame.columns else nd_cost()


def _run_fit(args: argparse.Namespace) -> int:
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from eqscale.laws import disagreement, frontier, intervals
    from eqscale.laws.render import (
        COEFFICIENT_HEADER,
        check_writable,
        coefficient_rows,
        fit_record,
        interval_text,
        latex_table,
        markdown_table,
        number,
        plain,
        write_json,
        write_text,
    )

    check_writable(args.json, args.latex, args.markdown)
    at = _parse_costs(args.at)
    frame = _read(args, (args.by,) if args.by else ())
    console = Console()
    records, rows = {}, []
    for label, group in _groups(frame, args.by, args.runs).items():
        name = f"{args.by} = {label}" if label else ""
        found, boot = _fit_group(args, group, f"{args.runs}, {name}" if name else args.runs)
        limits = intervals(found, boot)
        record = fit_record(found, limits, boot)
        console.print(f"\n[bold]{name or args.runs}[/bold]  {found.n} runs, L = {found.form.formula}")
        table = Table(*COEFFICIENT_HEADER)
        for row in coefficient_rows(limits):
            table.add_row(*row)
        console.print(table)
        rows += [[label, *row] if label else row for row in coefficient_rows(limits)]
        colour = "green" if found.verdict == "converged" else "yellow"
        console.print(f"verdict: [{colour}]{found.verdict}[/{colour}]", highlight=False)
        console.print(
            f"objective ({found.loss.kind}, summed): {found.objective:.12g}; gradient "
            f"{found.certificate.gradient:.0e}, {found.certificate.basins} basin(s) from "
            f"{found.certificate.starts} start(s), condition {found.certificate.condition:.0f}",
            highlight=False,
        )
        if warning := disagreement(limits):
            console.print(f"[yellow]warning:[/yellow] {warning}", highlight=False)
        cost = _cost_of(group, found)
        if cost is not None:
            spent = cost.cost(found.columns["N"], found.columns["D"])
            C = np.array(at) if at else np.geomspace(spent.min(), spent.max(), 5)
            best = frontier(found, C, cost, boot)
            console.print(f"cost: {cost.describe()}", highlight=False)
            table = Table("C", "N_opt", "D_opt", "L_opt", "95 % model-based", "95 % robust")
            for i, c in enumerate(C):
                table.add_row(
                    number(c, 3) + ("" if best.inside[i] else " *"),
                    number(best.N[i]),
                    number(best.D[i]),
                    number(best.loss[i]),
                    *(
                        interval_text((band["loss"].low[i], band["loss"].high[i])) if band else "–"
                        for band in (best.model, best.robust)
                    ),
                )
            console.print(table)
            if not best.inside.all():
                console.print("* beyond the cost of the runs: an extrapolation")
            record["frontier"] = plain(best)
        records[label] = record
    if args.json:
        write_json(args.json, {"by": args.by, "groups": records} if args.by else records[""])
    header = ([args.by] if args.by else []) + COEFFICIENT_HEADER
    if args.markdown:
        write_text(args.markdown, markdown_table(header, rows))
    if args.latex:
        write_text(args.latex, latex_table(header, rows))
    return 0
