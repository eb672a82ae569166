"""A task file: charged, spinning particles before a wall; every kind of field takes part in their forces."""

import numpy as np
import torch

from eqscale.tasks import Field, Kind, Option, Schema, Task, Wording, register


class Toy(Task):
    words = Wording("toy", "From charged particles before a wall, predict which force acts on each")
    schema = Schema(
        fields=(
            Field("position", Kind.POINT, unit="m"),
            Field("velocity", Kind.DIRECTION, unit="m/s", at="position"),
            Field("spin", Kind.PSEUDOVECTOR, unit="rad/s"),
            Field("charge", Kind.INVARIANT),
            Field("wall", Kind.PLANE, "sample", unit="m"),
            Field("field", Kind.DIRECTION, "sample", unit="V/m"),
        ),
        target=Field("force", Kind.DIRECTION, at="position"),
    )
    options = (
        Option("strength", 0.5, "of the pull between charges"),
        Option("walls", "free", "how walls lie", ("free", "level")),
        Option("look", "plain", "how samples are looked at", ("plain", "close"), of_data=False),
    )

    def max_tokens(self, options):
        return 5

    def generate(self, options, seed, split, start, stop):
        made = [self._system(seed, split, k) for k in range(start, stop)]
        made = {name: np.stack([system[name] for system in made]) for name in made[0]}
        mask = np.arange(5) < made["tokens"][:, None]
        return made | {"target": self.force(made, mask, options["strength"])}

    def _system(self, seed, split, k):
        rng = np.random.default_rng([seed, split == "test", k])
        tokens, normal = rng.integers(2, 6), rng.normal(size=3)
        system = {name: rng.normal(size=(5, 3)) for name in ("position", "velocity", "spin")}
        return system | {
            "tokens": tokens,
            "charge": rng.normal(size=(5, 1)),
            "wall": np.append(normal / np.linalg.norm(normal), rng.normal()),
            "field": rng.normal(size=3),
        }

    def force(self, at, mask, strength):
        """Pull between pairs, lift by spin, the field, and a spring to the wall: (B, T, 3)."""
        x, normal, offset = at["position"], at["wall"][:, None, :3], at["wall"][:, None, 3]
        q = at["charge"] * mask[..., None]
        pull = strength * q * (np.einsum("bjk,bjx->bx", q, x)[:, None] - q.sum(1, keepdims=True) * x)
        spring = ((x * normal).sum(-1) - offset)[..., None] * normal
        return pull + np.cross(at["spin"], at["velocity"]) + q * at["field"][:, None] - spring

    def relabel(self, options, batch):
        values = {name: value.numpy() for name, value in batch.values.items()}
        force = self.force(values, batch.mask.numpy(), options["strength"]) * batch.mask.numpy()[..., None]
        return torch.from_numpy(force)


register(Toy())
