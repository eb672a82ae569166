"""Geometries of one molecule and the forces there: the systems of the task."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from eqscale.errors import InputError
from eqscale.tasks.forces.families import Family, Molecule, pack_water
from eqscale.tasks.forces.xtb import ScfError, Surface

FRAMES = 8
"""Geometries of a system."""

UNSEEN_EVERY = 4
"""Every fourth system of the test split is of a molecule that is never trained on."""

TEMPERATURES = (300.0, 600.0, 1200.0)
"""Of the dynamics, K."""

DISPLACEMENTS = (0.015, 0.03, 0.045)
"""Standard deviations of the displacement of a coordinate, Å."""

DISPLACED_SHARE = 1 / 3
"""Of the systems: displaced at random instead of moved by dynamics."""

LARGEST_FORCE = 20.0
"""eV/Å: a system with a larger one on any atom is left out, as it would dominate every mean of squares."""

SOURCES = (*(f"{s:g} Å" for s in DISPLACEMENTS), *(f"{t:g} K" for t in TEMPERATURES))
"""Where geometries come from: displacements, then dynamics."""

MASS = 12.0
"""u, of every atom: masses don't change which configurations a temperature visits, and equal ones allow long steps."""

TIME_STEP, FRICTION = 2.5, 0.1
"""Of the dynamics: fs, 1/fs."""

SPACING = 4
"""Steps from one geometry to the next: forces have lost their correlation by then (docs/forces.md)."""

WARM_UP, CLUSTER_WARM_UP = 10, 40
"""Steps before the first geometry."""

_ATTEMPTS = 20
_MD_ACCURACY = 1.0


@dataclasses.dataclass(frozen=True)
class System:
    """Geometries of one molecule, near each other in time or about the same geometry at rest."""

    molecule: int
    """Index in the family."""
    source: int
    """Index in ``SOURCES``."""
    positions: np.ndarray
    """(FRAMES, T, 3), float32, Å, about the mean position of the atoms."""
    forces: np.ndarray
    """(FRAMES, T, 3), eV/Å, of exactly these positions."""
    scf_failures: int
    """Attempts that were left out because an SCF didn't converge."""
    large_forces: int
    """Attempts that were left out because of a force above ``LARGEST_FORCE``."""


def definition() -> dict[str, Any]:
    """What decides the geometries of a molecule, as plain JSON."""
    return {
        "frames": FRAMES,
        "unseen_every": UNSEEN_EVERY,
        "temperatures": list(TEMPERATURES),
        "displacements": list(DISPLACEMENTS),
        "displaced_share": round(DISPLACED_SHARE, 9),
        "largest_force": LARGEST_FORCE,
        "mass": MASS,
        "time_step": TIME_STEP,
        "friction": FRICTION,
        "steps": [WARM_UP, CLUSTER_WARM_UP, SPACING],
    }


def make_system(family: Family, seed: int, split: str, index: int) -> System:
    """System ``index`` of a split: the same bits wherever it is made, within ``xtb.one_thread``.

    Raises:
        InputError: if no attempt gives forces, naming the molecule.
    """
    entropy = [seed, ("train", "test").index(split), index]
    rng = np.random.default_rng(entropy)
    unseen = split == "test" and index % UNSEEN_EVERY == UNSEEN_EVERY - 1
    chosen = int(rng.choice((unseen and family.unseen_molecules) or family.seen_molecules))
    molecule = family.molecules[chosen]
    moved = molecule.is_cluster or rng.uniform() >= DISPLACED_SHARE
    level = int(rng.integers(3))
    surface = Surface(np.array(molecule.numbers), molecule.charge, molecule.unpaired)
    failures = large = 0
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng([*entropy, attempt])
        geometries = _dynamics(molecule, TEMPERATURES[level], rng) if moved else _displaced(molecule, level, rng)
        try:
            positions = np.stack([_as_stored(next(geometries)) for _ in range(FRAMES)])
            forces = np.stack([surface.forces(x.astype(float)) for x in positions])
        except ScfError:
            failures += 1
            continue
        if np.linalg.norm(forces, axis=-1).max() > LARGEST_FORCE:
            large += 1
            continue
        return System(chosen, level + len(DISPLACEMENTS) * moved, positions, forces, failures, large)
    raise InputError(
        f"{molecule.where}: none of {_ATTEMPTS} attempts at a geometry gives usable forces: the SCF failed in "
        f"{failures}, a force was above {LARGEST_FORCE:g} eV/Å in {large}; leave the molecule out"
    )


def _as_stored(positions: np.ndarray) -> np.ndarray:
    return (positions - positions.mean(0)).astype(np.float32)


def _start(molecule: Molecule, rng: np.random.Generator) -> np.ndarray:
    """The molecule at rest, or a packing of a cluster, in a uniform orientation, half of them mirrored: (T, 3) in Å."""
    rest = pack_water(len(molecule) // 3, rng) if molecule.is_cluster else np.array(molecule.positions)
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    return (rest - rest.mean(0)) @ (q * np.sign(np.diag(r))).T  # uniform on O(3), Mezzadri, arXiv math-ph/0609050


def _displaced(molecule: Molecule, level: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    rest = _start(molecule, rng)
    while True:
        yield rest + DISPLACEMENTS[level] * rng.normal(size=rest.shape)


def _dynamics(molecule: Molecule, temperature: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Langevin dynamics by the BAOAB splitting (Leimkuhler and Matthews, arXiv 1203.5428)."""
    from ase.units import fs, kB

    surface = Surface(np.array(molecule.numbers), molecule.charge, molecule.unpaired, _MD_ACCURACY)
    speed = np.sqrt(kB * temperature / MASS)
    half, keep = TIME_STEP * fs / 2, np.exp(-FRICTION * TIME_STEP)
    x = _start(molecule, rng)
    # At rest all energy is kinetic: with twice as much, a vibration ends up at the temperature.
    v = speed * rng.normal(size=x.shape) * (1.0 if molecule.is_cluster else np.sqrt(2.0))
    a = surface.next_forces(x) / MASS
    wait = CLUSTER_WARM_UP if molecule.is_cluster else WARM_UP
    while True:
        for _ in range(wait):
            v = v + half * a
            x = x + half * v
            v = keep * v + speed * np.sqrt(1 - keep**2) * rng.normal(size=x.shape)
            x = x + half * v
            a = surface.next_forces(x) / MASS
            v = v + half * a
        yield x
        wait = SPACING
