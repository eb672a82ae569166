"""``eqscale train``: one run, or those of a plan, without Ray and MLflow."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from eqscale.cli.plugins import load_plugins
from eqscale.errors import InputError
from eqscale.plugins import add_plugin_options

if TYPE_CHECKING:
    from eqscale.arms import Arm, Size
    from eqscale.study.alone import Planned

_HELP = """\
Train one run, or the runs of a plan one after another, in this process: without Ray, MLflow and a study. It needs
PyTorch, NumPy and this package alone; data sets can be carried as files (the folder data).

    eqscale train --arm gatr --size 4x3 --budget 1e10           # one run, on the data of the preset quick
    eqscale run grid --preset cpu --export plan.jsonl           # the runs of a study that are still to be trained
    eqscale train plan.jsonl --shard 3/8 --records part3.jsonl  # a part of them: here the third of eight
    eqscale adopt part*.jsonl --study cpu                       # the study takes the records over

Stop it with Ctrl-C; the same command continues.
"""


def register(verbs: argparse._SubParsersAction) -> None:
    """Add the verb ``train``."""
    parser = verbs.add_parser(
        "train",
        help="train one run, or the runs of a plan, without Ray and MLflow",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("plan", nargs="?", type=Path, metavar="PLAN", help="plan of eqscale run --export; without it, name one run")
    add("--shard", default="1/1", metavar="I/N", help="train part I of N of the plan (default: all of it)")
    help_text = "file that receives a record of each run; what it holds is not trained again (default: train.jsonl)"
    add("--records", type=Path, default=Path("train.jsonl"), metavar="FILE", help=help_text)
    add("--weights", type=Path, metavar="DIR", help="folder that receives final weights, named by their runs")
    add("--data", type=Path, default=Path("data"), help="folder of data sets (default: data)")
    one = parser.add_argument_group("one run").add_argument
    one("--arm", help="name of the arm")
    one("--size", metavar="WxD", help="width and depth, of the arm's ladder; or WxDxH with the number of heads")
    one("--budget", type=float, metavar="FLOPS", help="executed training FLOPs")
    one("--seed", type=int, default=0, help="number of the replicate (default: 0)")
    one("--optimizer", default="", metavar="NAME", help="optimiser (default: by the arm's recipe)")
    one("--preset", default="quick", help="preset of the compute grid whose data it trains on (default: quick)")
    add_plugin_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    single = {name: getattr(args, name) for name in ("arm", "size", "budget")}
    given = [f"--{name}" for name, value in single.items() if value is not None]
    if args.plan is not None and given:
        raise InputError(f"{', '.join(given)} name one run, {args.plan} several: give one or the other")
    if args.plan is None and len(given) < len(single):
        raise InputError("name a plan, or one run by --arm, --size and --budget (eqscale train --help)")
    load_plugins(args)
    import torch

    from eqscale.study.alone import read_plan, share, train_alone

    planned = [_one_run(args)] if args.plan is None else read_plan(args.plan)
    planned = share(planned, args.shard)
    torch.set_num_threads(1)
    return 1 if train_alone(planned, args.records, args.data, args.weights, _say) else 0


def _say(line: str) -> None:
    print(line, flush=True)


def _one_run(args: argparse.Namespace) -> Planned:
    from eqscale.arms import get_arm
    from eqscale.study.alone import Planned
    from eqscale.study.grid import data_spec, design_run
    from eqscale.study.presets import COMPUTE_GRIDS, overridden
    from eqscale.training.optim import get_optimizer

    if args.preset not in COMPUTE_GRIDS:
        raise InputError(f"unknown preset {args.preset!r}; choose from {', '.join(COMPUTE_GRIDS)}")
    if not 0 < args.budget < float("inf"):
        raise InputError(f"--budget must be positive and finite, not {args.budget:g}")
    if args.optimizer:
        get_optimizer(args.optimizer)
    arm = get_arm(args.arm)
    preset = overridden(COMPUTE_GRIDS[args.preset], {"arms": (arm.name,), "optimizer": args.optimizer})
    spec = design_run(arm, _size(arm, args.size), args.budget, preset, args.seed)
    return Planned(spec, data_spec(preset))


def _size(arm: Arm, text: str) -> Size:
    from eqscale.arms import Size

    rungs = {str(size): size for size in arm.ladder}
    if text in rungs:
        return rungs[text]
    try:
        width, depth, heads = map(int, text.split("x"))
        if min(width, depth, heads) < 1:
            raise ValueError
    except ValueError:
        raise InputError(
            f"--size {text!r}: write WIDTHxDEPTHxHEADS, or a size of {arm.name}'s ladder ({', '.join(rungs)})"
        ) from None
    return Size(width, depth, heads)
