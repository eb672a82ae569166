"""``eqscale scenes``: look at a scene of the benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eqscale.rigid.families import Family


def register(subparsers) -> None:
    """Add the verb ``scenes``."""
    parser = subparsers.add_parser(
        "scenes",
        help="simulate a scene and write it as an animation",
        description="Simulate one scene of the rigid-body benchmark and write it as a GIF in real time, or, given "
        "a checkpoint, a test scene's truth beside the model's prediction and rollout.",
        epilog="Examples: eqscale scenes --family M --seed 3 --out scene.gif; "
        "eqscale scenes --checkpoint studies/quick/weights/RUN_ID.pt --index 7",
    )
    parser.add_argument("--family", default="S", help="scene family: S, M or L (default: S)")
    parser.add_argument(
        "--meshes",
        type=Path,
        metavar="DIR",
        help="throw the convex hulls of this folder's .obj meshes instead of the family's own shapes",
    )
    parser.add_argument("--seed", type=int, default=0, help="dataset seed (default: 0)")
    parser.add_argument("--index", type=int, default=0, help="which scene of the split (default: 0)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of the simulation (default: 2)")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="final weights of a run: show its prediction beside the truth",
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data sets (default: data)")
    parser.add_argument("--out", type=Path, help="file to write (default: scene-FAMILY-SEED-INDEX.gif)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the animation and say where."""
    from eqscale.errors import InputError
    from eqscale.rigid.animate import animate_scene
    from eqscale.rigid.families import family
    from eqscale.rigid.meshes import family_of_meshes
    from eqscale.rigid.scene import sample_scene

    chosen = family(args.family)
    if args.meshes is not None:
        chosen = family_of_meshes(args.meshes, chosen)
    for name in ("seed", "index"):
        if getattr(args, name) < 0:
            raise InputError(f"--{name} {getattr(args, name)}: must be at least 0")
    if not 0 < args.seconds <= 60:
        raise InputError(f"--seconds {args.seconds:g}: must be above 0 and at most 60")
    out = args.out or Path(f"scene-{chosen.name}-{args.seed}-{args.index}.gif")
    if args.checkpoint is not None:
        return _animate_checkpoint(args, chosen, out)
    scene = sample_scene(chosen, args.seed, "train", args.index)
    title = f"family {chosen.name}, seed {args.seed}, scene {args.index}"
    print(f"wrote {animate_scene(scene, out, args.seconds, title)}: {scene.n} objects, {args.seconds:g} s")
    return 0


def _animate_checkpoint(args: argparse.Namespace, chosen: Family, out: Path) -> int:
    from eqscale.errors import InputError
    from eqscale.rigid.animate import animate_prediction
    from eqscale.rigid.dataset import DatasetSpec, open_split, prepare
    from eqscale.training.loop import load_trained

    spec, model = load_trained(args.checkpoint)
    data = DatasetSpec(family=chosen, train_scenes=1, test_scenes=args.index + 1, seed=args.seed)
    if data.digest != spec.data:
        raise InputError(
            f"checkpoint {str(args.checkpoint)!r} was trained on other data than family {chosen.name} with seed "
            f"{args.seed}: name them with --family and --seed"
        )
    prepare(data, args.data)
    windows = open_split(
        data, args.data, "test", horizon=spec.horizon, frame=spec.frame, scenes=args.index + 1
    )
    print(f"wrote {animate_prediction(model, windows, args.index, out, spec.name)}")
    return 0
