"""How an arm deals with the symmetry: reports are organised by it."""

from __future__ import annotations

import enum


class Role(enum.StrEnum):
    """How an arm deals with the symmetry."""

    LEARN = "learn"
    """It is learnt from the data alone."""
    AUGMENT = "augment"
    """It is learnt from data that are transformed at random."""
    ALIGN = "align"
    """Every sample is brought into a canonical frame first."""
    BUILD_IN = "build_in"
    """The network is equivariant."""
    CONTROL = "control"
    """Another arm with one thing changed, usually the symmetry switched off."""
