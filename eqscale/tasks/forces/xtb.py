"""Forces by GFN2-xTB, a semi-empirical quantum method, computed by tblite.

Bannwarth, Ehlert and Grimme 2019, doi 10.1021/acs.jctc.8b01176.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np

from eqscale.errors import InputError

METHOD = "GFN2-xTB"
ACCURACY = 0.01
"""Of labels, over tblite's default thresholds of the SCF."""
PACKAGES = ("ase", "tblite", "threadpoolctl")


class ScfError(Exception):
    """The self-consistent field of a geometry doesn't converge."""


def require_packages() -> None:
    """Raise InputError unless what the task needs is installed."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise InputError(f"task 'forces' needs {', '.join(missing)}: pip install 'eqscale[forces]'")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """tblite on one thread: on more, molecules of this size take fifty times longer and sums have other bits."""
    import tblite.interface  # noqa: F401  # its libraries must be loaded to be limited
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


class Surface:
    """The forces of one molecule as a function of its geometry; call it within ``one_thread``."""

    def __init__(self, numbers: np.ndarray, charge: int, unpaired: int, accuracy: float = ACCURACY) -> None:
        """Set the molecule.

        Args:
            numbers: atomic numbers, (T,).
            charge: total charge, in elementary charges.
            unpaired: unpaired electrons.
            accuracy: of the SCF, over tblite's default; smaller is tighter.
        """
        from ase.units import Bohr, Hartree
        from tblite.interface import Calculator

        self._bohr, self._force = Bohr, Hartree / Bohr
        self._calculator = Calculator(METHOD, numbers, np.arange(3.0 * len(numbers)).reshape(-1, 3), charge, unpaired)
        self._calculator.set("verbosity", 0)
        self._calculator.set("accuracy", accuracy)
        self._last: Any = None

    def forces(self, positions: np.ndarray) -> np.ndarray:
        """Forces at positions (T, 3) in Å, (T, 3) in eV/Å: a function of these positions alone.

        Raises:
            ScfError: if the SCF doesn't converge.
        """
        self._last = None
        return self.next_forces(positions)

    def next_forces(self, positions: np.ndarray) -> np.ndarray:
        """Like ``forces``, from the electrons of the last call: faster along a trajectory, the last digits differ."""
        from tblite.exceptions import TBLiteRuntimeError

        try:
            self._calculator.update(positions / self._bohr)
            self._last = self._calculator.singlepoint(self._last)
        except TBLiteRuntimeError as error:
            self._last = None
            raise ScfError(" ".join(str(error).split())) from error
        forces = -self._force * self._last.get("gradient")
        if not np.isfinite(forces).all():
            raise ScfError("the forces aren't finite")
        return forces
