"""The C interface of ``gatr.cpp``."""

from __future__ import annotations

import ctypes

SIGNATURES = {
    "bilinear": "ppplpipiipi",
    "bilinear_gradient": "pppplpipipi",
    "norm": "ppplpipiiitti",
    "norm_gradient": "pppplpipiii",
    "gate": "pplpipiii",
    "gate_gradient": "ppplpipii",
    "attention": "pplppipti",
    "attention_gradient": "pppplppipti",
}


class AttentionTables(ctypes.Structure):
    """Mirror of the struct of the same name in ``gatr.cpp``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("heads", "inner", "distances", "values")),
        *((name, ctypes.c_void_p) for name in ("q_inner", "k_inner", "q_distance", "k_distance", "value", "out")),
        ("ones_row", ctypes.c_int64),
    )
