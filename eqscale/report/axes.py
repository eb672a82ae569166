"""The arms that the study's questions are about."""

from __future__ import annotations

BASELINE = "transformer"
AUGMENTED = "transformer_aug"
EQUIVARIANT = "gatr"

COLOURS = {
    BASELINE: "#0072B2",
    EQUIVARIANT: "#D55E00",
    "transformer_aligned": "#009E73",
    AUGMENTED: "#CC79A7",
    "gatr_off": "#E69F00",
}
"""An arm has one colour in all figures (Okabe & Ito 2008); other arms take what is left by position."""
