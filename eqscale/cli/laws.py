"""``eqscale fit``: the scaling law of any run table."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from eqscale.cli import envelope, law_options
from eqscale.errors import InputError
from eqscale.numbers import number

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from eqscale.laws import Bootstrap, Fit
    from eqscale.laws.arms import ArmFit

_FIT_HELP = """\
Fit a scaling law to a table with one row a run and print a verdict on whether the runs determine the law at all, its
coefficients with their intervals, and the compute-optimal frontier.

examples:
  eqscale fit runs.csv
  eqscale fit runs.parquet --where status=finished --by arm --map C=flops_executed
  eqscale fit runs.csv --map N=params,D=tokens,loss=val_loss --form gamma --json fit.json
  eqscale fit runs.csv --by arm --envelope depth
  eqscale fit runs.csv --fix E=0 --bootstrap cluster:budget --resamples 4000
  eqscale fit mlflow:my-experiment --map N=params,D=tokens,loss=test_loss
"""


def register(subparsers: Any) -> None:
    """Add the verbs of this group."""
    parser = law_options.add_verb(subparsers, "fit", "fit a scaling law to any table with N, D and loss", _FIT_HELP)
    law_options.add_table_options(parser)
    law_options.add_law_options(parser)
    add = parser.add_argument
    add("--by", metavar="COLUMN", help="fit each group of this column separately, e.g. arm")
    add("--envelope", metavar="COLUMN", help="a law for each class of this column, such as depth, and their lower "
        "envelope")  # fmt: skip
    add("--budget", metavar="COLUMN", help="column with the nominal budget of each run (default: grouped from the "
        "costs)")  # fmt: skip
    add("--hold-out", type=int, default=0, metavar="K", help="also predict the K largest budgets from the others")
    add("--at", metavar="C,…", help="also print the optimum at these costs (default: the range of the runs)")
    law_options.add_interval_option(parser)
    law_options.add_output_options(parser, "the coefficients")
    parser.set_defaults(run=_run_fit)


def _run_fit(args: argparse.Namespace) -> int:
    from eqscale.console import make_console
    from eqscale.laws.arms import fit_table, with_common_budgets
    from eqscale.laws.render import COEFFICIENT_HEADER, FURTHER_INTERVALS
    from eqscale.laws.table import positive_column
    from eqscale.storage import check_outputs

    check_outputs(args.json, args.latex, args.markdown, folder=args.figures)
    frame = law_options.read_table(args, (args.by, args.budget, args.envelope))
    form = law_options.chosen_form(args)
    if form.has_optimum:
        args.unit = law_options.cost_unit(args, "C" if "C" in frame.columns else None, frame)
        args.costs = law_options.parse_costs(args.at, args.unit)
    elif ignored := [option for option in ("at", "budget", "figures", "hold_out") if getattr(args, option)]:
        named = ", ".join(f"--{option.replace('_', '-')}" for option in ignored)
        raise InputError(f"{named}: the form {form.name!r} has no split into N and D, which this is about")
    if args.budget:
        frame = frame.assign(**{args.budget: positive_column(frame, args.budget, args.runs)})
    parts = law_options.groups(frame, args.by, args.runs)
    titles = {label: f"{args.by} = {label}" if label else args.runs for label in parts}
    sources = {label: f"{args.runs}, {titles[label]}" if label else args.runs for label in parts}
    if args.envelope:
        return envelope.run(args, parts, sources, frame.attrs["notes"])
    for label, group in parts.items():
        _check_hold_out(args, group, sources[label])
    # all groups are fitted before the first is shown: one that can't be fitted then leaves no partial output
    choices = law_options.law_choices(args)
    fits = {label: fit_table(group, choices, sources[label]) for label, group in parts.items()}
    console = make_console()
    shown = {label: _show_fit(console, args, titles[label], fits[label], parts[label]) for label in parts}
    header = COEFFICIENT_HEADER + FURTHER_INTERVALS * args.all_intervals
    written = {label: (record, rows) for label, (record, rows, _) in shown.items()}
    law_options.write_groups(args, written, header, frame.attrs["notes"])
    if args.figures:
        arms = {label or "law": arm for label, (*_, arm) in shown.items() if arm is not None}
        law_options.draw_figures(console, args.figures, arms if args.budget else with_common_budgets(arms))
    return 0


def _show_fit(
    console: Any, args: argparse.Namespace, title: str, law: tuple[Fit, Bootstrap | None], frame: pd.DataFrame
) -> tuple[dict[str, Any], list[list[str]], ArmFit | None]:
    """Print one law: its record, the rows of its coefficients, and the law with its cost, if it has optima."""
    from eqscale.laws import disagreement, intervals
    from eqscale.laws.arms import make_arm
    from eqscale.laws.render import (
        COEFFICIENT_HEADER,
        FORM_HEADER,
        FURTHER_INTERVALS,
        coefficient_rows,
        fit_record,
        form_rows,
    )  # fmt: skip
    from eqscale.laws.rivals import compare_forms, judged

    found, boot = law
    forms = compare_forms(found, _budgets(args, frame) if found.form.has_optimum else None)
    found = judged(found, forms)
    limits = intervals(found, boot)
    record, rows = fit_record(found, limits, boot), coefficient_rows(limits, args.all_intervals)
    law_options.print_verdicts(console, {title: found}, titled=bool(args.by))
    console.print(f"L = {found.form.formula}", markup=False)
    law_options.print_table(console, COEFFICIENT_HEADER + FURTHER_INTERVALS * args.all_intervals, rows)
    console.print(
        f"objective ({found.loss.kind}, summed): {found.objective:.12g}; gradient "
        f"{found.certificate.gradient:.0e}, {found.certificate.basins} basin(s) from "
        f"{found.certificate.starts} start(s), condition {found.certificate.condition:.0f}"
    )
    if warning := disagreement(limits):
        console.print(f"[yellow]warning:[/yellow] {warning}")
    law_options.print_table(console, FORM_HEADER, form_rows(forms), "forms side by side")
    record["forms"] = forms
    record |= _print_checks(console, args, found, frame)
    arm = None
    if found.form.has_optimum:
        arm = make_arm(title, frame, law, "C" if "C" in frame.columns else None, args.budget)
        record["warnings"] += [arm.cost.warning] if arm.cost.warning else []
        record["frontier"] = _print_frontier(console, args, arm)
    return record, rows, arm


def _budgets(args: argparse.Namespace, frame: pd.DataFrame) -> np.ndarray:
    """Budget of each run: the column that was named, or grouped from the costs."""
    from eqscale.laws.arms import group_budgets, run_costs

    if args.budget:
        return frame[args.budget].to_numpy()
    return group_budgets(run_costs(frame, "C" if "C" in frame.columns else None)[1])


def _check_hold_out(args: argparse.Namespace, frame: pd.DataFrame, where: str) -> None:
    """Refuse to hold out so many budgets that the others don't determine the law, before anything is fitted."""
    import numpy as np

    from eqscale.laws.problem import check_design

    if args.hold_out < 0:
        raise InputError(f"--hold-out {args.hold_out}: the number of budgets to hold out is not negative")
    if not args.hold_out:
        return
    form = law_options.chosen_form(args)
    budget = _budgets(args, frame)
    values = np.unique(budget)
    if args.hold_out >= len(values):
        raise InputError(f"{where}: --hold-out {args.hold_out} leaves nothing to fit of {len(values)} budgets")
    rest = frame[budget < values[-args.hold_out]]
    columns, free = (
        {c: rest[c].to_numpy() for c in form.columns},
        len(form.names) - len(law_options.parse_fixed(args.fix)),
    )
    where = f"{where}, without the budgets of --hold-out {args.hold_out}"
    check_design(form, columns, rest["loss"].to_numpy(), free, where)


def _print_checks(console: Any, args: argparse.Namespace, fit: Fit, frame: pd.DataFrame) -> dict[str, Any]:
    """Outliers, lack of fit, hold-outs and the classical approaches, as far as the runs allow."""
    from eqscale.laws.render import plain
    from eqscale.laws.validate import hold_out_top, leave_one_budget_out, outliers

    record: dict[str, Any] = {}
    odd = outliers(fit)
    record["outliers"] = odd
    if odd:
        shown = ", ".join(f"run {o.index + 1} ({100 * o.residual:+.1f} %)" for o in odd[:8])
        console.print(f"outliers: {shown}{', …' if len(odd) > 8 else ''}")
    if fit.structure is not None and not fit.structure.rejects:  # else it is the verdict
        console.print(f"structure: {fit.structure.describe()}", markup=False)
    test = record["lack_of_fit"] = fit.lack_of_fit
    if test:
        console.print(f"replicates: {test.describe()}")
    if args.hold_out:
        budget = _budgets(args, frame)
        held = [hold_out_top(fit, budget, k) for k in range(1, args.hold_out + 1)]
        each = leave_one_budget_out(fit, budget)
        rows = [
            [what, number(h.budgets[0], 3), str(len(h.observed)), f"{100 * h.median_error:.2f} %",
             f"{100 * h.bias:+.2f} %", f"{100 * h.covered:.0f} %"]
            for what, group in (("top", held), ("one out", each))
            for h in group
        ]  # fmt: skip
        header = ["held out", "from C", "runs", "median error", "bias", "within 95 %"]
        law_options.print_table(console, header, rows, "predicted from the other budgets")
        record["hold_out"] = [{**plain(h), "median_error": h.median_error, "bias": h.bias} for h in held]
        record["leave_one_budget_out"] = [{**plain(h), "median_error": h.median_error} for h in each]
    return record


def _print_frontier(console: Any, args: argparse.Namespace, arm: ArmFit) -> dict[str, Any] | None:
    import numpy as np

    from eqscale.laws import frontier
    from eqscale.laws.answers import no_split
    from eqscale.laws.approaches import approach_bias, isoflop_optima, misallocation
    from eqscale.laws.render import interval_text, plain
    from eqscale.laws.validate import outliers

    law_options.print_cost_warnings(console, {arm.name: arm})
    if why := no_split(arm.fit):
        console.print(why, style="yellow")
        return None
    C = np.array(args.costs) if args.costs else np.unique(np.geomspace(arm.C.min(), arm.C.max(), 5))
    best = frontier(arm.fit, C, arm.cost, arm.boot, profile=True)
    console.print(f"cost: {arm.cost.describe()}")
    keep = np.ones(arm.fit.n, bool)
    keep[[o.index for o in outliers(arm.fit)]] = False
    after = []
    for kind, bands in (("model-based", best.model), ("robust", best.robust)) if args.all_intervals else ():
        limits = list(zip(bands["loss"].low, bands["loss"].high, strict=True)) if bands else [None] * len(C)
        after.append((kind, list(map(interval_text, limits))))
    law_options.print_optima(console, args.unit, best, best.recommended, after=after)
    record = plain(best)
    wrong = misallocation(arm.fit, arm.cost, float(C[-1]), np.array([0.25, 0.5, 2.0, 4.0]))
    record["misallocation"] = wrong
    if all(np.isfinite(m.waste) for m in wrong):
        shown = ", ".join(f"{100 * m.waste:.2g} % at {m.factor:g} N_opt" for m in wrong)
        console.print(f"wasted at C = {number(C[-1], 3)} by another size: {shown}")
    record["approaches"] = []
    for approach in (1, 2):
        try:
            found = isoflop_optima(arm.N, arm.D, arm.loss, arm.budget, approach, keep)
            bias = approach_bias(arm.fit, arm.cost, arm.budget, float(C[-1]), approach, keep)
        except InputError:
            continue  # the runs are no isoFLOP grid
        without = f" without {found.left_out} outlier(s)" if found.left_out else ""
        console.print(
            f"approach {approach}: N_opt ∝ C^{found.a:.3f} {interval_text(found.a_interval)} from "
            f"{len(found.budgets)} budgets{without}; its design alone errs by {100 * bias.N_error:+.1f} % in N and "
            f"{100 * bias.D_error:+.1f} % in D at C = {number(C[-1], 3)}"
        )
        record["approaches"].append({**plain(found), "bias": bias})
    return record
