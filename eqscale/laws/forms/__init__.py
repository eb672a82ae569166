"""Forms of scaling laws by name. To add one, subclass ``Form`` and call ``register``."""

from eqscale.errors import InputError
from eqscale.laws.forms.base import Centre, Coefficients, Evaluation, Form
from eqscale.laws.forms.gamma import Gamma
from eqscale.laws.forms.repetition import Muennighoff, Repetition
from eqscale.laws.forms.sums import Balanced, Chinchilla, Power, SumOfPowers

__all__ = ["FORMS", "Balanced", "Centre", "Coefficients", "Evaluation", "Form", "SumOfPowers", "get_form", "register"]

FORMS: dict[str, Form] = {}
"""Registered forms by name."""


def register(form: Form) -> None:
    """Make a form known under its name.

    Raises:
        InputError: the name is taken, or the form has no formula.
    """
    if form.name in FORMS:
        raise InputError(f"form {form.name!r} is registered already")
    if type(form).value is Form.value and type(form).evaluate is Form.evaluate:
        raise InputError(f"form {form.name!r} defines neither value nor evaluate")
    FORMS[form.name] = form


for built_in in (Chinchilla(), Gamma(), Repetition(), Muennighoff(), Power("C"), Power("D"), Power("N")):
    register(built_in)


def get_form(name: str) -> Form:
    """A form by name.

    Raises:
        InputError: unknown name.
    """
    if name not in FORMS:
        raise InputError(f"unknown form {name!r}; choose one of {', '.join(FORMS)}")
    return FORMS[name]
