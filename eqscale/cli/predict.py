"""``eqscale predict``: the loss of a training, what reaches a loss, and a study's predictions before the runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqscale.cli import law_options
from eqscale.errors import InputError
from eqscale.numbers import number

if TYPE_CHECKING:
    from eqscale.laws.answers import Amount, Answer
    from eqscale.laws.arms import ArmFit
    from eqscale.laws.fit import Fit
    from eqscale.laws.uncertainty import Bootstrap

_PREDICT_HELP = """\
Ask the law of any run table: the loss at a size and a number of tokens, what reaches a loss, what a cost buys. A loss
comes with two 95 % intervals: of the law, and of one further run.

examples:
  eqscale predict runs.csv --at N=7B,D=140B --at N=13B,D=260B
  eqscale predict runs.csv --target-loss 2.1
  eqscale predict runs.csv --target-loss 2.1 --tokens-per-parameter 200
  eqscale predict runs.csv --compute 1e22 --tokens-per-parameter 200

Of a study's results folder: predict the loss and the optimal size of every arm at a compute above the study's compute
grid, and write it to DIR/prediction_COMPUTE.json before those runs are made. eqscale run validate then trains them, and
eqscale report shows prediction and outcome side by side.

  eqscale predict results/cpu --compute 3e13
  eqscale predict results/cpu --compute 1e14 --arms transformer gatr
"""


def register(subparsers: Any) -> None:
    """Add the verb."""
    summary = "the loss of a training, or what reaches a loss"
    parser = law_options.add_verb(subparsers, "predict", summary, _PREDICT_HELP)
    law_options.add_table_options(parser)
    law_options.add_law_options(parser)
    law_options.add_arm_options(parser)
    add = parser.add_argument_group("the questions").add_argument
    add("--at", metavar="N=…,D=…", action="append", default=[], help="loss at these; repeatable")
    add("--target-loss", metavar="L,…", help="cost, size and tokens of the cheapest training that reaches it")
    add("--compute", metavar="C,…", help="loss, size and tokens that this cost buys: FLOPs or a time")
    add("--tokens-per-parameter", metavar="K", help="train at D = K N instead of the best split")
    add("--up-to", metavar="C", help="of a study: largest budget, in executed FLOPs, that the laws may see (default: "
        "the largest whose runs all cost less than --compute)")  # fmt: skip
    add("--arms", nargs="+", metavar="ARM", default=[], help="of a study: arms to predict (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the answers as JSON")
    parser.set_defaults(run=lambda args: _run_predict(args, parser))


def _run_predict(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if not Path(args.runs).is_dir():
        return _predict_table(args)
    ignored = {
        action.option_strings[0]
        for action in parser._actions
        if action.option_strings and action.dest not in ("help", "compute", "axis", "up_to", "arms")
        and getattr(args, action.dest) != action.default
    }  # fmt: skip
    if ignored or not args.compute:
        what = f"not {', '.join(sorted(ignored))}" if ignored else "it needs --compute"
        raise InputError(
            f"{args.runs}: the prediction of a study takes --compute, --axis, --up-to and --arms, {what}; other "
            "questions go to a run table"
        )
    return _predict_study(args)


def _predict_table(args: argparse.Namespace) -> int:
    from eqscale.laws.arms import fit_table, make_arm
    from eqscale.laws.quantities import parse_quantity
    from eqscale.storage import check_outputs

    if args.up_to or args.arms:
        raise InputError(
            f"{args.runs}: --up-to and --arms are for a study's results folder; choose runs with --where 'C<=…'"
        )
    if not (args.at or args.target_loss or args.compute):
        raise InputError("predict: ask with --at N=…,D=…, --target-loss or --compute")
    check_outputs(args.json)
    ratio = None
    if args.tokens_per_parameter:
        ratio = parse_quantity(args.tokens_per_parameter, "tokens per parameter", "--tokens-per-parameter")
    points = [parse_point(text, ratio) for text in args.at]
    losses = [parse_quantity(v, "loss", "--target-loss") for v in (args.target_loss or "").split(",") if v.strip()]
    frame = law_options.read_arm_table(args)
    form = law_options.chosen_form(args)
    if not form.has_optimum and (losses or args.compute):
        raise InputError(f"the form {form.name!r} has no split into N and D: ask with --at {form.columns[0]}=…")
    axis = law_options.one_axis(args, frame) if form.has_optimum else None
    unit = law_options.cost_unit(args, axis, frame) if form.has_optimum else ""
    costs = [parse_quantity(v, unit, "--compute") for v in (args.compute or "").split(",") if v.strip()]
    if axis is not None:
        frame = frame.assign(**{axis: law_options.axis_costs(args, axis, frame)})
    choices = law_options.law_choices(args)
    laws: dict[str, tuple[Fit, Bootstrap | None, ArmFit | None]] = {}
    for name, runs in law_options.groups(frame, args.by, args.runs).items():
        found = fit_table(runs, choices, f"{args.runs}, {args.by} = {name}")
        laws[name] = (*found, make_arm(name, runs, found, axis) if form.has_optimum else None)
    answers = {name: _ask(law, points, losses, costs, ratio, unit) for name, law in laws.items()}
    _print_answers(args, laws, answers, unit)
    return 0


def parse_point(text: str, ratio: float | None = None) -> dict[str, float]:
    """``N=7B,D=140B`` as numbers by name; with a ratio D/N one of the two follows from the other.

    Raises:
        InputError: bad syntax, a value that is not positive, or both N and D beside a ratio.
    """
    from eqscale.laws.quantities import parse_quantity

    point: dict[str, float] = {}
    for entry in filter(str.strip, text.split(",")):
        name, sep, value = (part.strip() for part in entry.partition("="))
        if not sep or not name or name in point:
            raise InputError(f"--at: bad entry {text!r}; write NAME=NUMBER,…, e.g. N=7B,D=140B")
        point[name] = parse_quantity(value, {"N": "parameters", "D": "tokens"}.get(name, ""), f"--at {name}")
    if ratio is not None:
        if len({"N", "D"} & set(point)) != 1:
            raise InputError(f"--at {text}: with --tokens-per-parameter give either N or D")
        point |= {"D": ratio * point["N"]} if "N" in point else {"N": point["D"] / ratio}
    return point


def _ask(
    law: tuple[Fit, Bootstrap | None, ArmFit | None],
    points: list[dict[str, float]],
    losses: list[float],
    costs: list[float],
    ratio: float | None,
    unit: str,
) -> list[Answer]:
    from eqscale.laws.answers import at_cost, at_regressors, to_reach
    from eqscale.laws.quantities import quantity

    fit, boot, arm = law
    units = {"N": "parameters", "D": "tokens"}
    texts = [
        ", ".join(quantity(v, units[k]) if k in units else f"{k} = {number(v, 3)}" for k, v in point.items())
        for point in points
    ]
    found = [at_regressors(fit, boot, arm, *asked) for asked in zip(texts, points, strict=True)]
    beside = f", {quantity(ratio, 'tokens per parameter')}" if ratio is not None else ""
    if arm is not None:
        found += [to_reach(arm, f"loss {loss:g}{beside}", loss, ratio) for loss in losses]
        found += [at_cost(arm, f"{quantity(c, unit or 'of cost')}{beside}", c, ratio) for c in costs]
    return found


def _print_answers(
    args: argparse.Namespace,
    laws: dict[str, tuple[Fit, Bootstrap | None, ArmFit | None]],
    answers: dict[str, list[Answer]],
    unit: str,
) -> None:
    from eqscale.console import make_console
    from eqscale.laws.render import write_json

    console = make_console()
    law_options.print_verdicts(console, {name: law[0] for name, law in laws.items()})
    several = len(laws) > 1
    for name, found in answers.items():
        for a in found:
            console.print(f"{name + ', ' if several else ''}{_sentence(a, unit)}", markup=False, soft_wrap=True)
    console.print("brackets: 95 % intervals")
    law_options.print_cost_warnings(console, {name: arm for name, (_, _, arm) in laws.items() if arm is not None})
    if args.json:
        verdicts = {name: fit.verdict for name, (fit, *_) in laws.items()}
        write_json(args.json, {"verdicts": verdicts, "cost_unit": unit, "by": args.by, "answers": answers})


def _sentence(a: Answer, unit: str) -> str:
    """An answer in words, with the unit of every figure."""
    from eqscale.laws.quantities import quantity
    from eqscale.laws.render import interval_text, with_interval

    def text(amount: Amount, name: str, digits: int) -> str:
        limits = amount.interval and f" [{', '.join(quantity(v, '', digits) for v in amount.interval)}]"
        return quantity(amount.value, name, digits) + (limits or "")

    if a.cost is None and (a.loss is None or not a.loss.interval):
        return f"{a.asked}: {a.note}"
    parts, costs = [], []
    if a.loss and a.loss.interval:
        run = f", of one further run {interval_text(a.new_run)}" if a.new_run else ""
        parts.append(f"loss {with_interval(a.loss.value, *a.loss.interval, 4)}{run}")
    if a.cost is not None:
        costs.append(text(a.cost, unit or "of cost", 3))
    if a.N and a.D:
        costs += [text(a.N, "parameters", 3), text(a.D, "tokens", 3)]
        costs.append(quantity(a.D.value / a.N.value, "tokens per parameter"))
    parts += [cost for cost in costs if cost not in a.asked]
    if a.beyond is not None and a.beyond > 1.01:
        parts.append(f"an extrapolation to {a.beyond:.2g} times the cost of the largest run")
    return f"{a.asked}: {'; '.join([*parts, *filter(None, [a.note])])}"


def _prediction(p: dict[str, Any]) -> list[str]:
    """A predicted size and loss with their intervals, the robust one of a new run where there is one."""
    from eqscale.laws.render import interval_text

    size, mean, new_run = (
        [interval_text(p[what].get(kind), 3) for kind in ("model", "robust")]
        for what in ("N_interval", "mean", "new_run")
    )
    return [number(p["N"], 3), *size, number(p["loss"], 3), *mean, *new_run]


def _predict_study(args: argparse.Namespace) -> int:
    from eqscale.console import make_console
    from eqscale.laws.axes import AXES
    from eqscale.laws.quantities import parse_quantity, quantity
    from eqscale.laws.render import write_json
    from eqscale.report.parts import prediction_path, read_study
    from eqscale.report.prediction import predict
    from eqscale.storage import check_outputs

    axis = law_options.study_axis(args)
    unit = AXES[axis].unit
    compute = parse_quantity(args.compute, unit, "--compute")
    up_to = parse_quantity(args.up_to, "FLOPs", "--up-to") if args.up_to else None
    folder = Path(args.runs)
    path = prediction_path(folder, compute, axis)
    study = read_study(folder)
    check_outputs(path)
    if path.exists() or any((made["axis"], made["compute"]) == (axis, compute) for made in study.predictions):
        raise InputError(
            f"{folder} has a prediction for {quantity(compute, unit)} ({axis}) already: it is made once; remove it to "
            "start over"
        )
    record = predict(study, compute, axis, up_to, args.arms)
    write_json(path, record)
    arms = record["arms"]
    rows = [
        [name, p["verdict"], *["–"] * 7] if p["loss"] is None else [name, *_prediction(p)] for name, p in arms.items()
    ]
    rows += [[f"{name}, no law", *_prediction(p["trend"])] for name, p in arms.items() if "trend" in p]
    header = ["arm", "N_opt", "model-based", "robust", "loss", "model-based", "robust", "new run", "new run, robust"]
    console = make_console()
    seen = f"{record['runs_seen']} runs at budgets up to {number(record['largest_budget_seen'], 3)} FLOPs"
    law_options.print_table(console, header, rows, f"{quantity(compute, unit)}, from {seen}")
    for why in record["not_predicted"].values():
        console.print(f"not predicted: {why}", style="yellow")
    console.print(f"written: {path}; commit it before the runs are made")
    return 0
