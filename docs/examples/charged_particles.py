"""A task of your own: where are charged particles 1,000 time steps later?

The charged N-body problem of Kipf et al. 2018 (arXiv 1802.04687), in space as in Fuchs et al. 2020 (2006.10503), with
the time steps of Satorras et al. 2021 (2102.09844): particles of charge +1 or -1 attract and repel each other.
"""

import numpy as np
import torch
from torch import Tensor

from eqscale.tasks import Batch, Field, Kind, Metric, Noun, Option, Options, Samples, Schema, Task, Wording, register
from eqscale.tasks.metrics import Errors
from eqscale.tasks.samples import StoredSamples

TIME_STEP = 0.001
LARGEST_FORCE = 100.0  # closer encounters are too fast for the time step
BEFORE, AHEAD = 3100, 1000  # steps from the start to the input, and from there to the target


class ChargedParticles(Task):
    """Trajectories as systems, one sample of each, particles as tokens; all masses are 1, all units Coulomb's law's."""

    words = Wording(
        name="charged_particles",
        sentence="From the state of charged particles that attract and repel each other, predict where they are 1,000 "
        "time steps later",
        unit=Noun("trajectory", "trajectories"),
        sample=Noun("trajectory", "trajectories"),
        trivial="free flight",
        metrics={"mse": "MSE of a coordinate"},
    )
    schema = Schema(
        fields=(
            Field("position", Kind.POINT, relative_to="center"),
            Field("velocity", Kind.DIRECTION, scale=0.6, at="position"),
            Field("charge", Kind.INVARIANT),
            Field("center", Kind.POINT, per="sample"),
        ),
        target=Field("deflection", Kind.DIRECTION, at="position"),
        length=2.0,
    )
    options = (Option("particles", 5, "particles of a system", (2, 3, 5, 10, 20)),)
    metrics = (Metric("mse", "mean squared error of a coordinate, as published"),)
    symmetry_tolerance = 1e-3  # most trajectories have 1e-14; a close encounter can amplify round-off to this

    def max_tokens(self, options: Options) -> int:
        """All samples have as many tokens."""
        return int(options["particles"])

    def generate(self, options: Options, seed: int, split: str, start: int, stop: int) -> dict[str, np.ndarray]:
        """Simulate trajectories ``start`` to ``stop - 1``, all at once; every one has random numbers of its own."""
        n = self.max_tokens(options)
        drawn = []
        for k in range(start, stop):
            rng = np.random.default_rng([seed, ("train", "test").index(split), k])
            position, velocity = rng.normal(size=(n, 3)), rng.normal(size=(n, 3))
            velocity *= 0.5 / np.linalg.norm(velocity, axis=1, keepdims=True)
            drawn.append((position * (n / 5) ** (1 / 3), velocity, rng.choice([-1.0, 1.0], n)))
        position, velocity, charge = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
        position, velocity = self.move(position, velocity, charge, BEFORE)
        position, velocity = (a.astype(np.float32).astype(float) for a in (position, velocity))  # as stored
        return {
            "position": position,
            "velocity": velocity,
            "charge": charge[..., None],
            "center": position.mean(1),
            "target": self.deflection(position, velocity, charge),
        }

    def deflection(self, position: np.ndarray, velocity: np.ndarray, charge: np.ndarray) -> np.ndarray:
        """What forces do to the positions (S, n, 3) until the target: the way beyond that of free flight."""
        moved, _ = self.move(position, velocity, charge, AHEAD)
        return moved - position - AHEAD * TIME_STEP * velocity

    def move(
        self, position: np.ndarray, velocity: np.ndarray, charge: np.ndarray, steps: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions and velocities (S, n, 3) of particles with charges (S, n) so many leapfrog steps later.

        Velocities are half a step behind. Arrays are turned to (3, n, S): numpy is fastest with systems last.
        """
        x, v, q = (np.ascontiguousarray(array.T) for array in (position, velocity, charge))
        product = q[:, None] * q
        itself = np.eye(len(q))[..., None]  # a distance of 1 for what is divided by it; the difference is 0
        for _ in range(steps):
            apart = x[:, None] - x[:, :, None]
            square = (apart * apart).sum(0) + itself
            v = v + TIME_STEP * self.cap((apart * (product / (square * np.sqrt(square)))).sum(1))
            x = x + TIME_STEP * v
        return x.T, v.T

    def cap(self, force: np.ndarray) -> np.ndarray:
        """Shorten the forces (3, n, S) that are too long for the time step."""
        length = np.sqrt((force * force).sum(0))
        return force * (LARGEST_FORCE / np.maximum(length, LARGEST_FORCE))

    def relabel(self, options: Options, batch: Batch) -> Tensor:
        """Simulate again from the inputs of a batch: with this, preparing the data checks the declared group."""
        inputs = (batch[name].double().numpy() for name in ("position", "velocity", "charge"))
        position, velocity, charge = inputs
        return torch.from_numpy(self.deflection(position, velocity, charge[..., 0]))

    def measure(self, errors: Errors, samples: Samples) -> dict[str, float]:
        """The published error: the mean over coordinates, in the simulation's unit of length."""
        assert isinstance(samples, StoredSamples)
        return {"mse": errors.mse * samples.target_rms**2 / 3}


register(ChargedParticles())
