"""How an arm deals with the symmetry: reports are organised by it."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Mapping, Sequence


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


_COLOURS = {
    Role.LEARN: ("#0072B2", "#56B4E9", "#332288"),
    Role.BUILD_IN: ("#D55E00", "#882255", "#A65628"),
    Role.ALIGN: ("#009E73", "#117733", "#999933"),
    Role.AUGMENT: ("#CC79A7", "#AA4499", "#DDAACC"),
    Role.CONTROL: ("#E69F00", "#7F7F7F", "#BBBBBB"),
}
"""The first of each from Okabe & Ito 2008; further arms of a role get its other shades in turn."""


def colours(arms: Mapping[Role, Sequence[str]]) -> dict[str, str]:
    """Colour by arm, from the arms of each role: the same in all figures, and in all studies of the same arms."""
    shades = {role: itertools.cycle(own) for role, own in _COLOURS.items()}
    return {arm: next(shades[role]) for role, own in arms.items() for arm in sorted(own)}
