"""``eqscale compare``: the arms of a run table against each other."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from eqscale.cli import law_options
from eqscale.errors import InputError

_COMPARE_HELP = """\
Compare the arms of a study: which arm is ahead and where, how many times the compute, data or parameters the
reference needs to reach the same loss, where the two lines cross, and which parameters of the law the arms
share (F test, bootstrap likelihood ratio, AICc weights). Who is ahead and a crossing are claimed only where the
runs show it at all costs of a comparison together (95 %); arms that aren't told apart are called equal.

examples:
  eqscale compare runs.csv --map C=flops_executed --reference transformer
  eqscale compare runs.parquet --where status=finished --axis flops_executed --axis seconds --json cmp.json
"""


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = law_options.add_verb(
        subparsers, "compare", "compare the scaling laws of the arms in a table", _COMPARE_HELP
    )
    law_options.add_table_options(parser)
    law_options.add_law_options(parser)
    law_options.add_arm_options(parser)
    parser.add_argument("--reference", metavar="ARM", help="the arm others are measured in (default: the first)")
    law_options.add_interval_option(parser)
    parser.add_argument("--at", metavar="C,…", help="costs to compare at (default: five over the range all arms share)")
    law_options.add_output_options(parser, "the tables")
    parser.set_defaults(run=_run_compare)


class _Output:
    """Tables as they go to the console and are kept for Markdown and LaTeX."""

    def __init__(self) -> None:
        from eqscale.console import make_console

        self.console = make_console()
        self.markdown: list[str] = []
        self.latex: list[str] = []

    def table(self, header: list[str], rows: list[list[str]], title: str, caption: str = "") -> None:
        """Print and keep a table; Markdown has the title only where there is no caption."""
        from eqscale.laws.render import latex_table, markdown_table

        law_options.print_table(self.console, header, rows, title)
        text = markdown_table(header, rows)
        self.markdown.append(text if caption else f"{title}\n\n{text}")
        self.latex.append(latex_table(header, rows, caption or title))


def _run_compare(args: argparse.Namespace) -> int:
    from eqscale.laws.compare import compare_arms
    from eqscale.laws.joint import compare_hypotheses
    from eqscale.laws.render import (
        FURTHER_FACTORS,
        HYPOTHESIS_HEADER,
        MULTIPLIER_HEADER,
        hypothesis_rows,
        multiplier_rows,
    )
    from eqscale.storage import check_outputs

    check_outputs(args.json, args.markdown, args.latex, folder=args.figures)
    frame = law_options.read_table(args, (args.by,))
    axes = law_options.cost_axes(args, frame)
    units = {axis: law_options.cost_unit(args, axis, frame) for axis in axes}
    at = {axis: law_options.parse_costs(args.at, unit) for axis, unit in units.items()}
    reference = args.reference or str(frame[args.by].iloc[0])
    _check_arms(args, frame, axes, reference)
    out = _Output()
    by_axis = {axis: law_options.read_arms(args, axis, frame) for axis in axes}
    found = {
        axis: [
            compare_arms(arms[name], arms[reference], C=at[axis] or None, axis=axis or "6ND", unit=units[axis])
            for name in arms
            if name != reference
        ]
        for axis, arms in by_axis.items()
    }
    for axis in axes:
        for comparison in found[axis]:
            said = comparison.summary if len(axes) == 1 else f"On {comparison.axis}: {comparison.summary}"
            out.console.print(said, style="bold", markup=False, soft_wrap=True)
            out.markdown.append(f"{said}\n")
    arms = by_axis[axes[0]]
    law_options.print_verdicts(out.console, {name: arm.fit for name, arm in arms.items()})
    tested = compare_hypotheses(arms, resamples=min(args.resamples, 499), seed=args.seed)
    rows = hypothesis_rows(tested)
    out.table(HYPOTHESIS_HEADER, rows, "which parameters do the arms share?", "Parameters shared by the arms.")
    for axis, unit in units.items():
        label = axis or "6ND"
        law_options.print_cost_warnings(out.console, by_axis[axis])
        header = [f"C, {unit}" if unit else "C", *MULTIPLIER_HEADER[1:]] + FURTHER_FACTORS * args.all_intervals
        for comparison in found[axis]:
            title = f"{comparison.arm} against {reference} on {label}: factors that the reference needs for equal loss"
            out.table(header, multiplier_rows(comparison, args.all_intervals), title)
            out.console.print(f"crossing: {comparison.crossing.describe()}")
            out.markdown.append(f"Crossing: {comparison.crossing.describe()}.\n")
        if args.figures:
            folder = args.figures / label if len(axes) > 1 else args.figures
            law_options.draw_figures(out.console, folder, by_axis[axis], label)
    record = {
        "verdicts": {name: arm.fit.verdict for name, arm in arms.items()}, "reference": reference,
        "hypotheses": tested, "comparisons": [pair for axis in axes for pair in found[axis]],
    }  # fmt: skip
    law_options.write_outputs(args, record, "\n".join(out.markdown), "\n".join(out.latex))
    return 0


def _check_arms(args: argparse.Namespace, frame: Any, axes: Sequence[str | None], reference: str) -> None:
    """Refuse what can't be compared before anything is fitted."""
    import pandas as pd

    from eqscale.laws.compare import check_overlap

    names = list(law_options.groups(frame, args.by, args.runs))
    if len(names) < 2:
        raise InputError(f"{args.runs}: only one {args.by} ({names[0]}); a comparison needs two")
    if reference not in names:
        raise InputError(f"--reference {reference!r}: not one of {', '.join(names)}")
    for axis in axes:
        spent = pd.Series(law_options.axis_costs(args, axis, frame)).groupby(frame[args.by].astype(str).to_numpy())
        for name in names:
            check_overlap(name, spent.get_group(name), reference, spent.get_group(reference), axis or "6ND")
