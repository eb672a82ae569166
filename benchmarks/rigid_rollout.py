"""What the rollout protocol itself costs, and what ballistic motion scores.

    python benchmarks/rigid_rollout.py [--scenes 60]

A rollout knows positions at each step and estimates velocities from them (eqscale.tasks.rigid.rollout). Here the
simulator predicts each step perfectly from the state it is given: what error remains after a second is the
protocol's, and no model can be expected below it. Prints a Markdown table; about a minute on one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from eqscale.tasks.dataset import open_split, prepare
from eqscale.tasks.fields import Batch
from eqscale.tasks.rigid.engine import simulate
from eqscale.tasks.rigid.families import FAMILIES
from eqscale.tasks.rigid.metrics import CONTACTS, evaluate
from eqscale.tasks.rigid.motion import Objects, ballistic, kabsch, rotation_vector, spin
from eqscale.tasks.rigid.rollout import STEPS, evaluate_rollout
from eqscale.tasks.rigid.scene import sample_scene
from eqscale.tasks.rigid.task import data_spec
from eqscale.tasks.rigid.windows import STARTS, Windows


class Simulator:
    """A predictor that knows the physics: simulates each test window of family S from its state, upright."""

    def __init__(self, windows: Windows):
        self.windows = windows

    def __call__(self, batch: Batch) -> Tensor:
        objects = Objects(batch)
        free = ballistic(batch, objects, self.windows.time, self.windows.time_step).position
        omega, velocity = spin(batch, objects).numpy(), objects.mean(batch["center_velocity"]).numpy()
        center = objects.mean(batch["center"]).numpy()
        out = torch.zeros_like(batch.target)
        for row, index in enumerate(batch.system.tolist()):
            scene = sample_scene(FAMILIES["S"], 0, "test", index)
            body = batch["object_index"][row][batch.mask[row]].numpy()
            arms = (batch["position"] - batch["center"])[row][batch.mask[row]].numpy()
            turns = [Rotation.align_vectors(arms[body == k], v)[0].as_quat() for k, v in enumerate(scene.vertices)]
            n = scene.n
            state = dataclasses.replace(
                scene,
                position=center[row, :n],
                velocity=velocity[row, :n],
                spin=omega[row, :n],
                quaternion=np.array(turns)[:, [3, 0, 1, 2]],
                floor_offset=float(batch["floor"][row, 3]),
            )
            end = np.concatenate([t[-1] for t in simulate(state, self.windows.horizon).vertices(state)])
            residual = torch.from_numpy(end) - free[row][batch.mask[row]]
            out[row][batch.mask[row]] = residual / self.windows.sigma
        return out


def impulses(windows: Windows) -> None:
    """How well the change of velocity over a window follows from the residual of position, by least squares."""
    sums = np.zeros((2, 3))
    for index in range(windows.n_systems):
        first = index * windows.samples_per_system + np.arange(STARTS - windows.horizon)
        batch = windows.batch(first, dtype=torch.float64)
        later = windows.batch(first + windows.horizon, dtype=torch.float64)
        objects = Objects(batch)
        flight = ballistic(batch, objects, windows.time, windows.time_step)
        rotation, center = kabsch(batch, objects, flight.position + windows.sigma * batch.target)
        turn = rotation_vector(rotation @ flight.rotation.transpose(-1, -2))
        for k, (residual, change) in enumerate(
            (
                (center - flight.center, objects.mean(later["center_velocity"]) - flight.velocity),
                (turn, spin(later, objects) - flight.spin),
            )
        ):
            rate = residual / windows.time
            sums[k] += [float((rate * change).sum()), float(rate.square().sum()), float(change.square().sum())]
    print("\nChange of velocity over a window as a multiple of residual / T, least squares: factor, and share of")
    print("the variance it explains (a uniform moment of impact gives 1.50 and 75 %):\n")
    for k, name in enumerate(("velocity", "spin")):
        product, square, change = sums[k]
        print(f"- {name}: {product / square:.2f}, {product**2 / square / change:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    spec = data_spec("S", 128, args.scenes)
    with tempfile.TemporaryDirectory() as folder:
        prepare(spec, Path(folder), workers=1)
        windows = open_split(spec, Path(folder), "test", frame="upright")
        indices = np.arange(0, len(windows), windows.samples_per_system)
        indices = np.concatenate([indices, indices + 4])
        print(f"Family S, {args.scenes} scenes, {len(indices)} rollouts; rms over objects.\n")
        print(f"| predictor | error | {' | '.join(f'{k}/6 s' for k in range(1, STEPS + 1))} |")
        print("|---" * (STEPS + 2) + "|")
        for name, predict in (
            ("ballistic", lambda batch: torch.zeros_like(batch.target)),
            ("simulator", Simulator(windows)),
        ):
            result = evaluate_rollout(predict, windows, indices, dtype=torch.float64)
            print(f"| {name} | translation, m | {' | '.join(f'{x:.3f}' for x in result['translation_rmse_m'])} |")
            print(f"| {name} | rotation, deg | {' | '.join(f'{x:.1f}' for x in result['rotation_rmse_deg'])} |")
        impulses(windows)
        one = evaluate(lambda batch: torch.zeros_like(batch.target), windows, np.arange(len(windows)))
        print(
            "\nBallistic motion over 1/6 s, {n_windows} windows: vertices {vertex_rmse_m:.3f} m, centres of\nmass "
            "{center_rmse_m:.3f} m, rotation {rotation_error_deg:.1f} deg. By what a body touches:\n".format(**one)
        )
        print("| | free flight | floor only | another body |")
        print("|---|---|---|---|")
        print(f"| share | {' | '.join(f'{x:.1%}' for x in (one[f'share_{contact}'] for contact in CONTACTS))} |")
        print(f"| NMSE | {' | '.join(f'{x:.3f}' for x in (one[f'nmse_{contact}'] for contact in CONTACTS))} |")


if __name__ == "__main__":
    main()
