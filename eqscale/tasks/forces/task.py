"""Forces of molecules as a task: from where atoms are, predict the force on each."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqscale.errors import InputError
from eqscale.tasks import register
from eqscale.tasks.base import Option, Options, Task
from eqscale.tasks.fields import Batch
from eqscale.tasks.forces import geometries
from eqscale.tasks.forces.draw import Picture, draw
from eqscale.tasks.forces.families import ELEMENTS, NAMES, find_family
from eqscale.tasks.forces.frame import principal_axes
from eqscale.tasks.forces.geometries import FRAMES, LARGEST_FORCE, SOURCES, make_system
from eqscale.tasks.forces.metrics import METRICS, evaluate
from eqscale.tasks.forces.samples import NEIGHBOUR_WIDTH, SCHEMA, Geometries, force_rms, pack
from eqscale.tasks.forces.xtb import ACCURACY, METHOD, ScfError, Surface, one_thread
from eqscale.tasks.metrics import Predictor
from eqscale.tasks.samples import Samples
from eqscale.wording import Noun, Wording

VERSION = 1
"""Raised when anything in this package changes the numbers of a system."""


class ForcesTask(Task):
    """Molecules and clusters; a system is a few geometries of one molecule, atoms are tokens."""

    schema = SCHEMA
    options = (
        Option(
            "family",
            "g2",
            "molecules: g2 (145 small ones of 2-14 atoms), water (clusters of 2-16 molecules), or an .xyz file",
        ),
    )
    samples_per_system = FRAMES
    system_seconds = 0.035
    symmetry_tolerance = 1e-9
    metrics = METRICS
    words = Wording(
        name="forces",
        sentence="From the places and elements of a molecule's atoms, predict the quantum-mechanical force on each",
        unit=Noun("trajectory", "trajectories"),
        sample=Noun("geometry", "geometries"),
        trivial="predicting no force",
        metrics={
            "nmse_unseen": "unseen molecules",
            "force_mae_mev": "MAE of a component, meV/Å",
            "cosine": "cosine",
            "nmse_weak": "weak forces",
            "nmse_strong": "strong forces",
            "nmse_diatomic": "diatomics",
            "nmse_polyatomic": "larger molecules",
            "net_force_mev": "net force, meV/Å",
            "net_torque_mev": "net torque, meV",
        },
        metrics_note="The NMSE is that of new geometries of molecules that were trained on; unseen molecules have "
        "theirs beside it. Weak and strong forces are those below and above the root mean square, each relative to its "
        "own mean square; so are diatomics and larger molecules. Net forces and torques are root mean squares of a "
        "molecule's sum; exact ones are zero.",
        animation="One test geometry from all sides: true forces in black, predicted ones in orange.",
    )

    def check_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """As ``Task.check_options``; a family may also be an ``.xyz`` file."""
        options = super().check_options(given)
        name = options["family"]
        if name not in NAMES:
            find_family(name)
        return options

    def max_tokens(self, options: Options) -> int:
        """Atoms of the largest molecule."""
        return find_family(options["family"]).max_atoms

    def draw_tokens(self, options: Options, n: int, rng: np.random.Generator) -> np.ndarray:
        """Molecules that are trained on are equally likely."""
        family = find_family(options["family"])
        return rng.choice([len(family.molecules[k]) for k in family.seen_molecules], n)

    def definition(self, options: Options, seed: int) -> dict[str, Any]:
        """As ``Task.definition``; the molecules themselves count, not the name of their file."""
        family = find_family(options["family"])
        molecules = [
            (m.name, m.numbers, np.round(m.positions, 6).tolist(), m.charge, m.unpaired, m.name in family.unseen)
            for m in family.molecules
        ]
        return {
            "task": self.name,
            "version": VERSION,
            "method": {"name": METHOD, "accuracy": ACCURACY, "tblite": importlib.metadata.version("tblite")},
            "family": family.name,
            "molecules": hashlib.sha256(json.dumps(molecules).encode()).hexdigest(),
            "geometries": geometries.definition(),
            "neighbour_width": NEIGHBOUR_WIDTH,
            "seed": seed,
        }

    def folder_name(self, options: Options) -> str:
        """Task and family."""
        return f"{self.name}-{find_family(options['family']).name}"

    def records(self, options: Options, seed: int, split: str, start: int, stop: int) -> np.ndarray:
        """Make systems ``start`` to ``stop - 1`` of a split."""
        family = find_family(options["family"])
        with one_thread():
            return pack(family, [make_system(family, seed, split, k) for k in range(start, stop)])

    def left_out(self, records: np.ndarray) -> dict[str, int]:
        """Attempts at systems that gave no usable forces."""
        return {
            "an SCF that doesn't converge": int(records["scf_failures"].sum()),
            f"a force above {LARGEST_FORCE:g} eV/Å": int(records["large_forces"].sum()),
        }

    def statistics(self, options: Options, records: np.ndarray) -> dict[str, float]:
        """Unit of the targets, eV/Å."""
        return {"force_rms": force_rms(records)}

    def open(self, options: Options, shards: Sequence[np.ndarray], statistics: Mapping[str, float]) -> Geometries:
        """As ``Task.open``."""
        return Geometries(shards, statistics["force_rms"], options)

    def relabel(self, options: Options, batch: Batch) -> Tensor:
        """The forces at the geometries of a batch, computed again; padding has none."""
        forces = torch.zeros_like(batch.target, dtype=torch.float64)
        numbers = np.array(list(ELEMENTS.values()))[batch["element"].argmax(-1).numpy()]
        with one_thread():
            for k, mask in enumerate(batch.mask.numpy()):
                charge, unpaired = batch["electrons"][k].round().int().tolist()
                surface = Surface(numbers[k][mask], charge, unpaired)
                forces[k, batch.mask[k]] = torch.from_numpy(surface.forces(batch["position"][k].double().numpy()[mask]))
        return forces

    def check_labels(self, options: Options, seed: int) -> None:
        """As ``Task.check_labels``; also raises InputError for a molecule without forces at rest."""
        with one_thread():
            for molecule in find_family(options["family"]).molecules:
                if molecule.is_cluster:
                    continue
                try:
                    surface = Surface(np.array(molecule.numbers), molecule.charge, molecule.unpaired)
                    surface.forces(np.array(molecule.positions))
                except ScfError as error:
                    raise InputError(f"{molecule.where}: the SCF doesn't converge: {error}") from error
        super().check_labels(options, seed)

    def align(self, batch: Batch) -> tuple[Batch, Tensor]:
        """Principal axes, in one of the equivalent frames."""
        return principal_axes(batch)

    def evaluate(self, predict: Predictor, samples: Samples, indices: np.ndarray) -> dict[str, float]:
        """As ``Task.evaluate``, of molecules that are trained on; those that are not have metrics of their own."""
        assert isinstance(samples, Geometries)
        return evaluate(predict, samples, indices)

    def look(self, options: Options, seed: int, index: int, out: Path | None) -> str:
        """The last geometry of a system with its forces, as a PNG and as a page to turn, or as the suffix says."""
        family = find_family(options["family"])
        with one_thread():
            system = make_system(family, seed, "train", index)
        molecule = family.molecules[system.molecule]
        title = f"{molecule.name}, {SOURCES[system.source]}"
        picture = Picture(title, molecule.numbers, system.positions[-1], {"GFN2-xTB": system.forces[-1]})
        stem = Path(f"forces-{family.name}-{seed}-{index}")
        paths = [out] if out else [stem.with_suffix(".png"), stem.with_suffix(".html")]
        return f"wrote {' and '.join(str(draw(picture, path)) for path in paths)}: {title}, {len(molecule)} atoms"

    def look_at_prediction(self, predict: Predictor, samples: Samples, index: int, out: Path, title: str) -> Path:
        """The last geometry of a test system with true and predicted forces, in the form that the suffix says."""
        assert isinstance(samples, Geometries)
        if not 0 <= index < samples.n_systems:
            raise InputError(f"system {index}: the split has 0..{samples.n_systems - 1}")
        batch = samples.batch(np.array([index * FRAMES + FRAMES - 1]))
        numbers = np.array(list(ELEMENTS.values()))[batch["element"][0].argmax(-1).numpy()]
        with torch.no_grad():
            forces = {"GFN2-xTB": batch.target, title: predict(batch)}
        shown = {name: samples.force_rms * value[0].double().numpy() for name, value in forces.items()}
        return draw(Picture(title, tuple(numbers.tolist()), batch["position"][0].double().numpy(), shown), out)


TASK = register(ForcesTask())
