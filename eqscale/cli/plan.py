"""``eqscale plan`` and ``eqscale design``: what to do with the laws of a study."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqscale.cli import law_options
from eqscale.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from eqscale.laws.arms import ArmFit
    from eqscale.laws.plan import Plan
    from eqscale.report.advice import Suggestion

_PLAN_HELP = """\
Which arm to train with some compute, how large, how long, what loss to expect, and how sure that is, from the
laws of a study's compute grid. --compute is in the unit of --axis: FLOPs, or seconds of the study's hardware.
The first lines are the verdicts of the laws.

examples:
  eqscale plan --from results/cpu --compute 1e14
  eqscale plan --from results/cpu --compute 1h --axis seconds
  eqscale plan runs.csv --compute 1e22 --axis C
"""

_DESIGN_HELP = """\
Which batch of further runs, within a total spend, would most reduce the uncertainty of an answer, and what standard
error to expect (V-optimal design). A question is alpha, beta, E, a, size@C, loss@C (about one arm), gap@C or
crossing (about two arms). New runs cost a third of the cheapest to three times the most expensive run of their arm,
unless --range says otherwise, and their D/N stays within twice the range of the runs.

The first lines are the verdicts of the laws, and how well the runs at hand can tell alpha from beta.

examples:
  eqscale design runs.csv --arms gatr,transformer --question gap@1e15 --spend 1e14
  eqscale design runs.csv --arms gatr --question a --spend 1e14 --range 1e11,1e13
  eqscale design runs.csv --arms gatr --question a --spend 100h --axis seconds
"""


def register(subparsers: Any) -> None:
    """Add the verbs of this group."""
    summary = "which arm to train with a given compute, how large and how long"
    parser = law_options.add_verb(subparsers, "plan", summary, _PLAN_HELP)
    law_options.add_table_options(parser, optional=True)
    law_options.add_law_options(parser)
    law_options.add_arm_options(parser)
    add = parser.add_argument
    add("--from", dest="study", type=Path, metavar="DIR", help="results folder of a study")
    add("--compute", required=True, metavar="C", help="what can be spent, in the unit of the axis: 1e14, 2 PF-days; "
        "90min or 1h on an axis of time")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the result as JSON")
    parser.set_defaults(run=_run_plan)

    parser = law_options.add_verb(subparsers, "design", "which runs would answer a question best", _DESIGN_HELP)
    law_options.add_table_options(parser)
    law_options.add_law_options(parser)
    law_options.add_arm_options(parser)
    add = parser.add_argument
    add("--question", metavar="Q", required=True, help="what should become more certain")
    add("--arms", metavar="ARM,…", help="the arms in question (default: all)")
    add("--spend", metavar="C", required=True, help="total cost of the batch, written as --compute of eqscale plan")
    add("--range", metavar="LOW,HIGH", help="lowest and highest cost of one new run")
    add("--runs-planned", type=int, default=10, metavar="K", help="most runs of the batch (default: 10)")
    add("--json", type=Path, metavar="FILE", help="write the result as JSON")
    parser.set_defaults(run=_run_design)


def _run_plan(args: argparse.Namespace) -> int:
    from eqscale.storage import check_outputs

    check_outputs(args.json)
    if (args.runs is None) == (args.study is None):
        raise InputError("plan: give either a run table or --from DIR")
    return _plan_from_study(args) if args.study is not None else _plan_from_table(args)


def _plan_from_study(args: argparse.Namespace) -> int:
    from eqscale.console import make_console
    from eqscale.laws.axes import AXES
    from eqscale.laws.quantities import parse_quantity, quantity
    from eqscale.laws.render import plain, write_json
    from eqscale.numbers import number
    from eqscale.report.advice import suggest, trained_at
    from eqscale.report.analysis import fit_every_arm, on_axis
    from eqscale.report.parts import read_study
    from eqscale.report.prediction import SAME_COST

    table_options = ("map", "where", "duplicates", "best_of", "history", "step", "steps", "replicates", "by")
    given = [name.replace("_", "-") for name in table_options if getattr(args, name) not in (None, [], "error", "arm")]
    if given:
        raise InputError(f"--from {args.study}: --{given[0]} would change nothing, it is for a table of runs")
    axis = law_options.study_axis(args)
    compute = parse_quantity(args.compute, AXES[axis].unit, "--compute")
    study = read_study(args.study)
    runs = study.part("compute")
    if runs.empty:
        raise InputError(f"--from {args.study}: no finished run of a compute grid")
    fitted, unfitted = fit_every_arm(runs, str(args.study), **law_options.resampled_choices(args))
    arms = {a: {name: on_axis(arm, runs, a) for name, arm in fitted.items()} for a in AXES}
    rungs = functools.partial(_rungs, study.wording.name)
    found = suggest(runs, arms, axis, compute, rungs)
    console = make_console()
    law_options.print_verdicts(console, {name: arm.fit for name, arm in fitted.items()})
    _print_suggestions(console, found, f"{quantity(compute, AXES[axis].unit)} ({AXES[axis].label})", axis == "seconds")
    trained = trained_at(study, axis, compute)
    if trained:
        sizes = (f"{t['arm']} {number(t['loss'], 3, '#g')} with {t['N']:,.0f} parameters" for t in trained)
        told = f"Trained at this cost, within {100 * SAME_COST:.0f} %, mean loss of the best size: {', '.join(sizes)}."
        console.print(told, markup=False)
    for problem in unfitted.values():
        console.print(f"left out: {problem}", style="yellow")
    if args.json:
        verdicts = {name: arm.fit.verdict for name, arm in fitted.items()}
        result = {"verdicts": verdicts, "axis": axis, "compute": compute, "suggestions": found, "trained": trained}
        write_json(args.json, plain(result))
    return 0


def _rungs(task_name: str, name: str, N: float) -> list[tuple[str, int]]:
    """Sizes of a registered arm around N with their parameters; none for other arms."""
    from bisect import bisect

    from eqscale.arms import arm_names, get_arm
    from eqscale.tasks import get_task, task_names

    if name not in arm_names() or task_name not in task_names():
        return []
    arm, task = get_arm(name), get_task(task_name)
    # Counts few of them: to build the largest takes seconds.
    at = bisect(arm.ladder, N, key=lambda size: arm.parameters(size, task))
    return [(str(size), arm.parameters(size, task)) for size in arm.ladder[max(at - 2, 0) : at + 2]]


def _print_suggestions(console: Any, found: list[Suggestion], title: str, in_seconds: bool) -> None:
    from eqscale.laws.render import with_interval
    from eqscale.numbers import number
    from eqscale.report.prediction import SAME_COST

    rows = []
    for s in found:
        N = f"{number(s.N, 3)} (optimum {with_interval(s.N_optimal, *s.N_interval)})"
        steps = "–" if s.steps is None else f"{s.steps:,}"
        line = with_interval(s.trend["loss"], *s.trend["new_run"]["model"]) if s.trend else "–"
        costs = "; ".join(f"{number(v, 2)} {name}" for name, v in s.costs.items())
        row = [s.arm, s.size or "–", N, number(s.D, 3), steps, with_interval(s.loss.value, *s.new_run), line]
        rows.append([*row, number(s.probability_best, 2, "f"), costs])
    header = [
        "arm",
        "size",
        "parameters N",
        "tokens D",
        "steps",
        "loss by the law",
        "without a law",
        "P(best)",
        "costs",
    ]
    law_options.print_table(console, header, rows, title)
    best = found[0]
    steps = "" if best.steps is None else f" for {best.steps:,} steps of {best.batch_size} samples"
    size = f" {best.size}" if best.size else ""
    expected, low, high = (number(value, 3, "#g") for value in best.expected)
    by = (
        "straight lines through its last measured optima, since its law misses structure"
        if best.by_lines
        else "its law"
    )
    sure = ""
    if best.probability_best is not None and not best.by_lines:  # a law that misses structure can't be sure
        sure = f" It has the lowest loss in {100 * best.probability_best:.0f} % of the resamples of the laws."
    console.print(
        f"Train {best.arm}{size} ({best.N:,.0f} parameters){steps}, {number(best.D, 3)} tokens: expect a loss of "
        f"{expected}, between {low} and {high} for one run (95 %), by {by}.{sure}"
    )
    if best.beyond > 1 + SAME_COST:
        console.print(
            f"This is {best.beyond:.2g} times the most expensive run behind it: an extrapolation, and the "
            "intervals hold only if the trend goes on."
            + (" --compute is in seconds here; FLOPs need --axis executed or nominal." if in_seconds else ""),
            style="yellow",
        )


def _plan_from_table(args: argparse.Namespace) -> int:
    from eqscale.console import make_console
    from eqscale.laws.plan import advise
    from eqscale.laws.quantities import quantity
    from eqscale.laws.render import plain, with_interval, write_json
    from eqscale.numbers import number

    frame = law_options.read_arm_table(args)
    axis = law_options.one_axis(args, frame)
    compute = law_options.parse_cost(args, "--compute", args.compute, axis, frame)
    arms = law_options.read_arms(args, axis, frame)
    found = advise(arms, compute)
    rows = []
    for a in found:
        size, loss = with_interval(a.N, *a.N_band, digits=4), with_interval(a.loss, *a.loss_band, digits=4)
        rows.append([a.arm, size, number(a.D), loss, number(a.probability_best, 2, "f")])
    console = make_console()
    law_options.print_verdicts(console, {name: arm.fit for name, arm in arms.items()})
    law_options.print_cost_warnings(console, arms)
    header = [args.by, "parameters N", "tokens D", "expected loss", "P(best)"]
    title = f"{axis or '6ND'} = {quantity(compute, law_options.cost_unit(args, axis, frame))}"
    law_options.print_table(console, header, rows, title)
    if any(a.extrapolated for a in found):
        console.print("this cost is beyond the runs: an extrapolation", style="yellow")
    if args.json:
        verdicts = {name: str(arm.fit.verdict) for name, arm in arms.items()}
        write_json(args.json, {"axis": axis or "6ND", "verdicts": verdicts, "advice": plain(found)})
    return 0


def _run_design(args: argparse.Namespace) -> int:
    from eqscale.console import make_console
    from eqscale.laws.plan import parse_question, plan_runs
    from eqscale.laws.render import plain, write_json
    from eqscale.storage import check_outputs

    check_outputs(args.json)
    if args.runs_planned < 1:
        raise InputError(f"--runs-planned {args.runs_planned}: at least 1")
    frame = law_options.read_arm_table(args)
    axis = law_options.one_axis(args, frame)
    spend = law_options.parse_cost(args, "--spend", args.spend, axis, frame)
    arms = law_options.read_arms(args, axis, frame)
    wanted = [a.strip() for a in (args.arms or "").split(",") if a.strip()] or list(arms)
    for name in wanted:
        if name not in arms:
            raise InputError(f"--arms: no {args.by} {name!r}; there are {', '.join(arms)}")
    arms = {name: arms[name] for name in wanted}
    question = parse_question(args.question, arms)
    plan = plan_runs(
        question, arms, budget=spend, cost_range=_cost_range(args, axis, frame), runs=args.runs_planned
    )  # fmt: skip
    console = make_console()
    law_options.print_verdicts(console, {name: arm.fit for name, arm in arms.items()})
    law_options.print_cost_warnings(console, arms)
    _print_plan(console, args.by, plan, arms, axis or "6ND", law_options.cost_unit(args, axis, frame))
    if args.json:
        verdicts = {name: str(arm.fit.verdict) for name, arm in arms.items()}
        write_json(args.json, {"axis": axis or "6ND", "verdicts": verdicts, **plain(plan), "cost": plan.cost})
    return 0


def _cost_range(args: argparse.Namespace, axis: str | None, frame: Any) -> tuple[float, float] | None:
    if args.range is None:
        return None
    low, comma, high = args.range.partition(",")
    if not comma:
        raise InputError(f"--range {args.range!r}: write two costs, as in 1e17,1e20")
    limits = tuple(law_options.parse_cost(args, "--range", text.strip(), axis, frame) for text in (low, high))
    if limits[0] > limits[1]:
        raise InputError(f"--range {args.range}: the lowest cost comes first")
    return limits[0], limits[1]


def _print_plan(console: Any, by: str, plan: Plan, arms: Mapping[str, ArmFit], axis: str, unit: str) -> None:
    """A batch of runs, what it may choose from, and what it is worth."""
    import numpy as np

    from eqscale.laws.design import resolution
    from eqscale.laws.quantities import quantity
    from eqscale.numbers import number

    for name, arm in arms.items():
        new = [run for run in plan.runs if run.arm == name]
        N, D = (np.concatenate([old, [getattr(run, k) for run in new]]) for k, old in (("N", arm.N), ("D", arm.D)))
        title = f"{name}: " if len(arms) > 1 else ""
        console.print(f"{title}{resolution(arm.N, arm.D, arm.fit.spread).describe()}", markup=False)
        if new:
            console.print(f"{title}with the batch, {resolution(N, D, arm.fit.spread).describe()}", markup=False)
    meaning, estimate, error = _labelled(plan.question, unit, list(arms))
    known = f"{estimate(plan.estimate)}, standard error now {error(plan.se_now)}"
    if not np.isfinite(plan.estimate):
        known = (
            f"not known (see the verdict); for a law with terms of equal size, standard error now {error(plan.se_now)}"
        )
    console.print(f"{meaning}: {known}", markup=False)
    if not plan.runs:
        console.print("no run within these limits makes it more certain", style="yellow")
        return
    rows = [
        [run.arm, str(count), number(run.N, 3), number(run.D, 3), number(run.D / run.N, 3), quantity(run.C, unit)]
        for run, count in plan.points
    ]
    header = [by, "runs", "parameters N", "tokens D", "D/N", f"{axis} of one"]
    law_options.print_table(console, header, rows, f"{len(plan.runs)} runs, {quantity(plan.cost, unit)} in all")
    console.print(f"standard error after them: {error(plan.runs[-1].expected_se)}")
    for name, limits in plan.limits.items():
        low, high = (quantity(c, unit) for c in limits.cost)
        ratio = " to ".join(number(r, 3) for r in limits.ratio)
        console.print(f"chosen for {name} from {low} to {high} a run, D/N from {ratio}", markup=False)


def _labelled(
    question: str, unit: str, arms: Sequence[str]
) -> tuple[str, Callable[[float], str], Callable[[float], str]]:
    """What a question asks for, and how its answer and the standard error of that are written."""
    import math

    from eqscale.laws.quantities import quantity
    from eqscale.numbers import number

    name, at, C = question.partition("@")
    logarithms = {"size": "optimal size", "loss": "optimal loss", "gap": " / ".join(f"loss of {a}" for a in arms)}
    if name not in (*logarithms, "crossing"):
        return name, number, lambda se: number(se, 3)
    what = {"size": "parameters", "crossing": unit}.get(name, "")
    return (
        logarithms.get(name, "cost at which the optimal losses meet") + f" at {C} {unit}".rstrip() * bool(at),
        lambda log: quantity(math.exp(log), what),
        lambda se: f"{100 * se:.2g} %" if se < 0.5 else f"a factor of {math.exp(se):.2g}",
    )
