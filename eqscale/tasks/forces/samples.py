"""The typed sample: atoms of a molecule in, the force on each out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from eqscale.tasks.fields import Batch, Field, Kind, Schema
from eqscale.tasks.forces.families import ELEMENTS, Family
from eqscale.tasks.forces.geometries import FRAMES, System
from eqscale.tasks.samples import Samples

SCHEMA = Schema(
    fields=(
        Field("position", Kind.POINT, unit="Å", relative_to="neighbours"),
        Field("neighbours", Kind.POINT, unit="Å", relative_to="center"),
        Field("element", Kind.INVARIANT, channels=len(ELEMENTS)),
        Field("center", Kind.POINT, "sample", unit="Å"),
        Field("electrons", Kind.INVARIANT, "sample", channels=2),
    ),
    target=Field("force", Kind.DIRECTION, at="position"),
    length=1.0,
    vector_length=1.0,  # by runs of gatr and gatr_slim in 0.03 to 4 Å (docs/forces.md)
)
"""Atoms with the middle of their neighbours (``neighbour_means``) and their element (one-hot, in the order of
``ELEMENTS``); of the molecule the mean position of all, charge and number of unpaired electrons. The target is the
force in units of the root mean square of the first training systems; atoms have equal weight within a molecule."""

NEIGHBOUR_WIDTH = 0.5
"""Å."""

_ONE_HOT = np.eye(len(ELEMENTS) + 1, len(ELEMENTS), dtype=np.float32)
_PADDING = len(ELEMENTS)  # its row of _ONE_HOT is zero
_PLACE = {number: k for k, number in enumerate(ELEMENTS.values())}


def record_type(family: Family) -> np.dtype:
    """One system as stored, padded to the family's most atoms."""
    T = family.max_atoms
    return np.dtype(
        [
            ("tokens", "<i4"),
            ("molecule", "<u2"),
            ("source", "u1"),
            ("unseen", "?"),
            ("electrons", "<f4", (2,)),  # charge, unpaired
            ("element", "u1", (T,)),  # place in ELEMENTS
            ("position", "<f4", (FRAMES, T, 3)),  # Å
            ("neighbours", "<f4", (FRAMES, T, 3)),  # Å
            ("force", "<f4", (FRAMES, T, 3)),  # eV/Å
            ("scf_failures", "<u2"),
            ("large_forces", "<u2"),
        ]
    )


def neighbour_means(positions: np.ndarray) -> np.ndarray:
    """Each atom's reference: the mean of the others' positions (..., T, 3), Å, weighted by exp(-r^2 / 2 width^2).

    Most of a force depends on bond lengths to a hundredth. Seen from the middle of the molecule that is a small
    difference of large coordinates; seen from here, it isn't.
    """
    x = positions.astype(float)
    square = np.square(x[..., :, None, :] - x[..., None, :, :]).sum(-1)
    square[..., np.arange(x.shape[-2]), np.arange(x.shape[-2])] = np.inf
    return softmax(-square / (2 * NEIGHBOUR_WIDTH**2), axis=-1) @ x


def pack(family: Family, systems: Sequence[System]) -> np.ndarray:
    """Systems as records."""
    records = np.zeros(len(systems), record_type(family))
    records["element"] = _PADDING
    for record, system in zip(records, systems, strict=True):
        molecule = family.molecules[system.molecule]
        n = len(molecule)
        record["tokens"], record["molecule"], record["source"] = n, system.molecule, system.source
        record["unseen"] = molecule.name in family.unseen
        record["electrons"] = molecule.charge, molecule.unpaired
        record["element"][:n] = [_PLACE[number] for number in molecule.numbers]
        record["position"][:, :n], record["force"][:, :n] = system.positions, system.forces
        record["neighbours"][:, :n] = neighbour_means(system.positions)
        record["scf_failures"], record["large_forces"] = system.scf_failures, system.large_forces
    return records


def force_rms(records: np.ndarray) -> float:
    """Root mean square of the length of a force, eV/Å; systems have equal weight, and atoms within one."""
    square = np.square(records["force"], dtype=float).sum((1, 2, 3)) / (FRAMES * records["tokens"])
    return float(np.sqrt(square.mean()))


class Geometries(Samples):
    """Geometries of a split; those of one system share its molecule."""

    samples_per_system = FRAMES

    def __init__(self, shards: Sequence[np.ndarray], force_rms: float, options: Mapping[str, Any]) -> None:
        """Open records.

        Args:
            shards: structured arrays of ``record_type``.
            force_rms: unit of the targets, eV/Å.
            options: of the task.
        """
        self.schema, self.options, self.force_rms = SCHEMA, options, force_rms
        names = ("tokens", "unseen", "source", "electrons", "element")
        columns = {name: np.concatenate([s[name] for s in shards]) for name in names}
        self.tokens = columns["tokens"].astype(np.int64)
        self.unseen = columns["unseen"]
        """Whether a system's molecule is never trained on, (n_systems,)."""
        self.source = columns["source"]
        self.n_systems = len(self.tokens)
        self._electrons, self._element = columns["electrons"], columns["element"]
        T = columns["element"].shape[1]
        # Positions, neighbours and targets of a geometry lie side by side: a batch then waits for memory once.
        geometry = np.empty((self.n_systems, FRAMES, 3, T, 3), np.float32)
        for rows, s in zip(np.split(geometry, np.cumsum([len(s) for s in shards])[:-1]), shards, strict=True):
            rows[:, :, 0], rows[:, :, 1] = s["position"], s["neighbours"]
            np.divide(s["force"], np.float32(force_rms), out=rows[:, :, 2])
        self._geometry = geometry.reshape(-1, 3, T, 3)
        self._weight = (np.arange(T) < self.tokens[:, None]) / self.tokens[:, None].astype(np.float32)

    def batch(self, indices: np.ndarray, dtype: torch.dtype = torch.float32) -> Batch:
        """As ``Samples.batch``."""
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"sample indices must lie in 0..{len(self) - 1}")
        system = indices // FRAMES
        T = int(self.tokens[system].max(initial=0))

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(dtype)

        # take before a view: far faster
        geometry = self._geometry.take(indices, axis=0)
        position, neighbours, force = (tensor(np.ascontiguousarray(geometry[:, k, :T])) for k in range(3))
        element = self._element.take(system, axis=0)[:, :T]
        weight = tensor(np.ascontiguousarray(self._weight.take(system, axis=0)[:, :T]))
        return Batch(
            schema=SCHEMA,
            values={
                "position": position,
                "neighbours": neighbours,
                "element": tensor(_ONE_HOT.take(element, axis=0)),
                "center": tensor(np.zeros((len(indices), 3), np.float32)),
                "electrons": tensor(self._electrons.take(system, axis=0)),
            },
            mask=weight > 0,
            target=force,
            weight=weight,
            system=torch.from_numpy(system),
        )
