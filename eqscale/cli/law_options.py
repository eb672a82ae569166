"""Options and reading that the verbs on run tables share: the table, the law, the arms, the cost axes."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqscale.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from eqscale.laws import Fit
    from eqscale.laws.arms import ArmFit, Options
    from eqscale.laws.envelope import Lowest
    from eqscale.laws.forms import Form
    from eqscale.laws.frontier import Band, Frontier

Column = tuple[str, Sequence[str]]
"""Header and cells of a column of a table."""


def add_verb(subparsers: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    """A verb whose description keeps its line breaks."""
    return subparsers.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_arm_options(parser: argparse.ArgumentParser) -> None:
    """Options of verbs that compare arms."""
    add = parser.add_argument_group("the arms").add_argument
    add("--by", metavar="COLUMN", default="arm", help="column that names the arm (default: arm)")
    add("--axis", metavar="COLUMN", action="append", default=[], help="cost column: FLOPs or seconds; of a study's run "
        "table also executed, nominal or seconds; repeatable (default: C if there is one, else 6ND)")  # fmt: skip


def add_table_options(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """Options that name the run table and its columns."""
    add = parser.add_argument_group("the run table").add_argument
    number = "?" if optional else None
    add("runs", metavar="RUNS", nargs=number, help="a .csv, .tsv, .parquet, .json, .jsonl or .xlsx file, or "
        "mlflow:EXPERIMENT")  # fmt: skip
    add("--map", metavar="ROLE=COLUMN,…", action="append", default=[], help="columns that play the roles N, D, loss, C "
        "(cost: FLOPs or time) and U (unique tokens) if they have other names, or formulas of columns, such as "
        "C=6*N*D; repeatable")  # fmt: skip
    add("--where", metavar="CONDITION", action="append", default=[], help="keep only these rows: COLUMN=VALUE, "
        "COLUMN!=VALUE, or an order of formulas such as 'D/N>=20' or '1e17<C<1e20'; repeatable: all must "
        "hold")  # fmt: skip
    add("--duplicates", choices=("error", "drop", "keep"), default="error",
        help="what to do with a row that repeats another entirely (default: %(default)s)")  # fmt: skip
    add("--best-of", metavar="COLUMN,…", help="columns of a sweep, such as learning_rate: of runs that agree in the "
        "law's columns and arm, keep those with the setting of lowest mean loss")  # fmt: skip
    add("--history", metavar="COLUMN", help="the table has one row a step, and this column names the run: keep each "
        "run's last step with a loss (a run_id that repeats is taken for that)")  # fmt: skip
    add("--step", metavar="COLUMN", help="column of a history with the step (default: step, _step, global_step, …)")
    add("--steps", metavar="STEP,…", help="steps of a history to keep instead of the last")


def add_law_options(parser: argparse.ArgumentParser) -> None:
    """Options of the form, the loss and the bootstrap."""
    add = parser.add_argument_group("the law").add_argument
    add("--form", default="chinchilla", metavar="FORM", help="formula by name (default: %(default)s); docs/laws.md "
        "shows them, an unknown name lists them")  # fmt: skip
    add("--form-file", action="append", default=[], metavar="FILE.py", help="Python file that registers a form")
    add("--loss-fn", default="log-huber", metavar="NAME", help="log-huber (default), log-lsq or lad (least absolute "
        "deviations) of the log loss; huber or lsq of the loss itself")  # fmt: skip
    add(
        "--delta",
        type=float,
        default=1e-3,
        help="threshold of log-huber, or of huber in units of the loss (default: %(default)s)",
    )
    add("--fix", metavar="NAME=VALUE,…", action="append", default=[], help="hold parameters, e.g. E=0")
    add("--weights", metavar="COLUMN", help="weight of each run")
    add("--replicates", metavar="COLUMN", help="runs of equal value are replicates of one point (default: runs that "
        "agree in all columns of the design)")  # fmt: skip
    add = parser.add_argument_group("uncertainty").add_argument
    add("--bootstrap", default="case", metavar="KIND", help="case (default), residual, wild, cluster:COLUMN (whole "
        "groups, e.g. cluster:budget) or none")  # fmt: skip
    add("--resamples", type=int, default=1000, metavar="K", help="refits of the bootstrap (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")


def add_interval_option(parser: argparse.ArgumentParser) -> None:
    """Options of verbs that print intervals."""
    parser.add_argument(
        "--all-intervals", action="store_true",
        help="beside the recommended interval (profile limits) print the model-based and the robust one",
    )  # fmt: skip


def add_output_options(parser: argparse.ArgumentParser, tables: str) -> None:
    """Options of what is written; ``tables`` says which tables."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--latex", type=Path, metavar="FILE", help=f"write {tables} as LaTeX")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help=f"write {tables} as Markdown")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw the figures into this folder")


def write_outputs(args: argparse.Namespace, record: Any, markdown: str, latex: str) -> None:
    """Write what ``add_output_options`` offers, except for the figures."""
    from eqscale.laws.render import write_json
    from eqscale.storage import write_atomically

    if args.json:
        write_json(args.json, record)
    for path, text in ((args.markdown, markdown), (args.latex, latex)):
        if path:
            write_atomically(path, text.encode())


def write_groups(
    args: argparse.Namespace, found: Mapping[str, tuple[dict[str, Any], list[list[str]]]], header: list[str],
    notes: Sequence[str],
) -> None:  # fmt: skip
    """Write the record and the table rows of each group (see ``groups``), with the notes on the table of runs."""
    from eqscale.laws.render import latex_table, markdown_table

    records = {label: record for label, (record, _) in found.items()}
    rows = [[label, *row] if label else row for label, (_, own) in found.items() for row in own]
    header = ([args.by] if args.by else []) + header
    record: dict[str, Any] = {"by": args.by, "groups": records} if args.by else records[""]
    record["notes"] = notes
    write_outputs(args, record, markdown_table(header, rows), latex_table(header, rows))


def parse_fixed(entries: list[str]) -> dict[str, float]:
    """``--fix`` as values by name; raises InputError for what is not NAME=NUMBER."""
    out: dict[str, float] = {}
    for entry in filter(str.strip, ",".join(entries).split(",")):
        name, _, value = entry.partition("=")
        try:
            out[name.strip()] = float(value)
        except ValueError:
            raise InputError(f"--fix: bad entry {entry!r}; write NAME=NUMBER, e.g. E=0") from None
    return out


def parse_costs(text: str | None, unit: str = "FLOPs") -> list[float]:
    """``--at`` as costs in a unit (see ``cost_unit``); raises InputError for what is not positive."""
    from eqscale.laws.quantities import parse_quantity

    return [parse_quantity(v, unit, "--at") for v in (text or "").split(",") if v.strip()]


def chosen_form(args: argparse.Namespace) -> Form:
    """The form that was asked for; raises InputError for an unknown one or a bad file."""
    from eqscale.laws.forms import FORMS, get_form
    from eqscale.plugins import load_files

    load_files(args.form_file, "form", lambda: FORMS)
    return get_form(args.form)


def read_table(args: argparse.Namespace, extra: Sequence[str | None] = ()) -> pd.DataFrame:
    """The run table with the columns that the verb needs; raises InputError as ``read_runs`` does.

    What was left out goes to the standard error, so that the first line of the answer stays the verdict.
    """
    from eqscale.laws.quantities import parse_quantity
    from eqscale.laws.table import History, best_of_sweep, parse_map, read_runs, require_columns

    if args.seed < 0:
        raise InputError(f"--seed {args.seed}: a seed is not negative")
    if getattr(args, "figures", None):
        importlib.import_module("matplotlib")  # a light install lacks it: say so before anything is fitted
    required = (*chosen_form(args).columns, "loss")
    history = None
    if args.history or args.step or args.steps:
        steps = tuple(parse_quantity(v, "", "--steps") for v in (args.steps or "").split(",") if v.strip())
        history = History(args.history or "run_id", args.step, steps)
    frame = read_runs(
        args.runs, parse_map(args.map, required), required=required, where=args.where, history=history,
        duplicates=args.duplicates, weights=args.weights,
    )  # fmt: skip
    require_columns(frame, (*extra, cluster_column(args), args.replicates), args.runs)
    if args.best_of:
        arm = [args.by] if args.by in frame.columns else []
        sweep = [name.strip() for name in args.best_of.split(",") if name.strip()]
        frame = best_of_sweep(frame, sweep, [*required[:-1], *arm], args.runs)
    for note in frame.attrs["notes"]:
        print(f"note: {note}", file=sys.stderr)
    return frame


def read_arm_table(args: argparse.Namespace) -> pd.DataFrame:
    """The run table with its column of arms; a table without a column ``arm`` is one arm."""
    if args.by != "arm":
        return read_table(args, (args.by,))
    frame = read_table(args)
    return frame if "arm" in frame.columns else frame.assign(arm="all runs")


def cluster_column(args: argparse.Namespace) -> str | None:
    """Column of ``--bootstrap cluster:COLUMN``, None for other kinds."""
    kind, _, column = args.bootstrap.partition(":")
    if kind == "cluster" and not column:
        raise InputError("--bootstrap cluster needs a column: cluster:COLUMN, e.g. cluster:budget")
    return column if kind == "cluster" else None


def groups(frame: pd.DataFrame, by: str | None, source: str) -> dict[str, pd.DataFrame]:
    """Tables by group label; one group with an empty label without ``--by``."""
    if by is None:
        return {"": frame}
    labels, empty = frame[by].astype(str), frame[by].isna().to_numpy()
    if empty.any():
        raise InputError(f"{source}: row {empty.argmax() + 1}, column {by!r}: empty group")
    return {label: frame[labels == label].reset_index(drop=True) for label in sorted(labels.unique())}


def print_table(console: Any, header: list[str], rows: list[list[str]], title: str = "") -> None:
    """A table of plain text on the console."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(*header, title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)


def print_optima(
    console: Any, unit: str, found: Frontier | Lowest, bands: Mapping[str, Band], *,
    before: Sequence[Column] = (), after: Sequence[Column] = (), title: str = "",
) -> None:  # fmt: skip
    """Compute-optimal N, D and loss at each cost, with their ``bands`` and further columns; * marks extrapolation."""
    from eqscale.laws.render import with_interval
    from eqscale.numbers import number

    costs = [number(c, 3) + ("" if inside else " *") for c, inside in zip(found.C, found.inside, strict=True)]
    optima = []
    for label, name in (("N_opt, parameters", "N"), ("D_opt, tokens", "D"), ("L_opt", "loss")):
        limited = zip(getattr(found, name), bands[name].low, bands[name].high, strict=True)
        optima.append((label, [with_interval(*v, 4) for v in limited]))
    columns = [(f"C, {unit}" if unit else "C", costs), *before, *optima, *after]
    header, cells = zip(*columns, strict=True)
    print_table(console, list(header), [list(row) for row in zip(*cells, strict=True)], title)
    if not found.inside.all():
        console.print("* beyond the cost of the runs: an extrapolation")


def print_verdicts(console: Any, fits: Mapping[str, Fit], titled: bool = False) -> None:
    """The verdict of each law that an answer rests on: the first lines of the answer, each with the law's name where
    there are several or ``titled``."""
    from rich.markup import escape

    for name, fit in fits.items():
        colour = "green" if fit.verdict.good else "yellow"
        title = f"{name}: " if titled or len(fits) > 1 else ""
        verdict = f"[{colour}]{escape(str(fit.verdict))}[/{colour}]"
        console.print(f"{escape(title)}{fit.n} runs, verdict: {verdict}", soft_wrap=True)


def print_cost_warnings(console: Any, arms: Mapping[str, ArmFit]) -> None:
    """What is wrong with the cost of each arm's runs, if anything is."""
    for name, arm in arms.items():
        if arm.cost.warning:
            title = f"{name}: " if len(arms) > 1 else ""
            console.print(f"warning: {title}{arm.cost.warning}", style="yellow", markup=False)


def law_choices(args: argparse.Namespace) -> Options:
    """What ``add_law_options`` asks for; raises InputError for values that make no sense."""
    from eqscale.laws.arms import Options

    chosen_form(args)
    kind = args.bootstrap.partition(":")[0]
    return Options(
        form=args.form, loss_fn=args.loss_fn, delta=args.delta, fix=parse_fixed(args.fix), weights=args.weights,
        kind=kind, cluster=cluster_column(args), replicates=args.replicates,
        resamples=0 if kind == "none" else args.resamples, seed=args.seed,
    )  # fmt: skip


def read_arms(args: argparse.Namespace, axis: str | None, frame: pd.DataFrame) -> dict[str, ArmFit]:
    """One law an arm, with bands, on one cost axis (None: 6ND)."""
    from eqscale.laws.arms import fit_arms

    if axis is not None:
        frame = frame.assign(**{axis: axis_costs(args, axis, frame)})
    return fit_arms(frame, by=args.by, cost=axis, where=args.runs, **resampled_choices(args))


def resampled_choices(args: argparse.Namespace) -> dict[str, Any]:
    """``law_choices`` by name, for laws with bands; raises InputError without a bootstrap, too."""
    if args.bootstrap == "none":
        raise InputError("--bootstrap none: bands over C need resamples; choose case, residual, wild or cluster:COLUMN")
    return asdict(law_choices(args))


def study_axis(args: argparse.Namespace) -> str:
    """The compute axis that is asked for of a study, by its name or its column."""
    from eqscale.laws.axes import AXES

    if len(args.axis) > 1:
        raise InputError("one --axis at a time")
    asked = args.axis[0] if args.axis else "executed"
    for name, axis in AXES.items():
        if asked in (name, axis.column):
            return name
    raise InputError(f"--axis {asked!r}: choose one of {', '.join(AXES)}")


def axis_costs(args: argparse.Namespace, axis: str | None, frame: pd.DataFrame) -> np.ndarray:
    """Cost of each run on an axis (None: 6ND), NaN where its cell is empty.

    Raises:
        InputError: a value that is no positive number, or none at all.
    """
    from eqscale.laws.table import positive

    if axis is None:
        return (6 * frame["N"] * frame["D"]).to_numpy()
    costs = positive(frame[axis], axis, args.runs, empty=True)
    if not (costs > 0).any():
        raise InputError(f"{args.runs}: column {axis!r} is empty")
    return costs


def cost_axes(args: argparse.Namespace, frame: pd.DataFrame) -> list[str | None]:
    """Cost columns asked for; C if the table has one, 6ND (None) if not."""
    from eqscale.laws.axes import AXES
    from eqscale.laws.table import require_columns

    # in a run table of this project an axis also goes by its own name
    found = [AXES[axis].column if axis in AXES and axis not in frame.columns else axis for axis in args.axis]
    require_columns(frame, found, args.runs)
    return list(dict.fromkeys(found)) or ["C" if "C" in frame.columns else None]


def one_axis(args: argparse.Namespace, frame: pd.DataFrame) -> str | None:
    """The cost axis of a verb that takes one; raises InputError for several."""
    axes = cost_axes(args, frame)
    if len(axes) > 1:
        raise InputError("one --axis at a time")
    return axes[0]


def cost_unit(args: argparse.Namespace, axis: str | None, frame: pd.DataFrame) -> str:
    """Unit of a cost axis (None: 6ND): ``FLOPs``, a unit of time, or nothing where nothing tells it.

    The name of the column tells it, or of the one that ``--map`` calls C; else costs near 6ND are FLOPs.
    """
    from eqscale.laws.quantities import column_unit, looks_like_flops
    from eqscale.laws.table import parse_map

    if axis is None:
        return "FLOPs"
    name = parse_map(args.map, frame.columns).get(axis, axis)
    if unit := column_unit(name) if name.isidentifier() else "":
        return unit
    return "FLOPs" if looks_like_flops(frame["N"], frame["D"], axis_costs(args, axis, frame)) else ""


def parse_cost(args: argparse.Namespace, option: str, text: str, axis: str | None, frame: pd.DataFrame) -> float:
    """A cost as an option gives it, in the unit of an axis; raises InputError for what is no positive cost."""
    from eqscale.laws.quantities import parse_quantity

    return parse_quantity(text, cost_unit(args, axis, frame), option)


def draw_figures(console: Any, folder: Path, arms: dict[str, ArmFit], unit: str = "C") -> None:
    """Write the figures of some laws into a folder, which is made."""
    from eqscale.laws import plots

    if not arms:
        return
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "loss_against_compute": plots.loss_against_compute(arms, axis=unit),
        "surface": plots.surface_panels(arms),
        "optimal_size": plots.optimal_size(arms, axis=unit),
        "optimal_tokens": plots.optimal_tokens(arms, axis=unit),
        "residuals": plots.residual_panels(arms, axis=unit),
    }
    budgets = {b for arm in arms.values() for b in arm.budget}
    if len(budgets) <= 12:
        figures["isoflop"] = plots.isoflop_panels(arms, unit="")
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")
    console.print(f"figures: {folder}")
