"""Amounts as people write them (``7M``, ``1e21``, ``3 EFLOP``, ``100h``) and as answers show them, with their unit."""

from __future__ import annotations

import math
import re

import numpy as np

from eqscale.errors import InputError
from eqscale.numbers import number

SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
"""Units of time, in seconds."""

_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_FLOP_PREFIXES = _PREFIXES | {"p": 1e15, "e": 1e18, "z": 1e21, "y": 1e24}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_AMOUNT = re.compile(rf"\s*({_NUMBER})\s*([A-Za-z/-]*)\s*")
_FLOPS = re.compile(r"([kmgtpezy]?)flops?", re.IGNORECASE)
_FLOP_DAYS = re.compile(r"([mgtpe])(?:f|flops?|flops?/s)-days?", re.IGNORECASE)
_TIME_COLUMN = re.compile(r"(?:(?:^|[^a-z])(second|sec|minute|min|hour|hr|day)s?|_([sh]))$", re.IGNORECASE)


def as_number(text: str) -> float:
    """A number that may end in k, M, B, G or T (``7M``, ``1.4B``); NaN for anything else."""
    try:
        return float(text)
    except ValueError:
        pass
    found = _AMOUNT.fullmatch(text)
    if found is None or found[2].lower() not in _PREFIXES:
        return math.nan
    return float(found[1]) * _PREFIXES[found[2].lower()]


def parse_quantity(text: str, unit: str, option: str) -> float:
    """A positive amount in ``unit``, as an option gives it.

    Args:
        text: a number in ``unit``; it may end in k, M, B, T, and where the unit is known also in one of the same kind:
            FLOPs (``3 EFLOP``, ``2 PF-days``) or time (``90s``, ``30min``, ``100h``, ``2d``).
        unit: ``FLOPs``, a unit of time from ``SECONDS``, or whatever else is counted; empty if unknown.
        option: its name in messages.

    Raises:
        InputError: no positive finite number, or a unit of another kind.
    """
    found = _AMOUNT.fullmatch(text)
    value, suffix = (float(found[1]), found[2]) if found else (math.nan, "")
    # an M is a million of parameters but may be meant as a minute of time
    flops, days = _FLOPS.fullmatch(suffix), _FLOP_DAYS.fullmatch(suffix)
    if suffix in SECONDS:
        kind, value = "time", value * SECONDS[suffix]
    elif flops:
        kind, value = "FLOPs", value * _FLOP_PREFIXES[flops[1].lower()]
    elif days:
        kind, value = "FLOPs", value * _FLOP_PREFIXES[days[1].lower()] * SECONDS["d"]
    elif suffix and unit in SECONDS:
        raise InputError(f"{option} {text}: write a time with {', '.join(SECONDS)}, as in 30min or 100h")
    else:
        kind, value = "", value * _PREFIXES.get(suffix.lower(), math.nan)
    expected = "time" if unit in SECONDS else unit
    if kind and kind != expected:
        what = {"time": "a time", "FLOPs": "an amount of FLOPs"}[kind]
        counted = f"the cost is counted in {unit}" if unit else "the unit of the cost isn't known: give a plain number"
        raise InputError(f"{option} {text}: {what}, but {counted} (another cost: --axis COLUMN)")
    if kind == "time":
        value /= SECONDS[unit]
    if not 0 < value < math.inf:
        example = {"FLOPs": "1e21 or 3EFLOP", "time": "3600, 90min or 100h"}.get(expected, "1e9 or 7M")
        raise InputError(f"{option} {text!r}: not a positive number such as {example}")
    return value


def quantity(value: float, unit: str, digits: int = 3) -> str:
    """A number with its unit; times also in the unit that suits their size. A dash for what is unknown."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "unbounded"
    text = f"{number(value, digits)} {unit}".rstrip()
    seconds = value * SECONDS.get(unit, math.nan)
    if seconds >= 60 or seconds < 1:
        best = next((u for u in ("d", "h", "min", "s") if seconds >= 2 * SECONDS[u]), "s")
        text += "" if best == unit else f" ({number(seconds / SECONDS[best], digits)} {best})"
    return text


def column_unit(name: str) -> str:
    """Unit of a cost that a column's name tells: ``FLOPs``, a unit of time, or nothing.

    A prefix, as in ``pflops``, tells nothing: the name may stand for a rate or a multiple.
    """
    if re.search(r"(?:^|[^a-z])per(?:$|[^a-z])|/", name, re.IGNORECASE):
        return ""
    if found := _TIME_COLUMN.search(name.strip()):
        word = (found[1] or found[2]).lower()
        return next(unit for unit in ("min", "s", "h", "d") if word.startswith(unit))
    if re.search(r"(?:^|[^a-z])flops?(?:$|[^a-z])", name, re.IGNORECASE):
        return "FLOPs"
    return ""


def looks_like_flops(N: np.ndarray, D: np.ndarray, C: np.ndarray) -> bool:
    """Whether costs (n,), NaN where unknown, are within a factor of 30 of 6ND, as FLOPs of a training are."""
    return bool(1 / 30 < np.nanmedian(np.asarray(C) / (6 * np.asarray(N) * np.asarray(D))) < 30)
