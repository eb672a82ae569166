"""Pictures of scenes that move: a simulation, or a predictor's motion beside the truth, as a GIF."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import torch

from eqscale.errors import InputError
from eqscale.storage import written_whole
from eqscale.tasks.rigid.engine import FRAME_RATE, simulate
from eqscale.tasks.rigid.metrics import Predictor
from eqscale.tasks.rigid.motion import Objects, ballistic
from eqscale.tasks.rigid.rollout import STEPS, rollout
from eqscale.tasks.rigid.scene import Scene
from eqscale.tasks.rigid.windows import FRAMES, STARTS, Windows

_ELEVATION, _AZIMUTH = 18.0, -60.0


@dataclasses.dataclass(frozen=True)
class Panel:
    """One moving picture: upright tracks of every object's vertices."""

    title: str
    tracks: list[np.ndarray]
    """Per object (F, V, 3), m."""


def animate_scene(scene: Scene, path: Path, seconds: float = 2.0, title: str = "") -> Path:
    """Simulate an upright scene and write it as a GIF in real time."""
    run = simulate(scene, max(1, round(seconds * FRAME_RATE)))
    return draw([Panel(title, run.vertices(scene))], path)


@torch.no_grad()
def animate_prediction(predict: Predictor, windows: Windows, scene: int, path: Path, name: str = "model") -> Path:
    """Write a GIF of a scene: truth, prediction one horizon ahead of each true state, and rollout.

    The rollout holds each of its states until its next step. Raises InputError for a scene outside the split.
    """
    if not 0 <= scene < windows.n_systems:
        raise InputError(f"scene {scene}: the split has scenes 0..{windows.n_systems - 1}")
    h, first = windows.horizon, scene * windows.samples_per_system
    rolled = min(STEPS, (FRAMES - 1) // h)
    steps = np.arange(min(STARTS, (rolled - 1) * h + 1))
    batch = windows.batch(first + steps)
    free = ballistic(batch, Objects(batch), windows.time, windows.time_step).position
    # Every batch is centred on its own start: bring all to the coordinates of the first.
    shift = windows.track(np.array([first]), steps)[:, 0] - batch["position"]
    truth = windows.track(np.array([first]), steps + h)[:, 0]
    ahead = free + windows.sigma * predict(batch) + shift
    held = rollout(predict, windows, np.array([first]), rolled)[0][(steps + h) // h, 0]
    upright = windows.matrix[scene]  # orthogonal: multiplying rows from the right undoes it
    floor = float(batch["floor"][0, 3])
    body = batch["object_index"][0].numpy()

    def tracks(points: torch.Tensor) -> list[np.ndarray]:
        world = points.double().numpy() @ upright - np.array([0.0, 0.0, floor])
        return [world[:, body == k] for k in range(body.max() + 1)]

    panels = [Panel("truth", tracks(truth)), Panel(f"{name}, {windows.time:.2g} s ahead", tracks(ahead))]
    return draw([*panels, Panel(f"{name}, rolled out", tracks(held))], path)


def draw(panels: list[Panel], path: Path) -> Path:
    """Draw the panels side by side above a common floor (z = 0) as a GIF of 24 frames per second."""
    if Path(path).suffix.lower() != ".gif":
        raise InputError(f"animation {path}: the name must end in .gif")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.animation import FuncAnimation, PillowWriter
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection
    from scipy.spatial import ConvexHull

    every = np.concatenate([t.reshape(-1, 3) for t in panels[0].tracks])
    low, high = every.min(axis=0), every.max(axis=0)
    middle, reach, top = (low + high)[:2] / 2, (high - low)[:2].max() / 2 + 0.3, max(high[2], 1.0)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4 * len(panels), 3.2), subplot_kw={"projection": "3d"}, squeeze=False
    )
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.93, wspace=0)
    palette = [plt.get_cmap("tab10")(k)[:3] for k in range(10)]
    light = np.array([0.4, -0.5, 0.77])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    tiles = [
        np.c_[middle + reach * ((corners + 1) / 8 + np.array(place) / 4 - 1), np.zeros(4)]
        for place in itertools.product(range(8), repeat=2)
    ]
    shades = [("0.93" if (k // 8 + k) % 2 else "0.88") for k in range(64)]
    # A prediction need not be rigid: the faces are those of the true start, its corners move freely.
    faces = [ConvexHull(track[0]).simplices for track in panels[0].tracks]
    counts = [len(f) for f in faces]
    colours = np.repeat([palette[k % len(palette)] for k in range(len(faces))], counts, axis=0)
    solids = []
    for ax, panel in zip(axes[0], panels, strict=True):
        ax.set_title(panel.title, fontsize=10)
        ax.set(xlim=middle[0] + np.array([-reach, reach]), ylim=middle[1] + np.array([-reach, reach]))
        ax.set(zlim=(0, top))
        ax.set_box_aspect((2 * reach, 2 * reach, top), zoom=1.25)
        ax.view_init(elev=_ELEVATION, azim=_AZIMUTH)
        ax.set_axis_off()
        ax.computed_zorder = False  # the floor is behind everything; depth sorts the triangles in front
        ax.add_collection3d(Poly3DCollection(tiles, facecolors=shades, edgecolor="none", zorder=0))
        solid = Poly3DCollection(np.zeros((1, 3, 3)), edgecolor="none", zorder=1)
        ax.add_collection3d(solid)
        solids.append((solid, panel.tracks))

    def show(frame: int) -> list:
        for solid, tracks in solids:
            triangles = np.concatenate([t[frame][f] for t, f in zip(tracks, faces, strict=True)])
            middles = np.repeat([t[frame].mean(axis=0) for t in tracks], counts, axis=0)
            normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
            normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
            outward = np.sign(np.einsum("fi,fi->f", normal, triangles.mean(axis=1) - middles))
            shade = 0.65 + 0.35 * (normal * outward[:, None]) @ light
            solid.set_verts(triangles)
            solid.set_facecolor(np.clip(colours * shade[:, None], 0, 1))
        return [solid for solid, _ in solids]

    frames = len(panels[0].tracks[0])
    animation = FuncAnimation(figure, show, frames=frames, interval=1000 / FRAME_RATE)
    try:
        with written_whole(Path(path)) as file:
            animation.save(str(file), writer=PillowWriter(fps=FRAME_RATE), dpi=80)
    except OSError as error:
        raise InputError(f"cannot write the animation {path}: {error.strerror or error}") from error
    finally:
        plt.close(figure)
    return Path(path)
