"""``eqscale scenes``: look at a scene of the benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(subparsers) -> None:
    """Add the verb ``scenes``."""
    parser = subparsers.add_parser(
        "scenes",
        help="simulate a scene and write it as an animation",
        description="Simulate one scene of the rigid-body benchmark and write it as a GIF in real time.",
        epilog="Example: eqscale scenes --family M --seed 3 --out scene.gif",
    )
    parser.add_argument("--family", default="S", help="scene family: S, M or L (default: S)")
    parser.add_argument(
        "--meshes",
        type=Path,
        metavar="DIR",
        help="throw the convex hulls of this folder's .obj meshes instead of the family's own shapes",
    )
    parser.add_argument("--seed", type=int, default=0, help="dataset seed (default: 0)")
    parser.add_argument("--index", type=int, default=0, help="which scene of the training split (default: 0)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of the simulation (default: 2)")
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
    scene = sample_scene(chosen, args.seed, "train", args.index)
    title = f"family {chosen.name}, seed {args.seed}, scene {args.index}"
    print(f"wrote {animate_scene(scene, out, args.seconds, title)}: {scene.n} objects, {args.seconds:g} s")
    return 0
