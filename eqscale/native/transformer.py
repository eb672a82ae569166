"""The C interface of ``transformer.cpp``."""

from __future__ import annotations

import ctypes

SIGNATURES = {
    "transformer_plan": "ppi",
    "transformer": "ppppppi",
    "transformer_gradient": "ppppppppi",
    "transformer_loss": "ppptppppppi",
}


class Shape(ctypes.Structure):
    """Mirror of the struct of the same name in ``transformer.cpp``."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in (
                *("batch", "tokens", "in_features", "out_features", "width", "depth", "heads", "kv_heads", "hidden"),
                *("gated", "centred", "point", "frame", "vectors", "head_vectors", "turned_out"),
            )
        ),
        ("columns", ctypes.c_void_p),
        ("kept", ctypes.c_int64),
    )
