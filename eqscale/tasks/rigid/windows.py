"""Windows of a dataset as typed batches: start state in, residual to ballistic motion out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from eqscale.tasks.fields import Batch, Field, Kind, Later, Schema
from eqscale.tasks.rigid.engine import FRAME_RATE
from eqscale.tasks.rigid.families import Family
from eqscale.tasks.rigid.scene import GRAVITY, rotation_matrix
from eqscale.tasks.samples import Samples

FRAMES = 32
"""Recorded frames after the start, at 24 Hz."""

HORIZONS = (1, 2, 4, 8)
"""Frames to predict ahead; 4 (1/6 s) is the main task."""

STARTS = 24
"""Windows start at frames 1..24 of a scene."""

FRAME_PROTOCOLS = ("random", "upright")

_SPEED = 2.0  # typical, m/s

SCHEMA = Schema(
    fields=(
        Field("position", Kind.POINT, unit="m", relative_to="center"),
        Field("center", Kind.POINT, unit="m"),
        Field("velocity", Kind.DIRECTION, unit="m/s", scale=_SPEED, relative_to="center_velocity", at="position"),
        Field("center_velocity", Kind.DIRECTION, unit="m/s", scale=_SPEED),
        Field("material", Kind.INVARIANT, channels=3),
        Field("floor", Kind.PLANE, "sample", unit="m"),
        Field("gravity", Kind.DIRECTION, "sample", unit="m/s^2", scale=GRAVITY),
        Field("floor_material", Kind.INVARIANT, "sample", channels=2),
    ),
    target=Field("residual", Kind.DIRECTION, at="position"),
)
"""A window: vertices (position, velocity v + omega x r) with their object's centre of mass and material (log mass/kg,
friction, restitution), and the floor n.x = d with its (friction, restitution). Coordinates are those of the scene's own
frame, relative to the mean centre of mass of its objects at the start. The target is the residual to ballistic motion
after the horizon, in units of sigma_h; its weight is 1 / (objects in the scene x vertices of the object)."""


def record_type(family: Family) -> np.dtype:
    """One scene as stored: padded to the family's most objects and vertices; float32 but for the frame."""
    n, v = family.max_objects, family.max_vertices
    return np.dtype(
        [
            ("trajectory", "<f4", (FRAMES + 1, n, 13)),  # position, quaternion w x y z, velocity, spin (world)
            ("vertices", "<f4", (n, v, 3)),  # about the centre of mass, principal axes
            ("mass", "<f4", (n,)),
            ("friction", "<f4", (n,)),
            ("restitution", "<f4", (n,)),
            ("floor", "<f4", (2,)),  # friction, restitution
            ("frame", "<f8", (3, 3)),  # the scene's element of O(3)
            ("contact", "u1", (FRAMES, n)),  # within the interval: 1 floor, 2 object, 3 both
            ("count", "u1", (n,)),  # vertices of each object, 0 where there is none
        ]
    )


def cross_matrix(v: np.ndarray) -> np.ndarray:
    """Matrices (..., 3, 3) with cross_matrix(v) @ r = v x r."""
    out = np.zeros((*v.shape, 3), v.dtype)
    out[..., 0, 1], out[..., 0, 2], out[..., 1, 2] = -v[..., 2], v[..., 1], -v[..., 0]
    out[..., 1, 0], out[..., 2, 0], out[..., 2, 1] = v[..., 2], -v[..., 1], v[..., 0]
    return out


def rotation_by(vector: np.ndarray) -> np.ndarray:
    """Rotations exp([v]x), (..., 3, 3), of rotation vectors (..., 3)."""
    angle = np.linalg.norm(vector, axis=-1, keepdims=True)
    half = 0.5 * angle
    # np.sinc(x) = sin(pi x) / (pi x) is exact at 0, where the axis is undefined.
    return rotation_matrix(np.concatenate([np.cos(half), 0.5 * np.sinc(half / np.pi) * vector], axis=-1))


class Windows(Samples):
    """The windows of a split in one frame protocol; window = scene x samples_per_system + (start frame - 1).

    Two windows of a scene share their objects and overlap in time.
    """

    schema = SCHEMA
    samples_per_system = STARTS

    def __init__(self, shards: Sequence[np.ndarray], horizon: int, sigma: float, time_step: float, frame: str):
        self.horizon, self.sigma, self.frame = horizon, sigma, frame
        self.options = {"horizon": horizon, "frame": frame}
        self.time = horizon / FRAME_RATE
        """Seconds between start and target."""
        self.time_step = time_step
        """Seconds per physics step: ballistic motion is that of semi-implicit Euler."""
        self.n_systems = sum(len(s) for s in shards)
        self._shard_size = len(shards[0])  # of all but the last
        # Large fields stay on disk (the page cache is shared by all trials); small ones are gathered.
        self._trajectory = [np.asarray(s["trajectory"]) for s in shards]
        self._vertices = [np.asarray(s["vertices"]) for s in shards]
        self._count = np.concatenate([s["count"] for s in shards])
        self._material = np.stack(
            [np.concatenate([s[f] for s in shards]) for f in ("mass", "friction", "restitution")], axis=-1
        )
        present = self._count > 0
        self._material[..., 0] = np.log(self._material[..., 0], where=present, out=np.zeros(present.shape, np.float32))
        self._floor = np.concatenate([s["floor"] for s in shards])
        self._contact = np.concatenate([s["contact"] for s in shards])
        self.matrix = np.concatenate([s["frame"] for s in shards])
        if frame == "upright":
            self.matrix[:] = np.eye(3)
        """Each scene's element of O(3), (n_systems, 3, 3): takes the upright scene into its frame."""
        self.tokens = self._count.sum(axis=1, dtype=np.int64)
        """Vertex tokens of each scene, (n_systems,)."""

    def states(self, scene: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stored, upright states (B, F, n, 13) at frames (B, F), and local vertices (B, n, V, 3)."""
        shard, local = np.divmod(scene, self._shard_size)
        n, v = self._vertices[0].shape[1:3]
        state = np.empty((*frames.shape, n, 13), np.float32)
        vertices = np.empty((len(scene), n, v, 3), np.float32)
        order = np.argsort(shard)
        for rows in np.split(order, np.flatnonzero(np.diff(shard[order])) + 1):
            k = shard[rows[0]]
            state[rows] = self._trajectory[k][local[rows, None], frames[rows]]
            vertices[rows] = self._vertices[k][local[rows]]
        return state, vertices

    def _real_slots(self, scene: np.ndarray, width: int) -> np.ndarray:
        """(object, vertex) slot of every token of the scenes, one scene after the other.

        Slots count through the flattened array (B, n, width).
        """
        return np.flatnonzero(np.arange(width) < self._count[scene][..., None])

    def track(self, indices: np.ndarray, later: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """True vertices ``later`` (F,) frames after the start, (F, B, T, 3), in the coordinates of ``batch``.

        None of these frames may lie beyond the last recorded one, 32.
        """
        scene, start = np.divmod(np.asarray(indices, np.int64), self.samples_per_system)
        state, local = self.states(scene, start[:, None] + 1 + np.append(0, later))
        state = state.astype(np.float64)
        mean = state[:, 0, :, :3].sum(axis=1) / (self._count[scene] > 0).sum(axis=1)[:, None]
        arms = local[:, None] @ rotation_matrix(state[:, 1:, :, 3:7]).swapaxes(-1, -2)
        turn = self.matrix[scene][:, None, None].swapaxes(-1, -2)
        world = (arms + (state[:, 1:, :, :3] - mean[:, None, None])[..., None, :]) @ turn
        mask = _mask(self.tokens[scene])
        tokens = np.zeros((len(later), *mask.shape, 3))
        slots = world.swapaxes(0, 1).reshape(len(later), -1, 3)
        tokens[:, mask] = slots[:, self._real_slots(scene, local.shape[2])]
        return torch.from_numpy(tokens).to(dtype)

    def batch(self, indices: np.ndarray, dtype: torch.dtype = torch.float32) -> Batch:
        """As ``Samples.batch``."""
        indices = np.asarray(indices, np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"window indices must lie in 0..{len(self) - 1}")
        scene, start = np.divmod(indices, self.samples_per_system)
        start = start + 1
        state, vertices = self.states(scene, np.stack([start, start + self.horizon], axis=1))
        count, matrix = self._count[scene], self.matrix[scene]
        b, n, v = vertices.shape[:3]
        objects = (count > 0).sum(axis=1)
        precision = np.float64 if dtype == torch.float64 else np.float32
        state, matrix = state.astype(precision, copy=False), matrix.astype(precision, copy=False)

        # Per object, a token's position, velocity and target are affine in its local vertex. Shapes are
        # (b, xyz, quantity, n, local): one product per window turns all of them into the scene's frame.
        begin, end = state[:, 0], state[:, 1]
        flown, turned = ballistic(begin, self.time, self.time_step)
        turn, turn_end = rotation_matrix(state[..., 3:7]).swapaxes(0, 1)
        mean = begin[..., :3].sum(axis=1) / objects[:, None]  # absent objects lie at 0
        affine = np.empty((b, 3, 3, n, 4), precision)
        affine[:, :, 0, :, :3] = turn.swapaxes(1, 2)
        affine[:, :, 1, :, :3] = (cross_matrix(begin[..., 10:]) @ turn).swapaxes(1, 2)
        affine[:, :, 2, :, :3] = ((turn_end - turned @ turn) / precision(self.sigma)).swapaxes(1, 2)
        affine[:, :, 0, :, 3] = (begin[..., :3] - mean[:, None]).swapaxes(1, 2)
        affine[:, :, 1, :, 3] = begin[..., 7:10].swapaxes(1, 2)
        affine[:, :, 2, :, 3] = ((end[..., :3] - flown) / precision(self.sigma)).swapaxes(1, 2)
        affine = (matrix @ affine.reshape(b, 3, -1)).reshape(b, 3, 3, n, 4)

        # One row per slot and quantity, and a last row of zeros for the padding.
        homogeneous = np.ones((b, n, v, 4), precision)
        homogeneous[..., :3] = vertices
        columns = np.ascontiguousarray(affine.transpose(0, 3, 4, 2, 1)).reshape(b, n, 4, 9)
        by_slot = np.zeros((b * n * v + 1, 9), precision)
        np.matmul(homogeneous, columns, out=by_slot[:-1].reshape(b, n, v, 9))
        by_object = np.zeros((b * n + 1, 9), precision)
        by_object[:-1, :6] = columns[:, :, 3, :6].reshape(-1, 6)
        by_object[:-1, 6:] = self._material[scene].reshape(-1, 3)
        slot_rows, object_rows = by_slot.reshape(-1, 3), by_object.reshape(-1, 3)
        weight = np.zeros(b * n + 1, precision)
        weight[:-1] = (1.0 / (objects[:, None] * np.maximum(count, 1))).astype(precision).reshape(-1)

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(dtype)

        def contact() -> torch.Tensor:
            touched = np.bitwise_or.reduce(self._contact[scene[:, None], start[:, None] + np.arange(self.horizon)], 1)
            by_body = np.zeros(b * n + 1, np.int64)
            by_body[:-1] = np.minimum(touched, 2).reshape(-1)
            return torch.from_numpy(by_body.take(body))

        vertical = np.ascontiguousarray(matrix[:, :, 2])
        mask = _mask(self.tokens[scene])
        slot = np.full(mask.shape, b * n * v)
        slot[mask] = self._real_slots(scene, v)
        body, three = slot // v, np.arange(3)[:, None, None]
        vectors = slot_rows.take(3 * slot + three, axis=0)
        vectors_of_object = object_rows.take(3 * body + three, axis=0)
        return Batch(
            schema=SCHEMA,
            values={
                "position": tensor(vectors[0]),
                "center": tensor(vectors_of_object[0]),
                "velocity": tensor(vectors[1]),
                "center_velocity": tensor(vectors_of_object[1]),
                "material": tensor(vectors_of_object[2]),
                "floor": tensor(np.concatenate([vertical, -mean[:, 2:]], axis=1)),
                "gravity": tensor(-GRAVITY * vertical),
                "floor_material": tensor(self._floor[scene]),
            },
            mask=torch.from_numpy(mask),
            target=tensor(vectors[2]),
            weight=torch.from_numpy(weight.take(body)),
            system=torch.from_numpy(scene),
            labels=Later(object_index=lambda: torch.from_numpy(body % n * mask), contact=contact),  # not for training
        )


def _mask(tokens: np.ndarray) -> np.ndarray:
    """Which of the padded tokens are real: (B,) counts -> (B, T)."""
    return np.arange(tokens.max(initial=0)) < tokens[:, None]


def ballistic(state: np.ndarray, time: float, time_step: float) -> tuple[np.ndarray, np.ndarray]:
    """Free flight of upright states (..., 13): centres of mass (..., 3) and rotations since (..., 3, 3).

    The engine's semi-implicit Euler falls by g T (T + dt) / 2; spin is constant by definition.
    """
    flown = state[..., :3] + time * state[..., 7:10]
    flown[..., 2] -= 0.5 * GRAVITY * time * (time + time_step)
    return flown, rotation_by(time * state[..., 10:])


def residual_rms(records: np.ndarray, horizon: int, time_step: float) -> float:
    """Root mean square of the residual to ballistic motion, m, with equal weights as in the loss.

    Targets in this unit have, on average, weighted squared length 1: the loss of predicting zero.
    """
    windows = Windows([records], horizon, 1.0, time_step, "upright")
    total = 0.0
    for indices in np.array_split(np.arange(len(windows)), windows.n_systems):
        batch = windows.batch(indices, dtype=torch.float64)
        total += float((batch.weight * batch.target.square().sum(-1)).sum())
    return float(np.sqrt(total / len(windows)))
