"""The C interface of ``frames.cpp``."""

from __future__ import annotations

import ctypes

SIGNATURES = {"frames": "ppppppi", "frames_gradient": "pppppppi"}


class Shape(ctypes.Structure):
    """Mirror of the struct of the same name in ``frames.cpp``."""

    _fields_ = tuple(
        (name, ctypes.c_int64) for name in ("batch", "tokens", "vectors", "invariants", "hidden", "own", "row")
    )
