"""The samples of one split of a task: what trainers draw batches from."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from eqscale.tasks.fields import Batch, Schema


class Samples(abc.ABC):
    """Samples by index: sample = system x samples_per_system + its place in the system.

    Samples of one system share its objects: ``n_systems`` counts what is independent, ``len`` what is distinct.
    """

    schema: Schema
    options: Mapping[str, Any]
    """The task's view options with which the split was opened."""
    n_systems: int
    samples_per_system: int
    tokens: np.ndarray
    """Tokens of each system's samples, (n_systems,)."""

    def __len__(self) -> int:
        return self.n_systems * self.samples_per_system

    @property
    def unique_tokens(self) -> int:
        """Tokens in all samples."""
        return int(self.tokens.sum()) * self.samples_per_system

    @abc.abstractmethod
    def batch(self, indices: np.ndarray, dtype: torch.dtype = torch.float32) -> Batch:
        """The samples of those indices (B,), padded to the most tokens among them.

        Raises IndexError for an index outside 0..len - 1.
        """


class StoredSamples(Samples):
    """Samples whose records hold the fields as a model receives them, one sample a system."""

    samples_per_system = 1

    def __init__(
        self, schema: Schema, shards: Sequence[np.ndarray], target_rms: float, options: Mapping[str, Any]
    ) -> None:
        """Open records.

        Args:
            schema: the task's.
            shards: structured arrays with ``tokens``, ``target``, ``weight`` and every field of the schema.
            target_rms: unit of the targets: root mean weighted squared length in the training split.
            options: of the task.
        """
        self.schema, self.options = schema, options
        self.target_rms = target_rms
        names = ("tokens", "weight", *(field.name for field in schema.fields))
        self._columns = {name: np.concatenate([s[name] for s in shards]) for name in names}
        self._target = np.concatenate([s["target"] for s in shards])
        self.tokens = self._columns.pop("tokens").astype(np.int64)
        self.n_systems = len(self.tokens)

    def batch(self, indices: np.ndarray, dtype: torch.dtype = torch.float32) -> Batch:
        """As ``Samples.batch``."""
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"sample indices must lie in 0..{len(self) - 1}")
        tokens = self.tokens[indices]
        T = int(tokens.max(initial=0))

        def cut(value: np.ndarray, per: str) -> torch.Tensor:
            rows = value[indices]
            return torch.from_numpy(rows[:, :T] if per == "token" else rows).to(dtype)

        per = self.schema.target.per
        return Batch(
            schema=self.schema,
            values={f.name: cut(self._columns[f.name], f.per) for f in self.schema.fields},
            mask=torch.from_numpy(np.arange(T) < tokens[:, None]),
            target=cut(self._target, per) / self.target_rms,
            weight=cut(self._columns["weight"], per),
            system=torch.from_numpy(np.asarray(indices, np.int64)),
        )
