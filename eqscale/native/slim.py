"""The C interface of ``slim.cpp``."""

from __future__ import annotations

import ctypes

SIGNATURES = {"slim_plan": "ppi", "slim": "ppppppi", "slim_gradient": "ppppppppi", "slim_loss": "ppptppppppi"}


class Shape(ctypes.Structure):
    """Mirror of the struct of the same name in ``slim.cpp``; of channels, scalars, true and pseudo ones."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "tokens")),
        *((name, ctypes.c_int64 * 3) for name in ("inputs", "outputs")),
        *((name, ctypes.c_int64) for name in ("scalars", "vectors", "blocks", "heads")),
        ("head", ctypes.c_int64 * 3),
        *((name, ctypes.c_int64) for name in ("point", "kept")),
    )
