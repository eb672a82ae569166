"""The arm that builds the symmetry in with invariants and vectors alone: does the multivector matter?"""

from __future__ import annotations

from torch import Tensor, nn

from eqscale.arms.base import Arm, Size
from eqscale.arms.inputs import in_one_call, places, pooled, tokens_have_places
from eqscale.arms.recipe import fitted_recipes
from eqscale.arms.vectors import centred, require_origin, vectors, vectors_width
from eqscale.models.flops import TrainingFlops
from eqscale.models.slim import Channels, Slim, SlimConfig, slim_training_flops
from eqscale.roles import Role
from eqscale.tasks import Batch, Kind, Prepared, Schema, Task


class SlimModel(nn.Module):
    """Slim GATr on tokens: Batch -> predicted targets."""

    def __init__(self, config: SlimConfig, schema: Schema) -> None:
        super().__init__()
        self.net = Slim(config)
        self.unit = schema.vector_unit

    def forward(self, batch: Batch) -> Tensor:
        """Predict the targets of a batch, in its own frame."""
        invariants, directions, _ = self.net(*self._seen(batch), batch.mask, self._points(batch))
        if batch.schema.target.kind is Kind.INVARIANT:
            return pooled(invariants, batch)
        return pooled(directions[:, :, 0], batch)

    def prepared(self, batch: Batch) -> Prepared | None:
        """What ``add_loss_gradient`` takes; None where it isn't one kernel call, as in a subclass or with hooks."""
        if not in_one_call(self, self.net, SlimModel, batch) or not self.net.runs_on_kernels(batch.target):
            return None
        x = self.net.joined(*self._seen(batch), batch.mask, self._points(batch))
        return Prepared((x, batch.mask, batch.target, batch.weight))

    def add_loss_gradient(self, given: Prepared, scale: float) -> Tensor:
        """The weighted squared error of samples times ``scale``, its gradient added to that of the parameters."""
        x, mask, target, weight = given.tensors
        return self.net.add_loss_gradient(x, mask, target, weight, scale)

    def _seen(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        true, pseudo, scalars = vectors(centred(batch), self.unit)
        return scalars, true, pseudo

    def _points(self, batch: Batch) -> Tensor | None:
        return places(batch)[0] if self.net.config.distances else None


def slim_config(size: Size, task: Task) -> SlimConfig:
    """Shape of the network."""
    require_origin(task.schema)
    target, (true, pseudo, scalars) = task.schema.target, vectors_width(task.schema)
    outputs = Channels(0, 1, 0) if target.kind is Kind.DIRECTION else Channels(target.width, 0, 0)
    return SlimConfig(
        Channels(scalars, true, pseudo), outputs, 2 * size.width, size.width, blocks=size.depth, heads=size.heads,
        distances=tokens_have_places(task.schema),
    )  # fmt: skip


def _build(size: Size, task: Task) -> nn.Module:
    return SlimModel(slim_config(size, task), task.schema)


def _flops(size: Size, task: Task) -> TrainingFlops:
    return slim_training_flops(slim_config(size, task))


# About 1e3 to 6e8 parameters; width counts true vectors, and as many pseudovectors and twice as many scalars. Deep from
# small sizes on, by the search of shapes (docs/training.md); beyond 1e5 parameters nothing was searched.
_LADDER = tuple(
    Size(width, depth, heads)
    for width, depth, heads in (
        (4, 1, 2), (5, 1, 2), (3, 4, 2), (4, 3, 2), (4, 4, 2), (5, 4, 2),
        (6, 4, 2), (6, 6, 2), (7, 6, 2), (8, 6, 4), (8, 8, 4), (10, 8, 4), (12, 8, 4), (14, 8, 4), (16, 8, 4),
        (20, 8, 4), (24, 8, 4), (28, 8, 4), (32, 9, 8), (40, 9, 8), (48, 9, 8), (56, 10, 8), (72, 9, 8),
        (80, 11, 8), (96, 11, 8), (112, 12, 8), (136, 12, 8), (160, 13, 8), (192, 14, 8), (224, 15, 8),
        (264, 16, 8), (312, 17, 8), (376, 17, 8), (448, 18, 8), (512, 21, 8), (592, 24, 8), (640, 26, 8),
    )
)  # fmt: skip

_RECIPES = fitted_recipes("gatr_slim")
ARMS = (
    Arm(
        "gatr_slim",
        "build it in with invariants, true vectors and pseudovectors alone, exactly E(3)-equivariant",
        Role.BUILD_IN,
        _build,
        _flops,
        _LADDER,
        _RECIPES[0],
        optimal_cost=0.25,
        packed=lambda size, device: Slim.packs(device),
        alternatives=_RECIPES[1:],
    ),
)
