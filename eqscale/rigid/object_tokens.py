"""The other view of a sample: one token per object, its vertices as channels of the token."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from eqscale.rigid.batch import Batch


@dataclasses.dataclass(frozen=True)
class ObjectBatch:
    """B windows with up to N object tokens of up to V vertices; padding holds zeros.

    The order of an object's vertices is arbitrary but fixed; the physics does not depend on it. Global fields
    (floor, gravity, scene) are those of ``vertices``.
    """

    position: Tensor
    """(B, N, V, 3), m."""
    velocity: Tensor
    """(B, N, V, 3), m/s."""
    target: Tensor
    """(B, N, V, 3), in units of sigma."""
    vertex_mask: Tensor
    """(B, N, V), bool."""
    center: Tensor
    """(B, N, 3), m."""
    center_velocity: Tensor
    """(B, N, 3), m/s."""
    material: Tensor
    """(log mass/kg, friction, restitution), (B, N, 3)."""
    mask: Tensor
    """(B, N), bool."""
    contact: Tensor
    """(B, N), int64, as in the vertex view."""
    vertices: Batch
    """The vertex view it was made from."""
    rank: Tensor
    """Place of each vertex token within its object, (B, T), int64."""

    def to_vertex_tokens(self, values: Tensor) -> Tensor:
        """Values per object and vertex (B, N, V, ...) per vertex token (B, T, ...), zero if padded."""
        batch = self.vertices
        row = torch.arange(len(values), device=values.device)[:, None]
        tokens = values[row, batch.object_index, self.rank]
        return tokens * batch.mask.reshape(*batch.mask.shape, *[1] * (tokens.dim() - 2))


def by_object(batch: Batch, max_objects: int, max_vertices: int) -> ObjectBatch:
    """One token per object, padded to the family's ``max_objects`` and ``max_vertices``.

    A fixed width keeps the number of channels the same for every batch.
    """
    b, t = batch.mask.shape
    device = batch.mask.device
    row = torch.arange(b, device=device)[:, None].expand(b, t)[batch.mask]
    body = batch.object_index[batch.mask]
    counts = torch.zeros(b, max_objects, dtype=torch.int64, device=device)
    counts.index_put_((row, body), torch.ones_like(body), accumulate=True)
    # Tokens of a window come object by object, so an object's first token is the sum of the counts before it.
    first = counts.cumsum(1) - counts
    place = torch.arange(t, device=device).expand(b, t)
    rank = (place - first.gather(1, batch.object_index)) * batch.mask
    slot = (row, body, rank[batch.mask])

    def spread(values: Tensor) -> Tensor:
        out = values.new_zeros(b, max_objects, max_vertices, *values.shape[2:])
        out[slot] = values[batch.mask]
        return out

    return ObjectBatch(
        position=spread(batch.position),
        velocity=spread(batch.velocity),
        target=spread(batch.target),
        vertex_mask=spread(batch.mask),
        # Every vertex of an object carries the object's own values: the first one's will do.
        center=spread(batch.center)[:, :, 0],
        center_velocity=spread(batch.center_velocity)[:, :, 0],
        material=spread(batch.material)[:, :, 0],
        mask=counts > 0,
        contact=spread(batch.contact)[:, :, 0],
        vertices=batch,
        rank=rank,
    )
