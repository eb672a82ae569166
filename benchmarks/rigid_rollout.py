"""What the rollout protocol itself costs: the simulator as predictor, against ballistic motion.

    python benchmarks/rigid_rollout.py [--scenes 60]

A rollout knows positions at each step and estimates velocities from them (eqscale.rigid.rollout). Here the
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

from eqscale.rigid.batch import Batch
from eqscale.rigid.dataset import DatasetSpec, open_split, prepare
from eqscale.rigid.engine import simulate
from eqscale.rigid.motion import Objects, ballistic, spin
from eqscale.rigid.rollout import STEPS, evaluate_rollout
from eqscale.rigid.scene import sample_scene
from eqscale.rigid.windows import Windows


class Simulator:
    """A predictor that knows the physics: simulates each window of a batch from its state, in upright frames."""

    def __init__(self, spec: DatasetSpec, windows: Windows):
        self.spec, self.windows = spec, windows

    def __call__(self, batch: Batch) -> Tensor:
        objects = Objects(batch)
        free = ballistic(batch, objects, self.windows.time, self.windows.time_step).position
        omega, velocity = spin(batch, objects).numpy(), objects.mean(batch.center_velocity).numpy()
        center = objects.mean(batch.center).numpy()
        out = torch.zeros_like(batch.target)
        for row, index in enumerate(batch.scene.tolist()):
            scene = sample_scene(self.spec.family, self.spec.seed, "test", index)
            body = batch.object_index[row][batch.mask[row]].numpy()
            arms = (batch.position - batch.center)[row][batch.mask[row]].numpy()
            turns = [
                Rotation.align_vectors(arms[body == k], v)[0].as_quat() for k, v in enumerate(scene.vertices)
            ]
            n = scene.n
            state = dataclasses.replace(
                scene,
                position=center[row, :n],
                velocity=velocity[row, :n],
                spin=omega[row, :n],
                quaternion=np.array(turns)[:, [3, 0, 1, 2]],
                floor_offset=float(batch.floor_offset[row]),
            )
            end = np.concatenate([t[-1] for t in simulate(state, self.windows.horizon).vertices(state)])
            residual = torch.from_numpy(end) - free[row][batch.mask[row]]
            out[row][batch.mask[row]] = residual / self.windows.sigma
        return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    spec = DatasetSpec("S", 128, args.scenes)
    with tempfile.TemporaryDirectory() as folder:
        prepare(spec, Path(folder), workers=1)
        windows = open_split(spec, Path(folder), "test", frame="upright")
        indices = np.arange(0, len(windows), windows.windows_per_scene)
        indices = np.concatenate([indices, indices + 4])
        print(f"Family S, {args.scenes} scenes, {len(indices)} rollouts; rms over objects.\n")
        print(f"| predictor | error | {' | '.join(f'{k}/6 s' for k in range(1, STEPS + 1))} |")
        print("|---" * (STEPS + 2) + "|")
        for name, predict in (
            ("ballistic", lambda batch: torch.zeros_like(batch.target)),
            ("simulator", Simulator(spec, windows)),
        ):
            result = evaluate_rollout(predict, windows, indices, dtype=torch.float64)
            print(
                f"| {name} | translation, m | {' | '.join(f'{x:.3f}' for x in result.translation_rmse_m)} |"
            )
            print(f"| {name} | rotation, deg | {' | '.join(f'{x:.1f}' for x in result.rotation_rmse_deg)} |")


if __name__ == "__main__":
    main()
