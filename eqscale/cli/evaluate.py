"""``eqscale evaluate``: every metric of the benchmark for the final weights of a run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eqscale.cli.arm_files import add_arm_file_option, load_arm_files

if TYPE_CHECKING:
    from rich.table import Table

    from eqscale.measure.evaluation import Assessment


def register(subparsers) -> None:
    """Add the verb ``evaluate``."""
    parser = subparsers.add_parser(
        "evaluate",
        help="print every metric of the benchmark for the final weights of a run",
        description="Evaluate final weights on the run's test windows: error with its standard error over scenes, "
        "by what a body touches, of centres, rotations and shapes; the equivariance error |f(gx) - g f(x)| / |f(x)|; "
        "and rollouts. "
        "Ballistic motion is shown for comparison.",
        epilog="Examples: eqscale evaluate studies/quick/weights/RUN_ID.pt; "
        "eqscale evaluate studies/quick/weights/RUN_ID.pt --frames random --average 8 --json metrics.json",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="final weights of a run")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data sets (default: data)")
    parser.add_argument(
        "--frames",
        nargs="+",
        choices=("random", "upright"),
        default=["random", "upright"],
        help="frames of the test windows: each scene in a frame of its own, or gravity along -z (default: both)",
    )
    parser.add_argument(
        "--average",
        type=int,
        default=1,
        metavar="K",
        help="also average predictions over K elements of the frame's symmetry group: rotations and reflections of "
        "random frames, turns about the vertical and mirror of upright ones (default: 1, no averaging)",
    )
    parser.add_argument(
        "--rollout",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="length of the rollouts, rounded to steps of the run's horizon; 0 for none (default: 1)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file as well")
    add_arm_file_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print, and write the JSON file if one is asked for."""
    from eqscale.console import make_console
    from eqscale.errors import InputError
    from eqscale.measure.evaluation import assess, ballistic, evaluation_content, predictor, rollout_steps
    from eqscale.rigid.dataset import open_stored
    from eqscale.training.loop import load_trained

    load_arm_files(args)
    if args.average < 1:
        raise InputError(f"--average {args.average}: must be at least 1 (1: no averaging)")
    if args.json is not None and not args.json.parent.is_dir():
        raise InputError(f"--json {args.json}: there is no folder {str(args.json.parent)!r}")
    spec, model = load_trained(args.checkpoint)
    frames = list(dict.fromkeys(args.frames))
    try:
        opened = [
            open_stored(
                spec.data, args.data, "test", horizon=spec.horizon, frame=frame, scenes=spec.test_scenes
            )
            for frame in frames
        ]
    except InputError as error:
        raise InputError(
            f"{error}; checkpoint {str(args.checkpoint)!r} was tested on them: name their folder with --data"
        ) from error
    steps = rollout_steps(args.rollout, opened[0])

    console = make_console()
    columns = []
    for windows in opened:
        contestants = [("ballistic", ballistic, 1), ("model", predictor(model), 1)]
        if args.average > 1:
            contestants.append((f"model, mean of {args.average}", predictor(model), args.average))
        for name, predict, average in contestants:
            with console.status(f"{windows.frame} frames: {name}"):
                columns.append((name, assess(predict, spec, windows, average, steps)))
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    console.print(
        f"{spec.name}: {parameters:,} parameters, trained for {spec.steps:,} steps in {spec.frame} frames on "
        f"{spec.train_scenes:,} scenes; data {spec.data[:12]}",
        highlight=False,
    )
    console.print(_errors(columns))
    if steps:
        console.print(_rollouts(columns))
    if args.json is not None:
        content = evaluation_content(args.checkpoint, spec, columns)
        args.json.write_text(json.dumps(content, indent=1) + "\n")
        console.print(f"written: {args.json}", highlight=False)
    return 0


def _table(title: str, columns: Sequence[tuple[str, Assessment]], *leading: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for name in leading:
        table.add_column(name)
    for name, assessment in columns:
        table.add_column(f"{assessment.frame}\n{name}", justify="right")
    return table


def _errors(columns: Sequence[tuple[str, Assessment]]) -> Table:
    one = columns[0][1].errors
    table = _table(f"{one.n_windows:,} test windows of {one.n_scenes:,} scenes", columns, "error")

    def row(label: str, value: Callable[[Assessment], str], end_section: bool = False) -> None:
        table.add_row(label, *(value(assessment) for _, assessment in columns), end_section=end_section)

    def by_contact(contact: str) -> Callable[[Assessment], str]:
        return lambda a: f"{a.errors.nmse_by_contact[contact]:.4f}"

    row("NMSE (ballistic motion = 1)", lambda a: f"{a.errors.nmse:.4f}")
    row("  standard error over scenes", lambda a: f"± {a.errors.nmse_se:.4f}")
    for contact, label in (("free", "in free flight"), ("floor", "floor only"), ("object", "another object")):
        row(f"  {label}, {one.contact_share[contact]:.0%} of bodies", by_contact(contact))
    row("vertices, m (rms)", lambda a: f"{a.errors.vertex_rmse_m:.4f}")
    row("centres of mass, m", lambda a: f"{a.errors.center_rmse_m:.4f}")
    row("rotation, degrees", lambda a: f"{a.errors.rotation_error_deg:.2f}")
    row("rigidity, m", lambda a: f"{a.errors.rigidity_error_m:.4f}", end_section=True)

    def symmetry(name: str, form: str) -> Callable[[Assessment], str]:
        return lambda a: "-" if _undefined(value := a.equivariance[name]) else format(value, form)

    labels = {
        "yaw": "turns about gravity",
        "rotation": "rotations",
        "reflection": "reflections",
        "translation": "shifts of 1 m, not centred",
        "permutation": "order of objects",
    }
    table.add_row("equivariance error (relative)")
    for name, label in labels.items():
        row(f"  {label}", symmetry(f"equivariance_{name}", ".2g"))
    row("share of the loss that full averaging removes", symmetry("equivariance_loss_share", ".2%"))
    return table


def _undefined(value: float) -> bool:
    return value != value


def _rollouts(columns: Sequence[tuple[str, Assessment]]) -> Table:
    rollouts = [assessment.rollout for _, assessment in columns if assessment.rollout is not None]
    title = f"{rollouts[0].n_windows:,} rollouts; rms error of bodies, and its growth since the first step"
    table = _table(title, columns, "error", "after")
    for label, field, form in (
        ("translation, m", "translation_rmse_m", ".3f"),
        ("rotation, degrees", "rotation_rmse_deg", ".1f"),
    ):
        values = [getattr(rollout, field) for rollout in rollouts]
        for k, time in enumerate(rollouts[0].time_s):
            cells = [f"{value[k]:{form}}  x {value[k] / value[0]:.1f}" for value in values]
            last = k == len(rollouts[0].time_s) - 1
            table.add_row(label if k == 0 else "", f"{time:.3g} s", *cells, end_section=last)
    return table
