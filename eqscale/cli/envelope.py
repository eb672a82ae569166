"""``eqscale fit --envelope COLUMN``: a law for each class of a column, and their lower envelope."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from eqscale.cli import law_options
from eqscale.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from eqscale.laws.envelope import Envelope, Lowest


def run(args: argparse.Namespace, parts: dict[str, pd.DataFrame], sources: dict[str, str]) -> int:
    """Fit and show the envelope of each group of runs."""
    from eqscale.console import make_console
    from eqscale.laws.render import latex_table, markdown_table

    for option in ("figures", "hold_out"):
        if getattr(args, option):
            raise InputError(f"--envelope shows laws of classes; it can't be joined with --{option.replace('_', '-')}")
    found = {label: _fit(args, part, sources[label]) for label, part in parts.items()}
    console = make_console()
    records, rows = {}, []
    for label, envelope in found.items():
        title = f"{args.by} = {label}" if label else args.runs
        records[label], own = _show(console, args, title, envelope, parts[label])
        rows += [[label, *row] if label else row for row in own]
    header = ([args.by] if args.by else []) + ["parameter", "estimate", "95 % robust"]
    record = {"by": args.by, "groups": records} if args.by else records[""]
    law_options.write_outputs(args, record, markdown_table(header, rows), latex_table(header, rows))
    return 0


def _fit(args: argparse.Namespace, runs: pd.DataFrame, where: str) -> Envelope:
    from dataclasses import replace

    from eqscale.laws.arms import fit_table, make_arm
    from eqscale.laws.envelope import fit_envelope, read_classes
    from eqscale.laws.frontier import require_optimum

    require_optimum(law_options.chosen_form(args))
    choices = law_options.law_choices(args)
    if not choices.resamples:
        raise InputError("--bootstrap none: an envelope needs resamples for its bands")
    law = fit_table(runs, replace(choices, resamples=0), where)
    arm = make_arm(where, runs, law, "C" if "C" in runs.columns else None)
    own = len(arm.fit.form.floors) + len(arm.fit.form.powers)
    classes = read_classes(runs[args.envelope], arm.N, arm.D, own + 1, where)
    return fit_envelope(arm.fit, classes, arm.cost, arm.C, resamples=choices.resamples, seed=choices.seed)


def _show(
    console: Any, args: argparse.Namespace, title: str, envelope: Envelope, runs: pd.DataFrame
) -> tuple[dict[str, Any], list[list[str]]]:
    """Print one envelope; its JSON-ready record and the rows of its parameters."""
    import numpy as np
    from rich.markup import escape

    from eqscale.laws.envelope import lower_envelope
    from eqscale.laws.render import interval_text, number, plain
    from eqscale.laws.uncertainty import percentiles

    fit, classes = envelope.fit, envelope.classes
    law_options.print_verdicts(console, {title: fit})
    drawn = fit.form.to_natural(envelope.theta, fit.centre)
    limits = {name: [float(v) for v in percentiles(drawn[name])] for name in fit.form.names}
    rows = [[name, number(fit.params[name]), interval_text(limits[name])] for name in fit.form.names]
    console.print(
        f"\n[bold]{escape(title)}[/bold]  {fit.n} runs, a law for each {escape(classes.column)}: {fit.form.formula}"
    )
    law_options.print_table(console, ["parameter", "estimate", "95 % robust"], rows)
    for what, test in (("one law for all", envelope.plain_lack_of_fit), ("these laws", envelope.lack_of_fit)):
        if test is not None:
            console.print(f"{what}: {test.describe()}")
    worth = "worth" if envelope.aicc_gain > 0 else "not worth"
    gain = f"AICc {-envelope.aicc_gain:+.3g} against one law"
    console.print(f"the classes of {classes.column} are {worth} their parameters: {gain}", markup=False)
    C = np.array(args.costs) if args.costs else np.geomspace(envelope.C.min(), envelope.C.max(), 5)
    lowest = lower_envelope(envelope, C)
    _print_lowest(console, classes.column, lowest, args.unit)
    record = {
        "verdict": str(fit.verdict), "column": classes.column, "parameters": fit.params, "intervals": limits,
        "runs": {label: int(np.sum(classes.member == g)) for g, label in enumerate(classes.labels)},
        "lack_of_fit": envelope.lack_of_fit, "lack_of_fit_of_one_law": envelope.plain_lack_of_fit,
        "aicc_gain": envelope.aicc_gain, "frontier": lowest,
    }  # fmt: skip
    return plain(record), rows


def _print_lowest(console: Any, column: str, lowest: Lowest, unit: str) -> None:
    from eqscale.laws.render import number, with_interval

    rows = []
    for i, c in enumerate(lowest.C):
        best = f"{lowest.best[i]} ({100 * lowest.share[i]:.0f} %)"
        optimum = [
            with_interval(v[i], lowest.bands[name].low[i], lowest.bands[name].high[i], 4)
            for name, v in (("N", lowest.N), ("D", lowest.D), ("loss", lowest.loss))
        ]
        rows.append([number(c, 3) + ("" if lowest.inside[i] else " *"), best, *optimum])
    cost = f"C, {unit}" if unit else "C"
    header = [cost, f"best {column}", "N_opt, parameters", "D_opt, tokens", "L_opt"]
    law_options.print_table(console, header, rows, "lower envelope [95 % of the resamples' own envelopes]")
    if not lowest.inside.all():
        console.print("* beyond the cost of the runs: an extrapolation")
