"""How an arm meets the symmetry: what its reports are organised by."""

from __future__ import annotations

import enum


class Role(enum.StrEnum):
    """An arm's way with the symmetry."""

    LEARN = "learn"
    """From the data alone."""
    AUGMENT = "augment"
    """From data that are transformed at random."""
    ALIGN = "align"
    """Every sample is brought into a canonical frame first."""
    BUILD_IN = "build_in"
    """The network is equivariant."""
    CONTROL = "control"
    """Another arm with one thing changed, usually the symmetry switched off."""
