"""Arithmetic and conditions on the columns of a table, as ``--map`` and ``--where`` take them; nothing is executed."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eqscale.errors import InputError

Array = np.ndarray
Lookup = Callable[[str], Array]
"""Column of numbers by name, (n,); raises InputError for a name that is not there."""

_LONGEST = 1000  # characters: deeper nesting than that would exhaust Python's parser
_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}  # fmt: skip
_FUNCTIONS: Mapping[str, Callable[[Any], Any]] = {"log": np.log, "exp": np.exp, "sqrt": np.sqrt}
_WRITE = "write numbers, columns, + - * / ** ( ), log, exp and sqrt; a column with other characters as `its name`"


@dataclass(frozen=True)
class Expression:
    """A formula of columns, such as ``6*N*D``."""

    text: str
    tree: ast.expr
    quoted: Mapping[str, str]
    """Names that stood in backticks, by what they are called in the tree."""

    def value(self, lookup: Lookup) -> Array:
        """Its value, (n,) or (); NaN or infinite where it isn't defined."""
        with np.errstate(all="ignore"):
            return np.asarray(self._value(self.tree, lookup), float)

    def _value(self, node: ast.expr, lookup: Lookup) -> Any:
        match node:
            case ast.Constant(value=int() | float() as value):
                return np.float64(value)  # never an integer: 9**9**9 would take all memory
            case ast.Name(id=name):
                return lookup(self.quoted.get(name, name))
            case ast.UnaryOp(op=op, operand=operand):
                value = self._value(operand, lookup)
                return -value if isinstance(op, ast.USub) else value
            case ast.BinOp(left=left, op=op, right=right):
                return _OPERATORS[type(op)](self._value(left, lookup), self._value(right, lookup))
            case ast.Call(func=ast.Name(id=name), args=[argument]):
                return _FUNCTIONS[name](self._value(argument, lookup))
        raise AssertionError(node)  # parse_expression lets nothing else through


def parse_expression(text: str, option: str) -> Expression:
    """A formula from its text.

    Raises:
        InputError: it holds anything but numbers, columns, arithmetic and the functions named above.
    """
    quoted: dict[str, str] = {}

    def name(found: re.Match[str]) -> str:
        quoted[f"_quoted_{len(quoted)}"] = found[1].strip()
        return f"_quoted_{len(quoted) - 1}"

    plain = re.sub(r"`([^`]+)`", name, text).strip()
    try:
        if len(plain) > _LONGEST:
            raise ValueError("too long")
        tree = ast.parse(plain, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(f"{option}: {text!r} is not a formula; {_WRITE}") from None
    for node in ast.walk(tree):
        known = isinstance(node, (ast.Name, ast.BinOp, ast.UnaryOp, ast.USub, ast.UAdd, ast.Load, *_OPERATORS))
        if isinstance(node, ast.Constant):
            known = type(node.value) in (int, float)
        elif isinstance(node, ast.Call):
            known = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
            known = known and len(node.args) == 1 and not node.keywords
        if not known:
            hint = "write ** for a power" if isinstance(node, ast.BitXor) else _WRITE
            raise InputError(f"{option}: {text!r} is not a formula; {hint}")
    return Expression(text, tree, quoted)


_ORDER: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_COMPARATOR = re.compile(r"(<=|>=|!=|==|<|>|=)")


@dataclass(frozen=True)
class Condition:
    """One ``--where``: ``COLUMN=VALUE``, ``COLUMN!=VALUE``, or formulas in order such as ``1e17<C<=1e20``."""

    text: str
    sides: tuple[str, ...]
    comparators: tuple[str, ...]
    """One less than sides."""

    @property
    def is_order(self) -> bool:
        """Whether it compares numbers by size; otherwise a column equals a value or not."""
        return self.comparators[0] in _ORDER

    def holds(self, values: Sequence[Array]) -> Array:
        """Where the order holds, given the values of the sides; nowhere beside NaN."""
        pairs = zip(values, self.comparators, values[1:], strict=False)
        return np.logical_and.reduce([_ORDER[c](left, right) for left, c, right in pairs])


def parse_condition(text: str) -> Condition:
    """A condition from its text.

    Raises:
        InputError: it has no comparator, an empty side, or mixes = with an order.
    """
    head, *rest = _COMPARATOR.split(text)
    wrong = f"--where: bad entry {text!r}; write COLUMN=VALUE, COLUMN!=VALUE or an order such as D/N>=20 or 1e17<C<1e20"
    if not rest or not head.strip():
        raise InputError(wrong)
    if rest[0] not in _ORDER:  # the value may hold any character
        value = text[len(head) + len(rest[0]) :].strip()
        return Condition(text, (head.strip(), value), ("!=" if rest[0] == "!=" else "=",))
    sides = (head.strip(), *(side.strip() for side in rest[1::2]))
    if not all(sides) or not set(rest[::2]) <= set(_ORDER):
        raise InputError(wrong)
    return Condition(text, sides, tuple(rest[::2]))
