"""Families of molecules: small ones of the G2 set, clusters of water, and those of a user's ``.xyz`` file."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

import numpy as np

from eqscale.errors import InputError
from eqscale.tasks.forces.xtb import require_packages

ELEMENTS = {
    "H": 1, "Li": 3, "Be": 4, "B": 5, "C": 6, "N": 7, "O": 8, "F": 9, "Na": 11, "Al": 13, "Si": 14, "P": 15, "S": 16,
    "Cl": 17,
}  # fmt: skip
"""Symbol -> atomic number of the elements that the task knows: those of the G2 set."""

MAX_ATOMS = 64
"""Of a molecule in a user's file."""

NAMES = ("g2", "water")

UNSOUND = {
    "NH2": "degenerate orbitals: the SCF's end depends on round-off, labels differ by up to 3e-7 in a turned frame",
    "SH": "the same, up to 3e-7",
    "Si2": "the same, up to 3e-9",
}
"""Molecules of the G2 set that are left out, and why. Its 14 single atoms, which have no forces, are left out too."""

_CLOSEST = 0.5  # Å
_UNSEEN_EVERY = 8
_WATER = np.array([[0.0, 0.0, 0.0], [0.757, 0.586, 0.0], [-0.757, 0.586, 0.0]])  # O H H, Å


@dataclasses.dataclass(frozen=True)
class Molecule:
    """What is fixed of a molecule."""

    name: str
    numbers: tuple[int, ...]
    """Atomic numbers."""
    positions: tuple[tuple[float, float, float], ...]
    """At rest, Å; empty for a cluster, which has no single geometry at rest."""
    charge: int = 0
    """Total, in elementary charges."""
    unpaired: int = 0
    """Unpaired electrons."""
    where: str = dataclasses.field(default="", compare=False)
    """File and line, for messages."""

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def is_cluster(self) -> bool:
        """Whether its geometries start from a random packing of water."""
        return not self.positions


@dataclasses.dataclass(frozen=True)
class Family:
    """Molecules to draw from, all equally likely."""

    name: str
    molecules: tuple[Molecule, ...]
    unseen: tuple[str, ...]
    """Names of those that are never trained on: a part of the test split is made of them."""

    @functools.cached_property
    def seen_molecules(self) -> tuple[int, ...]:
        """Indices of the molecules that are trained on."""
        return tuple(k for k, molecule in enumerate(self.molecules) if molecule.name not in self.unseen)

    @functools.cached_property
    def unseen_molecules(self) -> tuple[int, ...]:
        """Indices of those that are not."""
        return tuple(k for k, molecule in enumerate(self.molecules) if molecule.name in self.unseen)

    @property
    def max_atoms(self) -> int:
        """Of the largest molecule."""
        return max(map(len, self.molecules))


def find_family(name: str) -> Family:
    """A family by its name, or by the path of an ``.xyz`` file.

    Raises:
        InputError: unknown name, a package is missing, or a fault of the file, with its line.
    """
    require_packages()
    if name == "g2":
        return _g2()
    if name == "water":
        return _water()
    if name.endswith(".xyz"):
        return family_of_file(Path(name))
    raise InputError(f"unknown family {name!r}; choose from {', '.join(NAMES)}, or name an .xyz file")


@functools.cache
def _g2() -> Family:
    from ase.collections import g2

    molecules = []
    for name in g2.names:
        atoms = g2[name]
        if len(atoms) > 1 and name not in UNSOUND:
            unpaired = round(atoms.get_initial_magnetic_moments().sum())
            positions = tuple(map(tuple, atoms.positions.tolist()))
            molecules.append(Molecule(name, tuple(atoms.numbers.tolist()), positions, 0, unpaired, f"g2, {name}"))
    return _with_unseen("g2", molecules)


@functools.cache
def _water() -> Family:
    sizes = range(2, 17)
    molecules = [Molecule(f"water{n}", (8, 1, 1) * n, (), where=f"water, {n} molecules") for n in sizes]
    return Family("water", tuple(molecules), ("water8", "water12", "water16"))


def _with_unseen(name: str, molecules: list[Molecule]) -> Family:
    """Sorted by size, and every eighth is never trained on: of all sizes."""
    molecules = sorted(molecules, key=lambda molecule: (len(molecule), molecule.name))
    return Family(name, tuple(molecules), tuple(m.name for m in molecules[_UNSEEN_EVERY // 2 :: _UNSEEN_EVERY]))


def pack_water(n: int, rng: np.random.Generator) -> np.ndarray:
    """A random packing of so many water molecules, (3n, 3) in Å.

    Orientations are uniform, places uniform in a ball that grows until all fit; atoms of two molecules are at least 1.8
    Å apart, oxygens 2.6 Å.
    """
    from scipy.spatial.transform import Rotation

    radius = (3 * n * 35.0 / (4 * np.pi)) ** (1 / 3)  # 35 Å^3 a molecule, a little more than in the liquid
    placed = np.zeros((0, 3, 3))
    while len(placed) < n:
        place = rng.normal(size=3)
        place *= radius * rng.uniform() ** (1 / 3) / np.linalg.norm(place)
        new = _WATER @ Rotation.random(rng=rng).as_matrix().T + place
        apart = np.linalg.norm(placed[:, :, None] - new, axis=-1)
        if (apart > 1.8).all() and (apart[:, 0, 0] > 2.6).all():
            placed = np.concatenate([placed, new[None]])
        else:
            radius *= 1.002
    return placed.reshape(-1, 3)


@functools.lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> Family:
    """A file as it was at the time ``changed``."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    molecules: list[Molecule] = []
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        molecules.append(_molecule(path, lines, at, len(molecules)))
        at += 2 + len(molecules[-1])
    if not molecules:
        raise InputError(f"{path} holds no molecule")
    return _with_unseen(path.stem, molecules)


def family_of_file(path: Path) -> Family:
    """The molecules of an ``.xyz`` file, one after the other, each at rest.

    The comment line may say ``charge=-1`` and ``unpaired=2`` (default: none, or one if the electrons are odd).

    Raises:
        InputError: names file and line of what is wrong.
    """
    require_packages()
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _molecule(path: Path, lines: list[str], at: int, index: int) -> Molecule:
    """The molecule that begins at that line."""

    def fault(line: int, what: str) -> InputError:
        return InputError(f"{path}, line {line + 1}: {what}")

    count = lines[at].strip()
    if not count.isdecimal() or int(count) < 2:
        raise fault(at, f"{count[:40]!r}: wanted the number of a molecule's atoms, at least 2")
    n = int(count)
    if n > MAX_ATOMS:
        raise fault(at, f"{n} atoms; a molecule may have {MAX_ATOMS}")
    if len(lines) < at + 2 + n:
        raise fault(len(lines) - 1, f"the file ends within a molecule of {n} atoms")
    numbers: list[int] = []
    positions: list[tuple[float, float, float]] = []
    for line in range(at + 2, at + 2 + n):
        symbol, *rest = lines[line].split() or [""]
        if symbol not in ELEMENTS:
            raise fault(line, f"unknown element {symbol!r}; choose from {', '.join(ELEMENTS)}")
        try:
            x, y, z = map(float, rest[:3])
        except ValueError:
            raise fault(line, f"{lines[line].strip()[:60]!r}: wanted an element and three coordinates in Å") from None
        if not np.isfinite([x, y, z]).all():
            raise fault(line, "a coordinate isn't finite")
        close = [k for k, other in enumerate(positions) if np.linalg.norm(np.subtract(other, (x, y, z))) < _CLOSEST]
        if close:
            raise fault(line, f"overlaps with the atom of line {at + 3 + close[0]}: less than {_CLOSEST} Å apart")
        numbers.append(ELEMENTS[symbol])
        positions.append((x, y, z))
    given = dict(re.findall(r"\b(charge|unpaired)=(\S+)", lines[at + 1]))
    try:
        charge = int(given.get("charge", 0))
        unpaired = int(given.get("unpaired", (sum(numbers) - charge) % 2))
    except ValueError:
        raise fault(at + 1, "charge and unpaired must be whole numbers") from None
    electrons = sum(numbers) - charge
    if abs(charge) > 3 or not 0 <= unpaired <= min(electrons, 6) or (electrons - unpaired) % 2:
        raise fault(
            at + 1,
            f"charge {charge} and {unpaired} unpaired electrons don't go with {sum(numbers)} protons: the charge must "
            "lie in -3..3, unpaired in 0..6, even if the number of electrons is even",
        )
    name = f"{path.stem}-{index}"
    return Molecule(name, tuple(numbers), tuple(positions), charge, unpaired, f"{path}, line {at + 1}")
