"""Numbers in sentences and tables."""

from __future__ import annotations

import math


def number(value: float | None, digits: int = 4, kind: str = "g") -> str:
    """A number as people write it: 5510 and 1e13, not 5.51e+03 and 1e+13. A dash for what is unknown.

    Args:
        value: None, NaN and infinity are unknown.
        digits: significant ones, or with ``kind`` f those behind the point.
        kind: of format: g, f, or #g, which keeps trailing zeros.
    """
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:{kind[:-1]}.{digits}{kind[-1]}}"
    mantissa, _, exponent = text.partition("e")
    if exponent and 0 < int(exponent) < 6:
        return f"{float(text):.0f}"
    return mantissa.removesuffix(".") + (f"e{int(exponent)}" if exponent else "")
