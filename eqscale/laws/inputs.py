"""Checks of what a fit is given; messages name the row, the column or the parameter at fault."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from eqscale.errors import InputError
from eqscale.laws.forms import Form

Array = np.ndarray


def check_design(form: Form, columns: Mapping[str, Array], loss: Array, free: int, where: str) -> None:
    """Refuse designs from which the law cannot be known, and say why.

    Args:
        form: the law.
        columns: regressors of the runs with weight, by name, each (n,).
        loss: of those runs, (n,).
        free: number of parameters to fit.
        where: name of the runs in messages.

    Raises:
        InputError: too few runs, or all runs at one value of a regressor.
    """
    exponents = {regressor: exponent for exponent, regressor in form.powers.values()}
    for c in (c for c in form.columns if c in exponents):
        v = columns[c]
        if np.ptp(np.log(v)) <= 1e-9:
            raise InputError(
                f"{where}: all {len(v)} runs have {c} = {v[0]:g}: the exponent {exponents[c]} cannot be "
                f"known from them; add runs at another {c}, or fit a law in the other variable"
            )
    points = np.unique(np.column_stack([*columns.values(), loss]), axis=0)
    if len(points) < free + 2:
        raise InputError(
            f"{where}: {len(points)} distinct runs are too few for {free} free parameters; "
            f"at least {free + 2} are needed (or --fix some)"
        )
    designs = np.unique(np.column_stack(list(columns.values())), axis=0)
    if len(designs) < free:
        raise InputError(
            f"{where}: runs at {len(designs)} distinct points ({', '.join(columns)}) cannot determine "
            f"{free} free parameters; add runs at other points (or --fix some)"
        )


def read_columns(
    form: Form, values: Mapping[str, object], loss: object, where: str
) -> tuple[dict[str, Array], Array]:
    """The form's regressors and the loss as arrays, each (n,).

    Raises:
        InputError: a missing column, unequal lengths, or a value that is not positive and finite.
    """
    observed = _vector(loss, "loss", where)
    columns = {}
    for c in form.columns:
        if values.get(c) is None:
            raise InputError(f"{where}: the form {form.name!r} needs a column {c!r}")
        columns[c] = _vector(values[c], c, where)
        if len(columns[c]) != len(observed):
            raise InputError(f"{where}: column {c!r} has {len(columns[c])} values, loss has {len(observed)}")
    return columns, observed


def _vector(values: object, name: str, where: str) -> Array:
    try:
        v = np.array(values, dtype=float).reshape(-1)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: column {name!r} holds values that are not numbers") from error
    for i in np.flatnonzero(~(np.isfinite(v) & (v > 0))):
        raise InputError(f"{where}: row {i + 1}, column {name!r}: {v[i]:g} is not a positive finite number")
    return v


def read_weights(weights: object, n: int, where: str) -> Array:
    """Weights of n runs, one each by default.

    Raises:
        InputError: another number of them, or one that is negative or no number.
    """
    if weights is None:
        return np.ones(n)
    raw = np.asarray(weights, dtype=object).reshape(-1)
    w = pd.to_numeric(pd.Series(raw), errors="coerce").to_numpy(float)
    if len(w) != n:
        raise InputError(f"{where}: {len(w)} weights for {n} runs")
    for i in np.flatnonzero(~(np.isfinite(w) & (w >= 0))):
        raise InputError(f"{where}: row {i + 1}: weight {raw[i]!r} is not a finite non-negative number")
    return w


def check_fixed(form: Form, fix: Mapping[str, float], lowest_loss: float, where: str) -> dict[str, float]:
    """Values to hold, by parameter.

    Raises:
        InputError: an unknown parameter, a value outside its bounds, or a floor above the smallest loss.
    """
    for name, value in fix.items():
        if name not in form.names:
            raise InputError(
                f"{where}: cannot fix {name!r}; the form {form.name!r} has {', '.join(form.names)}"
            )
        lowest = form.bounds.get(name, (0.0, np.inf))[0]
        if not (np.isfinite(value) and value >= lowest):
            raise InputError(f"{where}: cannot fix {name} = {value}; it must be a number ≥ {lowest:g}")
        if name in form.floors and value >= lowest_loss:
            raise InputError(
                f"{where}: fixed {name} = {value:g} is not below the smallest loss, {lowest_loss:g}"
            )
    return {k: float(v) for k, v in fix.items()}
