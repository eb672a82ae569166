"""Fits as JSON records and as Markdown or LaTeX tables."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eqscale.laws.certificate import Verdict
from eqscale.laws.uncertainty import Bootstrap, Interval, disagreement
from eqscale.numbers import number
from eqscale.storage import write_atomically

if TYPE_CHECKING:
    from eqscale.laws.compare import Comparison
    from eqscale.laws.fit import Fit
    from eqscale.laws.joint import Hypothesis
    from eqscale.laws.rivals import FormFit


def plain(value: Any) -> Any:
    """Dataclasses (but for their private fields), arrays and numpy scalars as JSON types, verdicts as text; what is not
    finite becomes null.
    """
    if isinstance(value, Verdict):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value) if not f.name.startswith("_")}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def fit_record(fit: Fit, found: Mapping[str, Interval], boot: Bootstrap | None = None) -> dict[str, Any]:
    """One fit as a mapping for ``write_json``; parameters at the top level, in the user's units."""
    warning = disagreement(dict(found))
    return {
        **fit.params,
        "objective": fit.objective,
        "n": fit.n,
        "verdict": fit.verdict,
        "certificate": fit.certificate,
        "structure": fit.structure,
        "intervals": {k: {f: v for f, v in plain(i).items() if f != "name"} for k, i in found.items()},
        "form": fit.form.name,
        "formula": fit.form.formula,
        "loss_fn": fit.loss.kind,
        "delta": fit.loss.delta if "huber" in fit.loss.kind else None,
        "fixed": fit.fixed,
        "degrees_of_freedom": fit.degrees_of_freedom,
        "noise": fit.noise,
        "bootstrap": boot and {k: getattr(boot, k) for k in ("kind", "resamples", "seed", "unfinished")},
        "warnings": [warning] if warning else [],
    }


def interval_text(limits: Sequence[float | None] | None, digits: int = 4) -> str:
    """``[low, high]``, or a dash for what is unknown, null in JSON, or says nothing: from 0 or -inf to infinity."""
    known = [math.nan if v is None else v for v in limits or ()]
    if not any(map(math.isfinite, known)) or (known[0] == 0 and not math.isfinite(known[1])):
        return "–"
    return "[" + ", ".join(f"{v:g}" if math.isinf(v) else _rounded(v, digits) for v in known) + "]"


def with_interval(value: float, low: float, high: float, digits: int = 3) -> str:
    """``value [low, high]``; a dash for an unknown value (NaN), no interval where its limits are unknown."""
    if math.isnan(value):
        return "–"
    if math.isnan(low) and math.isnan(high):
        return _rounded(value, digits)
    return f"{_rounded(value, digits)} {interval_text((low, high), digits)}"


def _rounded(value: float, digits: int) -> str:
    """With its trailing zeros: beside 1.69, 1.9 is 1.90."""
    return number(value, digits, "#g" if value else "g")


def coefficient_rows(found: Mapping[str, Interval], every: bool = False) -> list[list[str]]:
    """Rows under ``COEFFICIENT_HEADER``, with ``every`` interval also under ``FURTHER_INTERVALS``, where those that
    disagree are marked with !.
    """
    rows = []
    for i in found.values():
        ratio = "–" if i.ratio is None else f"{i.ratio:.2f}" + (" !" if i.disagree else "")
        further = [interval_text(i.model), interval_text(i.robust), ratio] if every else []
        rows.append([i.name, number(i.estimate, 5), interval_text(i.recommended), *further])
    return rows


COEFFICIENT_HEADER = ["parameter", "estimate", "95 %"]
FURTHER_INTERVALS = ["95 % model-based", "95 % robust", "width ratio"]


def factor_text(value: Sequence[float]) -> str:
    """A factor with its interval; infinite where the loss is out of reach."""
    return f"{_factor(value[0])} {_limits(value[1:])}"


def _factor(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "never" if value > 1e12 else f"{_rounded(value, 3)}×"


MULTIPLIER_HEADER = ["C", "loss", "reference's loss ÷ it", "ahead", "compute", "data", "parameters"]
FURTHER_FACTORS = ["compute, model-based", "compute, robust", "P(better)"]


def multiplier_rows(comparison: Comparison, every: bool = False) -> list[list[str]]:
    """Rows under ``MULTIPLIER_HEADER`` with 95 % intervals, with ``every`` also under ``FURTHER_FACTORS``; * marks
    extrapolation. Where no arm is shown to be ahead, a factor has limits, but no value.
    """
    rows = []
    for m in comparison.multipliers:
        C = number(m.C, 3) + (" *" if m.extrapolated else "")
        factors = [factor_text(v) for v in (m.compute, m.data, m.parameters)]
        if not m.ahead:
            factors = [_limits(m.compute[1:]), "–", "–"]
        further = [_limits(m.compute_model), _limits(m.compute_robust), number(m.probability_better, 2, "f")]
        row = [C, number(m.loss), factor_text(m.advantage), m.ahead or "not shown", *factors]
        rows.append(row + (further if every else []))
    return rows


def _limits(limits: Sequence[float]) -> str:
    return "[" + ", ".join(map(_factor, limits)) + "]"


HYPOTHESIS_HEADER = ["shared", "parameters", "objective", "AICc weight", "F", "p (F)", "p (bootstrap)"]


def hypothesis_rows(tested: Sequence[Hypothesis]) -> list[list[str]]:
    """Rows under ``HYPOTHESIS_HEADER``."""
    rows = []
    for h in tested:
        tests = [number(h.f_statistic, 3), number(h.f_p_value, 2), number(h.bootstrap_p_value, 2)]
        shared = ", ".join(h.shared) or "nothing"
        rows.append([shared, str(h.parameters), number(h.objective, 6), f"{h.weight:.3f}", *tests])
    return rows


FORM_HEADER = ["form", "parameters", "AICc above the best", "held-out error", "verdict"]


def form_rows(forms: Sequence[FormFit]) -> list[list[str]]:
    """Rows under ``FORM_HEADER``."""
    return [
        [f.name, str(f.parameters), number(f.aicc, 3), "–" if f.held_out is None else f"{100 * f.held_out:.2g} %",
         f.verdict.state]
        for f in forms
    ]  # fmt: skip


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


_GREEK = ("alpha", "beta", "gamma", "delta", "kappa", "lambda", "mu", "nu", "rho", "sigma", "tau")
_LATEX_CHARACTERS = str.maketrans(
    {"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "–": "--", "×": r"$\times$", "∝": r"$\propto$"}
)


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A booktabs table."""

    def cell(text: str) -> str:
        if text in _GREEK or re.fullmatch("[A-Za-z]", text):  # a parameter
            return rf"$\{text}$" if text in _GREEK else f"${text}$"
        return text.translate(_LATEX_CHARACTERS)

    def line(row: Sequence[str]) -> str:
        return " & ".join(map(cell, row)) + r" \\"

    columns = "l" + "r" * (len(header) - 1)
    lines = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}"]
    lines += [r"\toprule", line(header), r"\midrule", *map(line, rows), r"\bottomrule", r"\end{tabular}"]
    if caption:
        lines.append(rf"\caption{{{caption.translate(_LATEX_CHARACTERS)}}}")
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def write_json(path: Path, record: Any) -> None:
    """Write a record as strict JSON."""
    text = json.dumps(plain(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, text.encode())
