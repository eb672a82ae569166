"""Restitution, penetration and energy of the benchmark's contacts.

    python benchmarks/rigid_contact.py [--scenes 80]

Impacts at 0.5 to 8 m/s and six sub-step phases, without gravity; then whole scenes of 2 s. Prints Markdown
tables; about two minutes on one core.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from eqscale.tasks.rigid.engine import ENGINES, EngineSettings, compile_model, initial_data, simulate
from eqscale.tasks.rigid.families import FAMILIES
from eqscale.tasks.rigid.restitution import damping_ratio, rebound
from eqscale.tasks.rigid.scene import GRAVITY, Scene, rotation_matrix, sample_scene
from eqscale.tasks.rigid.shapes import SMALL_HULLS, solid

RESTITUTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)
SPEEDS = (0.5, 1.0, 2.0, 4.0, 8.0)
PHASES = 6
HULLS = {hull.name: solid(hull) for hull in SMALL_HULLS}


def bodies(shapes: list[str], heights: list[float], speeds: list[float], restitution: float) -> Scene:
    """Hulls one above the other, moving vertically; no gravity; restitution of every pair as given."""
    n = len(shapes)
    parts = [HULLS[s] for s in shapes]
    each = math.sqrt(restitution)
    return Scene(
        vertices=tuple(p.vertices for p in parts),
        mass=np.array([p.volume for p in parts]),
        inertia=np.array([p.inertia for p in parts]),
        friction=np.full(n, 0.5),
        restitution=np.full(n, each),
        position=np.array([[0.0, 0.0, z] for z in heights]),
        quaternion=np.tile([1.0, 0, 0, 0], (n, 1)),
        velocity=np.array([[0.0, 0.0, v] for v in speeds]),
        spin=np.zeros((n, 3)),
        floor_friction=0.5,
        floor_restitution=each,
        gravity=np.zeros(3),
        floor_normal=np.array([0.0, 0.0, 1.0]),
        floor_offset=0.0,
    )


def impact(kind: str, restitution: float, speed: float, phase: float, settings: EngineSettings) -> float:
    """Rebound over impact speed of one collision."""
    gap = 0.2 + phase * speed * settings.time_step
    if kind == "two bodies":
        # A corner onto the middle of a face, far above the floor.
        scene = bodies(["box", "octahedron"], [50, 51 + gap], [speed / 2, -speed / 2], restitution)
        run = simulate(scene, 24, settings)
        v = run.state[-1, :, 9]
        return float((v[1] - v[0]) / speed)
    half = 0.5 + 1e-3  # the floor meets 1-mm spheres at the vertices
    scene = bodies([{"corner": "octahedron", "face": "box"}[kind]], [half + gap], [-speed], restitution)
    return float(simulate(scene, 24, settings).state[-1, 0, 9] / speed)


def restitution_table() -> None:
    print("Rebound over impact speed, mean [min, max] over speeds of 0.5-8 m/s and six sub-step phases; last row: the")
    print("mean that the textbook damping ratio -ln e / sqrt(pi^2 + ln^2 e) would give.\n")
    print(f"| engine | impact | {' | '.join(f'e = {e}' for e in RESTITUTIONS)} |")
    print("|---" * (len(RESTITUTIONS) + 2) + "|")
    for name, settings in ENGINES.items():
        for kind in ("corner", "face", "two bodies"):
            cells = []
            for e in RESTITUTIONS:
                found = [impact(kind, e, v, k / PHASES, settings) for v in SPEEDS for k in range(PHASES)]
                cells.append(f"{np.mean(found):.2f} [{min(found):.2f}, {max(found):.2f}]")
            where = {"corner": "corner on floor", "face": "face on floor", "two bodies": "corner on face"}[kind]
            print(f"| {name} | {where} | {' | '.join(cells)} |", flush=True)
    omega_dt = ENGINES["standard"].omega * ENGINES["standard"].time_step
    logs = np.log(RESTITUTIONS)
    textbook = rebound(-logs / np.sqrt(np.pi**2 + logs**2), omega_dt).mean(axis=1)
    print(f"| standard | textbook ratio, 1-d model | {' | '.join(f'{x:.2f}' for x in textbook)} |")
    print(f"\nSmallest restitution within reach: {rebound_floor(omega_dt):.3f} (standard).")


def rebound_floor(omega_dt: float) -> float:
    return float(rebound(np.array([damping_ratio(0.0, omega_dt)]), omega_dt).mean())


def energy(scene: Scene, state: np.ndarray) -> float:
    """Kinetic and potential energy of (n, 13) states, J (for unit density, up to its unit)."""
    spin = np.einsum("nji,nj->ni", rotation_matrix(state[:, 3:7]), state[:, 10:])
    kinetic = 0.5 * scene.mass * np.square(state[:, 7:10]).sum(1) + 0.5 * (scene.inertia * spin**2).sum(1)
    return float((kinetic + scene.mass * GRAVITY * state[:, 2]).sum())


def penetration(scene: Scene, settings: EngineSettings, seconds: float) -> tuple[float, float, int]:
    """Deepest overlap with the floor and between objects, m, over all physics steps; engine warnings."""
    import mujoco

    model = compile_model(scene, settings)
    data = initial_data(model, scene)
    deepest = np.zeros(2)
    for _ in range(round(seconds * settings.rate)):
        mujoco.mj_step(model, data)
        if data.ncon:
            floor = (data.contact.geom == 0).any(axis=1)
            depth = -data.contact.dist
            deepest = np.maximum(deepest, [depth[floor].max(initial=0), depth[~floor].max(initial=0)])
    return deepest[0], deepest[1], int(sum(w.number for w in data.warning))


def scene_table(families: list[str], scenes: int, seed: int) -> None:
    print(f"\n{scenes} scenes of 2 s. Deepest overlap of a scene in m, median and 99th percentile; energy relative to")
    print("the start: largest rise between two frames, and largest value at any frame; scenes with a state that is")
    print("not finite; engine warnings.\n")
    print("| family | engine | floor | between objects | energy rise | energy maximum | not finite | warnings |")
    print("|---" * 8 + "|")
    for name in families:
        for engine, settings in ENGINES.items():
            deep, rise, top, broken, warnings = [], 0.0, 0.0, 0, 0
            for index in range(scenes):
                scene = sample_scene(FAMILIES[name], seed, "test", index)
                run = simulate(scene, 48, settings)
                broken += not np.isfinite(run.state).all()
                e = np.array([energy(scene, s) for s in run.state])
                rise, top = max(rise, np.diff(e).max() / e[0]), max(top, e.max() / e[0])
                *depths, warned = penetration(scene, settings, 2.0)
                deep.append(depths)
                warnings += warned
            middle, high = np.quantile(deep, [0.5, 0.99], axis=0)
            print(
                f"| {name} | {engine} | {middle[0]:.3f}, {high[0]:.3f} | {middle[1]:.3f}, {high[1]:.3f} | "
                f"{rise:.1%} | {top:.3f} | {broken} | {warnings} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=["S", "M", "L"])
    parser.add_argument("--scenes", type=int, default=80)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    restitution_table()
    scene_table(args.families, args.scenes, args.seed)


if __name__ == "__main__":
    main()
