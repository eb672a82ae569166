"""Pictures of a molecule with the forces on its atoms: a PNG, a GIF that turns, or a page to turn with the mouse."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

import numpy as np

from eqscale.errors import InputError
from eqscale.storage import write_text, written_whole

_ARROW = 0.9
"""Length of the largest force's arrow, Å."""

_COLOURS = ("black", "darkorange", "royalblue")
_TURNS = 48


@dataclasses.dataclass(frozen=True)
class Picture:
    """A molecule and what acts on it."""

    title: str
    numbers: tuple[int, ...]
    """Atomic numbers, T."""
    positions: np.ndarray
    """(T, 3), Å."""
    forces: Mapping[str, np.ndarray]
    """Name, for the legend -> forces (T, 3), eV/Å."""


def draw(picture: Picture, path: Path) -> Path:
    """Write the picture in the form that the suffix of ``path`` names: ``.png``, ``.gif`` or ``.html``.

    The molecule lies with its longest axis from left to right. The page is one file without links.

    Raises:
        InputError: for another suffix, or if the file can't be written.
    """
    forms: dict[str, Callable[[Picture, Path], None]] = {".png": _png, ".gif": _gif, ".html": _page}
    form = forms.get(Path(path).suffix.lower())
    if form is None:
        raise InputError(f"picture {path}: the name must end in {', '.join(forms)}")
    axes = np.linalg.svd(picture.positions - picture.positions.mean(0), full_matrices=True)[2]
    axes[2] *= np.linalg.det(axes)  # a rotation: no molecule becomes its mirror image
    turned = {name: force @ axes.T for name, force in picture.forces.items()}
    lying = (picture.positions - picture.positions.mean(0)) @ axes.T
    try:
        form(dataclasses.replace(picture, positions=lying, forces=turned), Path(path))
    except OSError as error:
        raise InputError(f"cannot write the picture {path}: {error.strerror or error}") from error
    return Path(path)


def _bonds(picture: Picture) -> np.ndarray:
    """Pairs of atoms that are closer than 1.25 times the sum of their covalent radii, (bonds, 2)."""
    from ase.data import covalent_radii

    radius = covalent_radii[list(picture.numbers)]
    apart = np.linalg.norm(picture.positions[:, None] - picture.positions, axis=-1)
    first, second = np.triu_indices(len(radius), 1)
    near = apart[first, second] < 1.25 * (radius[first] + radius[second])
    return np.stack([first[near], second[near]], 1)


def _radius(number: int) -> float:
    """Of the disc that stands for an atom, Å."""
    from ase.data import covalent_radii

    return 0.15 + 0.3 * float(covalent_radii[number])


def _scale(picture: Picture) -> float:
    """Å of arrow for an eV/Å of force."""
    return _ARROW / max(max(np.linalg.norm(f, axis=1).max() for f in picture.forces.values()), 1e-9)


def _turn(degrees: float) -> np.ndarray:
    """Turns about the vertical, seen a little from above."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("yx", [degrees, 20], degrees=True).as_matrix()


def _figure(picture: Picture, degrees: float):
    """A figure, and what draws the picture on it, turned by so many degrees."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from ase.data import chemical_symbols
    from ase.data.colors import jmol_colors
    from matplotlib.patches import Circle

    figure, ax = plt.subplots(figsize=(5, 5))
    figure.subplots_adjust(0, 0, 1, 0.93)
    bonds, scale = _bonds(picture), _scale(picture)
    reach = np.linalg.norm(picture.positions, axis=1).max() + _ARROW + 0.3

    def show(degrees: float) -> list:
        ax.clear()
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        ax.set_axis_off()
        ax.set_title(picture.title, fontsize=11)
        turn = _turn(degrees)
        at = picture.positions @ turn.T
        for i, j in bonds:
            ax.plot(*at[[i, j], :2].T, color="0.6", lw=4, zorder=at[[i, j], 2].mean(), solid_capstyle="round")
        for number, (x, y, depth) in zip(picture.numbers, at, strict=True):
            colour = jmol_colors[number]
            ax.add_patch(Circle((x, y), _radius(number), facecolor=colour, edgecolor="0.3", zorder=depth))
            dark = colour.mean() < 0.5
            ax.text(x, y, chemical_symbols[number], ha="center", va="center", fontsize=8, zorder=reach + 1,
                    color="white" if dark else "black", clip_on=True)  # fmt: skip
        for k, (name, force) in enumerate(picture.forces.items()):
            u, v, _ = scale * (force @ turn.T).T
            ax.quiver(*at[:, :2].T, u, v, angles="xy", scale_units="xy", scale=1, color=_COLOURS[k], label=name,
                      width=0.009 - 0.004 * k, zorder=reach)  # fmt: skip
        ax.legend(loc="lower left", frameon=False, title=f"largest force {_ARROW / scale:.2g} eV/Å")
        return []

    show(degrees)
    return figure, show


def _png(picture: Picture, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, _ = _figure(picture, 25)
    try:
        with written_whole(path) as file:
            figure.savefig(file, dpi=120)
    finally:
        plt.close(figure)


def _gif(picture: Picture, path: Path) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.animation import FuncAnimation, PillowWriter

    figure, show = _figure(picture, 0)
    try:
        turns = FuncAnimation(figure, show, frames=np.arange(_TURNS) * 360 / _TURNS)
        with written_whole(path) as file:
            turns.save(str(file), writer=PillowWriter(fps=12), dpi=70)
    finally:
        plt.close(figure)


def _page(picture: Picture, path: Path) -> None:
    from ase.data import chemical_symbols
    from ase.data.colors import jmol_colors

    colours = ["#" + "".join(f"{round(255 * part):02x}" for part in jmol_colors[z]) for z in picture.numbers]
    content = {
        "symbols": [chemical_symbols[z] for z in picture.numbers],
        "radii": [round(_radius(z), 3) for z in picture.numbers],
        "colours": colours,
        "positions": np.round(picture.positions, 4).tolist(),
        "bonds": _bonds(picture).tolist(),
        "scale": _scale(picture),
        "forces": [
            {"name": name, "colour": _COLOURS[k], "vectors": np.round(force, 4).tolist()}
            for k, (name, force) in enumerate(picture.forces.items())
        ],
    }
    template = resources.files("eqscale.tasks.forces").joinpath("molecule.html").read_text(encoding="utf-8")
    data = json.dumps(content).replace("<", "\\u003c")
    page = template.replace("{{title}}", html.escape(picture.title)).replace("{{data}}", data)
    write_text(path, page)
