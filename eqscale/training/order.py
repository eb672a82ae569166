"""The order in which samples are drawn: a pure function of seed and step, so that resuming needs no state."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from eqscale.errors import InputError

# Batches are cut from pools of this many shuffled batches sorted by token count: padding stays at a few
# per cent while every batch is still a uniform draw from the training set.
_POOL_BATCHES = 32


class DataOrder:
    """Shuffled passes over the samples of a training set, in batches of similar token count."""

    def __init__(self, tokens: NDArray[np.int64], samples_per_system: int, batch_size: int, seed: int) -> None:
        """``tokens``: of each system, (systems,). The last, incomplete batch of a pass is dropped.

        Raises InputError if there are fewer samples than one batch.
        """
        self.tokens, self.samples_per_system = np.asarray(tokens), samples_per_system
        self.batch_size, self.seed = batch_size, seed
        self.samples = len(self.tokens) * samples_per_system
        self.batches_per_epoch = self.samples // batch_size
        if not self.batches_per_epoch:
            raise InputError(f"batch size {batch_size} exceeds the {self.samples} training samples there are")
        self._epoch = functools.lru_cache(maxsize=2)(self._shuffle)
        self._counts = functools.lru_cache(maxsize=2)(self._count)

    def _shuffle(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self.seed, epoch])
        used = self.batches_per_epoch * self.batch_size
        order = rng.permutation(self.samples)[:used]
        tokens = self.tokens[order // self.samples_per_system]
        pool = _POOL_BATCHES * self.batch_size
        for start in range(0, used, pool):
            stop = min(start + pool, used)
            by_tokens = np.argsort(tokens[start:stop], kind="stable")
            batches = order[start:stop][by_tokens].reshape(-1, self.batch_size)
            order[start:stop] = rng.permutation(batches, axis=0).ravel()
        return order.reshape(-1, self.batch_size)

    def _count(self, epoch: int) -> NDArray[np.int64]:
        tokens = self.tokens[self._epoch(epoch) // self.samples_per_system]
        return np.stack([tokens.sum(1), np.square(tokens).sum(1), tokens.max(1)], 1)

    def counts(self, step: int) -> tuple[int, int, int]:
        """Tokens of the batch drawn at ``step``, pairs of tokens of one sample, and tokens of its longest sample."""
        epoch, index = divmod(step, self.batches_per_epoch)
        tokens, pairs, longest = self._counts(epoch)[index].tolist()
        return tokens, pairs, longest

    def batch(self, step: int) -> NDArray[np.int64]:
        """Indices of the samples of the batch drawn at ``step`` (counted from 0), (batch_size,)."""
        epoch, index = divmod(step, self.batches_per_epoch)
        return self._epoch(epoch)[index]
