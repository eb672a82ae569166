"""``eqscale fit --envelope COLUMN``: a law for each class of a column, and their lower envelope."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eqscale.cli import law_options
from eqscale.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from eqscale.laws.envelope import Envelope


_HEADER = ["parameter", "estimate", "95 % robust"]
_IGNORED = ("figures", "hold_out", "all_intervals", "budget", "replicates")


def run(args: argparse.Namespace, parts: dict[str, pd.DataFrame], sources: dict[str, str], notes: Sequence[str]) -> int:
    """Fit and show the envelope of each group of runs; ``notes`` say what was left out of the table."""
    from eqscale.console import make_console

    _check_options(args)
    found = {label: _fit(args, part, sources[label]) for label, part in parts.items()}
    console = make_console()
    titles = {label: f"{args.by} = {label}" if label else args.runs for label in found}
    shown = {label: _show(console, args, titles[label], envelope) for label, envelope in found.items()}
    law_options.write_groups(args, shown, _HEADER, notes)
    return 0


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that change nothing about an envelope, whose bands are parametric."""
    kind = args.bootstrap.partition(":")[0]
    ignored = [f"--{name.replace('_', '-')}" for name in _IGNORED if getattr(args, name)]
    ignored += [f"--bootstrap {kind}"] if kind not in ("case", "none") else []
    if ignored:
        raise InputError(f"--envelope shows laws of classes; it can't be joined with {', '.join(ignored)}")


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
    console: Any, args: argparse.Namespace, title: str, envelope: Envelope
) -> tuple[dict[str, Any], list[list[str]]]:
    """Print one envelope; its record and the rows of its parameters."""
    import numpy as np
    from rich.markup import escape

    from eqscale.laws.envelope import lower_envelope
    from eqscale.laws.render import interval_text
    from eqscale.laws.uncertainty import percentiles
    from eqscale.numbers import number

    fit, classes = envelope.fit, envelope.classes
    law_options.print_verdicts(console, {title: fit})
    drawn = fit.form.to_natural(envelope.theta, fit.centre)
    limits = {name: [float(v) for v in percentiles(drawn[name])] for name in fit.form.names}
    rows = [[name, number(fit.params[name]), interval_text(limits[name])] for name in fit.form.names]
    console.print(
        f"\n[bold]{escape(title)}[/bold]  {fit.n} runs, a law for each {escape(classes.column)}: {fit.form.formula}"
    )
    law_options.print_table(console, _HEADER, rows)
    for what, test in (("one law for all", envelope.plain_lack_of_fit), ("these laws", envelope.lack_of_fit)):
        if test is not None:
            console.print(f"{what}: {test.describe()}")
    worth = "worth" if envelope.aicc_gain > 0 else "not worth"
    gain = f"AICc {-envelope.aicc_gain:+.3g} against one law"
    console.print(f"the classes of {classes.column} are {worth} their parameters: {gain}", markup=False)
    C = np.array(args.costs) if args.costs else np.geomspace(envelope.C.min(), envelope.C.max(), 5)
    lowest = lower_envelope(envelope, C)
    best = [f"{label} ({100 * share:.0f} %)" for label, share in zip(lowest.best, lowest.share, strict=True)]
    law_options.print_optima(
        console, args.unit, lowest, lowest.bands, before=[(f"best {classes.column}", best)],
        title="lower envelope [95 % of the resamples' own envelopes]",
    )  # fmt: skip
    record = {
        "verdict": fit.verdict, "column": classes.column, "parameters": fit.params, "intervals": limits,
        "runs": {label: int(np.sum(classes.member == g)) for g, label in enumerate(classes.labels)},
        "lack_of_fit": envelope.lack_of_fit, "lack_of_fit_of_one_law": envelope.plain_lack_of_fit,
        "aicc_gain": envelope.aicc_gain, "frontier": lowest,
    }  # fmt: skip
    return record, rows
