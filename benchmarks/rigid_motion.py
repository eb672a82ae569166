"""Baselines, contacts, sensitivity and what finite differences lose, on the benchmark's scenes.

    python benchmarks/rigid_motion.py [--families S M L] [--scenes 100] [--windows 200]

Errors are rms over vertices, then objects, then windows, as in the loss. Prints Markdown tables; about three
minutes on one core.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
from scipy.spatial.transform import Rotation

from eqscale.tasks.rigid.engine import FRAME_RATE, simulate
from eqscale.tasks.rigid.families import FAMILIES
from eqscale.tasks.rigid.scene import Scene, rotation_matrix, sample_scene
from eqscale.tasks.rigid.windows import STARTS

HORIZONS = (1, 2, 4, 8, 24)
EPSILONS = (1e-6, 1e-4)
DELTAS = (24, 48, 96, 240, 480)
STEP = 1 / 480


def square(scene: Scene, a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """Mean over vertices, then objects, of the squared distance between vertex lists."""
    return float(np.mean([np.square(x - y).sum(-1).mean() for x, y in zip(a, b, strict=True)]))


def ballistic(scene: Scene, time: float) -> list[np.ndarray]:
    center = scene.position + time * scene.velocity + 0.5 * time * (time + STEP) * scene.gravity
    turned = Rotation.from_rotvec(time * scene.spin).as_matrix() @ rotation_matrix(scene.quaternion)
    return [c + v @ r.T for c, v, r in zip(center, scene.vertices, turned, strict=True)]


def now(scene: Scene) -> list[np.ndarray]:
    turn = rotation_matrix(scene.quaternion)
    return [c + v @ r.T for c, v, r in zip(scene.position, scene.vertices, turn, strict=True)]


def drift(scene: Scene, time: float) -> list[np.ndarray]:
    """Every vertex goes on at its own velocity."""
    here = now(scene)
    rows = zip(here, scene.position, scene.velocity, scene.spin, strict=True)
    return [x + time * (v + np.cross(w, x - c)) for x, c, v, w in rows]


def perturbed(scene: Scene, epsilon: float, rng: np.random.Generator) -> Scene:
    turn = Rotation.from_rotvec(epsilon * rng.normal(size=(scene.n, 3)))
    rotation = turn * Rotation.from_quat(scene.quaternion[:, [1, 2, 3, 0]])
    return dataclasses.replace(
        scene,
        position=scene.position + epsilon * rng.normal(size=(scene.n, 3)),
        velocity=scene.velocity + epsilon * rng.normal(size=(scene.n, 3)),
        spin=scene.spin + epsilon * rng.normal(size=(scene.n, 3)),
        quaternion=rotation.as_quat()[:, [3, 0, 1, 2]],
    )


def ends(scene: Scene, frames: int) -> list[list[np.ndarray]]:
    """Vertices at each frame 0..frames."""
    found = simulate(scene, frames).vertices(scene)
    return [[t[f] for t in found] for f in range(frames + 1)]


def baselines(name: str, scenes: int, windows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    chosen = FAMILIES[name]
    runs = [
        (s, simulate(s, STARTS + HORIZONS[-1])) for s in (sample_scene(chosen, seed, "test", i) for i in range(scenes))
    ]
    sums = np.zeros((len(HORIZONS), 3))
    contacts = np.zeros((len(HORIZONS), 3))
    for scene, run in runs:
        tracks = run.vertices(scene)
        for start in range(1, STARTS + 1):
            state = run.restart(scene, start)
            for k, h in enumerate(HORIZONS):
                truth = [t[start + h] for t in tracks]
                guesses = (now(state), drift(state, h / FRAME_RATE), ballistic(state, h / FRAME_RATE))
                sums[k] += [square(scene, g, truth) for g in guesses]
                touched = run.contact[start : start + h].any(axis=0)
                contacts[k] += np.append(touched.mean(axis=0), touched.any(axis=1).mean())
    rms = np.sqrt(sums / (scenes * STARTS))
    share = contacts / (scenes * STARTS)

    error = np.zeros((len(HORIZONS), len(EPSILONS)))
    reference = np.zeros(len(HORIZONS))
    for k in range(windows):
        scene, run = runs[k % scenes]
        state = run.restart(scene, int(rng.integers(1, STARTS + 1)))
        truth = ends(state, HORIZONS[-1])
        reference += [square(scene, ballistic(state, h / FRAME_RATE), truth[h]) for h in HORIZONS]
        for j, epsilon in enumerate(EPSILONS):
            found = ends(perturbed(state, epsilon, rng), HORIZONS[-1])
            error[:, j] += [square(scene, found[h], truth[h]) for h in HORIZONS]
    nmse = error / reference[:, None]

    objects = np.mean([s.n for s, _ in runs])
    tokens = np.mean([sum(map(len, s.vertices)) for s, _ in runs])
    for k, h in enumerate(HORIZONS):
        label = f"{name} ({objects:.1f} objects, {tokens:.0f} vertices)" if k == 0 else ""
        cells = [f"{x:.3f}" for x in rms[k]]
        cells.append(" ".join(f"{100 * x:.0f}" for x in share[k]))
        cells += [f"{x:.0e}" for x in nmse[k]]
        print(f"| {label} | {h} | {' | '.join(cells)} |", flush=True)


def oracle(name: str, scenes: int, windows: int, seed: int) -> None:
    """NMSE of the simulator itself started from finite-difference velocities of two states 1/rate apart."""
    rng = np.random.default_rng(seed)
    chosen = FAMILIES[name]
    horizons = (1, 4, 8)
    error, reference = np.zeros((len(DELTAS), len(horizons))), np.zeros(len(horizons))
    for k in range(windows):
        scene = sample_scene(chosen, seed, "test", k % scenes)
        start = int(rng.integers(2, STARTS + 1))
        steps = simulate_steps(scene, start)
        state = at(scene, steps[-1])
        truth = ends(state, horizons[-1])
        reference += [square(scene, ballistic(state, h / FRAME_RATE), truth[h]) for h in horizons]
        for j, rate in enumerate(DELTAS):
            found = ends(differenced(at(scene, steps[-1 - round(480 / rate)]), state, 1 / rate), horizons[-1])
            error[j] += [square(scene, found[h], truth[h]) for h in horizons]
    nmse = error / reference
    for k, h in enumerate(horizons):
        print(f"| {name}, {h}/24 s | {' | '.join(f'{x:.1e}' for x in nmse[:, k])} |", flush=True)


def simulate_steps(scene: Scene, frame: int) -> np.ndarray:
    """States (21, n, 13) at the last 20 physics steps before a frame and at it."""
    import mujoco

    from eqscale.tasks.rigid.engine import ENGINES, compile_model, initial_data

    model = compile_model(scene, ENGINES["standard"])
    data = initial_data(model, scene)
    mujoco.mj_step(model, data, nstep=20 * (frame - 1))
    out = []
    for k in range(21):
        if k:
            mujoco.mj_step(model, data)
        out.append(np.concatenate([data.qpos.reshape(-1, 7), data.qvel.reshape(-1, 6)], axis=1))
    state = np.array(out)
    state[..., 10:] = np.einsum("fnij,fnj->fni", rotation_matrix(state[..., 3:7]), state[..., 10:])
    return state


def at(scene: Scene, state: np.ndarray) -> Scene:
    position, quaternion, velocity, spin = np.split(state, [3, 7, 10], axis=-1)
    return dataclasses.replace(scene, position=position, quaternion=quaternion, velocity=velocity, spin=spin)


def differenced(before: Scene, state: Scene, delta: float) -> Scene:
    """The state with velocities from differences, corrected for what gravity adds over the interval."""
    turns = [Rotation.from_quat(s.quaternion[:, [1, 2, 3, 0]]) for s in (before, state)]
    # Semi-implicit Euler: over k steps of free flight the mean velocity lags the last by g (delta - dt) / 2.
    velocity = (state.position - before.position) / delta + 0.5 * (delta - STEP) * state.gravity
    spin = (turns[1] * turns[0].inv()).as_rotvec() / delta
    return dataclasses.replace(state, velocity=velocity, spin=spin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=["S", "M", "L"])
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--windows", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(f"{args.scenes} scenes, all 24 starts each; sensitivity on {args.windows} windows. rms vertex error in m;")
    print("contacts in % of objects; NMSE relative to ballistic when the start state is perturbed by epsilon in")
    print("position (m), velocity (m/s), rotation (rad) and spin (rad/s).\n")
    heads = ["no motion", "constant velocity", "ballistic", "floor, object, any %"]
    heads += [f"eps {e:.0e}" for e in EPSILONS]
    print(f"| family | h | {' | '.join(heads)} |")
    print("|---" * (len(heads) + 2) + "|")
    for name in args.families:
        baselines(name, args.scenes, args.windows, args.seed)
    print("\nNMSE of the simulator started from finite-difference velocities, gravity corrected:\n")
    print(f"| family, horizon | {' | '.join(f'1/{d} s' for d in DELTAS)} |")
    print("|---" * (len(DELTAS) + 1) + "|")
    for name in args.families:
        oracle(name, args.scenes, args.windows, args.seed)


if __name__ == "__main__":
    main()
