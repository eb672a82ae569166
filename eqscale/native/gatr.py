"""The C interface of ``gatr.cpp``."""

from __future__ import annotations

import ctypes

SIGNATURES = {"gatr": "pppppppppi", "gatr_gradient": "ppppppppppi", "gatr_loss": "ppppppppptpppppi"}


class _Struct(ctypes.Structure):
    """Mirror of the struct of the same name in ``gatr.cpp``."""


def _numbers(*names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, ctypes.c_int64) for name in names)


def _tables(*names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, ctypes.c_void_p) for name in names)


class Map(_Struct):
    """A linear map between two layouts."""

    _fields_ = (*_tables("products"), *_numbers("count", "weights"))


class Norm(_Struct):
    """Equivariant layer norm."""

    _fields_ = (
        *_tables("rows", "scalar_rows"),
        *_numbers("m", "s", "channels", "ones_row"),
        ("eps", ctypes.c_double),
        ("scalar_eps", ctypes.c_double),
    )


class Bilinear(_Struct):
    """Geometric products and joins."""

    _fields_ = (*_tables("rows", "scalar_rows"), *_numbers("channels", "s", "ones_row"))


class Gate(_Struct):
    """Gated GELU."""

    _fields_ = Bilinear._fields_


class Attention(_Struct):
    """Multi-query attention."""

    _fields_ = (
        *_tables("q_inner", "k_inner", "q_distance", "k_distance", "value", "out"),
        *_numbers("heads", "inner", "distances", "values", "ones_row"),
        ("eps", ctypes.c_double),
    )


class Network(_Struct):
    """All that is the same for every batch."""

    _fields_ = (
        *((name, Map) for name in ("embed", "to_qkv", "from_heads", "to_factors", "from_products", "to_stream")),
        ("read_out", Map),
        *(("norm", Norm), ("attention", Attention), ("bilinear", Bilinear), ("gate", Gate)),
        *_numbers("source", "stream", "normed", "qkv", "attended", "factors", "products", "hidden", "gated", "target"),
        *_tables("columns", "out_rows"),
        *_numbers("channels_in", "scalars_in", "outputs", "blocks", "first_block", "block_weights", "weights"),
        *_tables("index", "gain_index"),
        *_numbers("block_rows", "kept_rows"),
    )


class Batch(_Struct):
    """How a batch is cut into tiles."""

    _fields_ = _numbers("samples", "length", "per_tile", "ld")
