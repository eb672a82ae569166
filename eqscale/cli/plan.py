"""``eqscale plan``, ``eqscale design`` and ``eqscale predict``: what to do with the laws of a study."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqscale.cli import law_options
from eqscale.errors import InputError

if TYPE_CHECKING:
    from eqscale.laws.arms import ArmFit
    from eqscale.report.advice import Suggestion

_PLAN_HELP = """\
Which arm to train with some compute, how large, how long, what loss to expect, and how sure that is, from the
laws of a study's compute grid. --compute is in the unit of --axis: FLOPs, or seconds of the study's hardware.

examples:
  eqscale plan --from results/cpu --compute 1e14
  eqscale plan --from results/cpu --compute 1h --axis seconds
  eqscale plan runs.csv --compute 1e22 --axis C
"""

_DESIGN_HELP = """\
Which further runs would most reduce the uncertainty of an answer, per unit of cost, and what standard error to
expect after each (V-optimal design). A question is alpha, beta, E, a, size@C, loss@C (about one arm), gap@C or
crossing (about two arms).

examples:
  eqscale design runs.csv --arms gatr,transformer --question gap@1e15 --spend 1e14
  eqscale design runs.csv --arms gatr --question a --spend 1e14
"""

_PREDICT_HELP = """\
Predict the loss and the optimal size of every arm at a compute above the study's compute grid, and write it to
DIR/prediction.json before those runs are made. eqscale report then shows prediction and outcome side by side.

examples:
  eqscale predict results/cpu --compute 3e13
  eqscale predict results/cpu --compute 3e13 --up-to 1e13
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
    add("--compute", required=True, metavar="C", help="what can be spent: FLOPs or seconds; times also as 90min or 1h")
    add("--json", type=Path, metavar="FILE", help="write the result as JSON")
    parser.set_defaults(run=_run_plan)

    parser = law_options.add_verb(subparsers, "design", "which runs would answer a question best", _DESIGN_HELP)
    law_options.add_table_options(parser)
    law_options.add_law_options(parser)
    law_options.add_arm_options(parser)
    add = parser.add_argument
    add("--question", metavar="Q", required=True, help="what should become more certain")
    add("--arms", metavar="ARM,…", help="the arms in question (default: all)")
    add("--spend", type=float, metavar="C", required=True, help="total cost of the new runs")
    add("--most", type=float, metavar="C", help="highest cost of one new run")
    add("--runs-planned", type=int, default=10, metavar="K", help="most runs (default: 10)")
    add("--json", type=Path, metavar="FILE", help="write the result as JSON")
    parser.set_defaults(run=_run_design)

    parser = law_options.add_verb(subparsers, "predict", "predict runs before they are made", _PREDICT_HELP)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="results folder of a study")
    add("--compute", type=float, required=True, metavar="C", help="compute to predict for")
    add("--axis", default="executed", help="executed (default), nominal or seconds: unit of --compute")
    add("--up-to", type=float, metavar="C", help="largest budget, in executed FLOPs, that the laws may see (default: "
        "the largest whose runs all cost less than --compute)")  # fmt: skip
    parser.set_defaults(run=_run_predict)


_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_compute(text: str, in_seconds: bool) -> float:
    """A positive number; on an axis of seconds also a time such as ``90min`` or ``1h``.

    Raises:
        InputError: anything else.
    """
    unit = next((u for u in sorted(_SECONDS, key=len, reverse=True) if text.strip().endswith(u)), None)
    try:
        value = float(text.strip().removesuffix(unit or "")) * (_SECONDS[unit] if unit else 1.0)
    except ValueError:
        value = -1.0
    if unit and not in_seconds:
        raise InputError(f"--compute {text}: a time needs --axis seconds")
    if not 0 < value < float("inf"):
        raise InputError(f"--compute {text!r}: not a positive number (or a time such as 90min or 1h)")
    return value


def _run_plan(args: argparse.Namespace) -> int:
    from eqscale.storage import check_outputs

    check_outputs(args.json)
    if (args.runs is None) == (args.study is None):
        raise InputError("plan: give either a run table or --from DIR")
    return _plan_from_study(args) if args.study is not None else _plan_from_table(args)


def _plan_from_study(args: argparse.Namespace) -> int:
    from eqscale.console import make_console
    from eqscale.laws.axes import AXES
    from eqscale.laws.render import plain, write_json
    from eqscale.report.advice import suggest
    from eqscale.report.analysis import POINT, on_axis, with_points
    from eqscale.report.parts import read_study

    axis = args.axis[-1] if args.axis else "executed"
    axis = next((name for name in AXES if AXES[name].column == axis), axis)
    if axis not in AXES:
        raise InputError(f"--axis {axis!r}: choose one of {', '.join(AXES)}")
    compute = parse_compute(args.compute, axis == "seconds")
    runs = read_study(args.study).part("compute")
    if runs.empty:
        raise InputError(f"--from {args.study}: no finished run of a compute grid")
    args.runs, args.replicates, runs = str(args.study), POINT, with_points(runs)
    fitted: dict[str, ArmFit] = {}
    problems = []
    for name in dict.fromkeys(runs["arm"]):
        try:
            fitted |= law_options.read_arms(args, AXES["executed"].column, runs[runs["arm"] == name])
        except InputError as error:
            problems.append(str(error))
    if not fitted:
        raise InputError("; ".join(problems))
    arms = {a: {name: on_axis(arm, runs, a) for name, arm in fitted.items()} for a in AXES}
    rungs = functools.partial(_rungs, str(runs["task"].iloc[0]))
    found = suggest(runs, arms, axis, compute, rungs)
    console = make_console()
    law_options.print_verdicts(console, {name: arm.fit for name, arm in fitted.items()})
    _print_suggestions(console, found, f"{compute:.4g} {AXES[axis].unit} ({AXES[axis].label})", axis == "seconds")
    for problem in problems:
        console.print(f"left out: {problem}", style="yellow")
    if args.json:
        write_json(args.json, {"axis": axis, "compute": compute, "suggestions": plain(found)})
    return 0


def _rungs(task_name: str, name: str, N: float, budget: float) -> list[tuple[str, int]]:
    """Sizes of a registered arm around N at a budget in executed FLOPs with their parameters; none for other arms."""
    from bisect import bisect

    from eqscale.arms import arm_names, get_arm
    from eqscale.tasks import get_task, task_names

    if name not in arm_names() or task_name not in task_names():
        return []
    arm, task = get_arm(name), get_task(task_name)
    sizes = [(str(size), arm.parameters(size, task)) for size in arm.sizes(budget)]
    at = bisect(sizes, N, key=lambda size: size[1])
    return sizes[max(at - 2, 0) : at + 2]


def _print_suggestions(console: Any, found: list[Suggestion], title: str, in_seconds: bool) -> None:
    from eqscale.laws.render import interval_text, number

    rows = []
    for s in found:
        N = f"{number(s.N, 3)} (optimum {number(s.N_optimal, 3)} {interval_text(s.N_interval, 2)})"
        steps = "–" if s.steps is None else f"{s.steps:,}"
        loss = f"{number(s.loss.value, 3)} {interval_text(s.loss.model, 3)} {interval_text(s.loss.robust, 3)}"
        row = [s.arm, s.size or "–", N, number(s.D, 3), steps, loss, interval_text(s.new_run, 3)]
        costs = "; ".join(f"{number(v, 2)} {name}" for name, v in s.costs.items())
        rows.append([*row, number(s.probability_best, 2, "f"), costs])
    header = ["arm", "size", "parameters N", "tokens D", "steps", "loss [model-based] [robust]", "of one run"]
    law_options.print_table(console, [*header, "P(best)", "costs"], rows, title)
    best = found[0]
    steps = "" if best.steps is None else f" for {best.steps:,} steps of {best.batch_size} samples"
    size = f" {best.size}" if best.size else ""
    sure = "it is the only arm with a law"
    if best.probability_best is not None:
        sure = f"it has the lowest loss in {100 * best.probability_best:.0f} % of the resamples"
    console.print(
        f"Train {best.arm}{size} ({best.N:,.0f} parameters){steps}, {number(best.D, 3)} tokens: expect a loss of "
        f"{number(best.loss.value, 3)}, between {number(best.new_run[0], 3)} and {number(best.new_run[1], 3)} for one "
        f"run (95 %); {sure}."
    )
    if best.beyond > 1.01:
        console.print(
            f"This is {best.beyond:.2g} times the most expensive run of {best.arm}: an extrapolation, and the "
            "intervals hold only if the law does."
            + (" --compute is in seconds here; FLOPs need --axis executed or nominal." if in_seconds else ""),
            style="yellow",
        )


def _plan_from_table(args: argparse.Namespace) -> int:
    from eqscale.console import make_console
    from eqscale.laws.plan import advise
    from eqscale.laws.render import interval_text, number, plain, write_json

    frame = law_options.read_arm_table(args)
    axis = _one_axis(args, frame)
    compute = parse_compute(args.compute, axis == "seconds")
    found = advise(law_options.read_arms(args, axis, frame), compute)
    rows = []
    for a in found:
        size, loss = f"{number(a.N)} {interval_text(a.N_band)}", f"{number(a.loss)} {interval_text(a.loss_band)}"
        rows.append([a.arm, size, number(a.D), loss, number(a.probability_best, 2, "f")])
    console = make_console()
    header = [args.by, "parameters N", "tokens D", "expected loss", "P(best)"]
    law_options.print_table(console, header, rows, f"{axis or '6ND'} = {compute:.3g}")
    if any(a.extrapolated for a in found):
        console.print("this cost is beyond the runs: an extrapolation", style="yellow")
    if args.json:
        write_json(args.json, {"axis": axis or "6ND", "advice": plain(found)})
    return 0


def _one_axis(args: argparse.Namespace, frame: Any) -> str | None:
    axes = law_options.cost_axes(args, frame)
    if len(axes) > 1:
        raise InputError("one --axis at a time")
    return axes[0]


def _run_design(args: argparse.Namespace) -> int:
    from eqscale.console import make_console
    from eqscale.laws.plan import parse_question, plan_runs
    from eqscale.laws.render import number, plain, write_json
    from eqscale.storage import check_outputs

    check_outputs(args.json)
    frame = law_options.read_arm_table(args)
    axis = _one_axis(args, frame)
    arms = law_options.read_arms(args, axis, frame)
    wanted = [a.strip() for a in (args.arms or "").split(",") if a.strip()] or list(arms)
    for name in wanted:
        if name not in arms:
            raise InputError(f"--arms: no {args.by} {name!r}; there are {', '.join(arms)}")
    arms = {name: arms[name] for name in wanted}
    question = parse_question(args.question, arms)
    plan = plan_runs(question, arms, budget=args.spend, most=args.most, runs=args.runs_planned)
    console, label = make_console(), axis or "6ND"
    console.print(f"{plan.question}: {plan.estimate:.4g}, standard error now {plan.se_now:.3g}")
    rows = [[r.arm, number(r.N), number(r.D), number(r.C), number(r.expected_se, 3)] for r in plan.runs]
    header = [args.by, "N", "D", label, "standard error after"]
    law_options.print_table(console, header, rows, f"total {label} = {plan.cost:.3g}")
    if args.json:
        write_json(args.json, {"axis": label, **plain(plan), "cost": plan.cost})
    return 0


def _prediction(p: dict[str, Any]) -> list[str]:
    """A predicted size and loss with their intervals, the robust one of a new run where there is one."""
    from eqscale.laws.render import interval_text, number

    size, mean, new_run = (
        [interval_text(p[what].get(kind), 3) for kind in ("model", "robust")]
        for what in ("N_interval", "mean", "new_run")
    )
    return [number(p["N"], 3), *size, number(p["loss"], 3), *mean, *new_run]


def _run_predict(args: argparse.Namespace) -> int:
    from eqscale.console import make_console
    from eqscale.laws.axes import AXES
    from eqscale.laws.render import write_json
    from eqscale.report.parts import read_study
    from eqscale.report.prediction import predict
    from eqscale.storage import check_outputs

    path = args.folder / "prediction.json"
    study = read_study(args.folder)
    check_outputs(path)
    if path.exists():
        raise InputError(f"{path} exists already: a prediction is made once; remove it to start over")
    record = predict(study, args.compute, args.axis, args.up_to)
    write_json(path, record)
    arms = record["arms"]
    rows = [
        [name, p["verdict"], *["–"] * 7] if p["loss"] is None else [name, *_prediction(p)] for name, p in arms.items()
    ]
    rows += [[f"{name}, no law", *_prediction(p["trend"])] for name, p in arms.items() if "trend" in p]
    header = ["arm", "N_opt", "model-based", "robust", "loss", "model-based", "robust", "new run", "new run, robust"]
    console = make_console()
    seen = f"{record['runs_seen']} runs at budgets up to {record['largest_budget_seen']:.3g}"
    law_options.print_table(console, header, rows, f"{args.compute:.3g} {AXES[args.axis].unit}, from {seen}")
    for why in record["not_predicted"].values():
        console.print(f"not predicted: {why}", style="yellow")
    console.print(f"written: {path}; commit it before the runs are made")
    return 0
