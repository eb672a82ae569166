"""FLOPs of a training step in closed form: nominal as the paper's authors count, and as executed."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class FlopCount:
    """FLOPs of one sample with T tokens, as the polynomial ``per_token * T + per_pair * T**2``."""

    per_token: float
    """FLOPs that grow with the number of tokens."""
    per_pair: float = 0.0
    """FLOPs that grow with the number of token pairs (attention)."""

    def __add__(self, other: FlopCount) -> FlopCount:
        return FlopCount(self.per_token + other.per_token, self.per_pair + other.per_pair)

    def total(self, tokens: float, token_pairs: float) -> float:
        """FLOPs for ``tokens`` = sum of T and ``token_pairs`` = sum of T**2 over the samples."""
        return self.per_token * tokens + self.per_pair * token_pairs


@dataclasses.dataclass(frozen=True)
class TrainingFlops:
    """Forward + backward FLOPs of one training sample on the two counted axes."""

    nominal: FlopCount
    """As the paper's authors count: 6 per weight per token, multivector maps as dense 16x16 blocks."""
    executed: FlopCount
    """Multiply-adds x 2 that this implementation executes, attention, products and joins included."""
