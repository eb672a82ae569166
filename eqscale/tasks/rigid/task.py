"""The rigid-body benchmark as a task: bodies thrown onto a floor and into each other."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqscale.errors import InputError
from eqscale.tasks import register
from eqscale.tasks.base import Metric, Option, Options, OptionValue, Task
from eqscale.tasks.dataset import DataSpec
from eqscale.tasks.fields import Batch
from eqscale.tasks.metrics import Predictor
from eqscale.tasks.rigid.animate import animate_prediction, animate_scene
from eqscale.tasks.rigid.engine import ENGINE_VERSION, ENGINES, FRAME_RATE, simulate
from eqscale.tasks.rigid.families import FAMILIES, Family
from eqscale.tasks.rigid.meshes import family_of_meshes
from eqscale.tasks.rigid.metrics import evaluate
from eqscale.tasks.rigid.rollout import evaluate_rollout, last_start
from eqscale.tasks.rigid.scene import GRAVITY, random_frame, sample_scene
from eqscale.tasks.rigid.symmetry import ELEMENTS, align, random_vertical
from eqscale.tasks.rigid.windows import (
    FRAME_PROTOCOLS,
    FRAMES,
    HORIZONS,
    SCHEMA,
    STARTS,
    Windows,
    record_type,
    residual_rms,
)
from eqscale.tasks.samples import Samples
from eqscale.tasks.symmetry import Elements, random_orthogonal
from eqscale.wording import Noun, Wording

FORMAT = 1
"""Version of the shards' layout and of everything in this package that decides the stored numbers."""


def data_spec(
    scenes: str | Family = "S",
    train_systems: int = 4000,
    test_systems: int = 500,
    seed: int = 0,
    engine: str = "standard",
) -> DataSpec:
    """Data of a family of the benchmark, by name, or of a family made from other meshes."""
    return DataSpec("rigid", (("family", scenes), ("engine", engine)), seed, train_systems, test_systems)


class RigidTask(Task):
    """Scenes as systems, windows of 1/24 s steps as samples, vertices as tokens."""

    schema = SCHEMA
    options = (
        Option(
            "family",
            "S",
            "scene family: S (3-5 small hulls), M (3-10) or L (3-10 hulls of 33-64 vertices)",
            tuple(FAMILIES),
        ),
        Option("engine", "standard", "settings of the simulator", tuple(ENGINES)),
        Option("horizon", 4, "frames of 1/24 s between input and target", HORIZONS, of_data=False),
        Option(
            "frame",
            "random",
            "frame of the samples: random (no direction is special) or upright",
            FRAME_PROTOCOLS,
            of_data=False,
        ),
    )
    variant: Mapping[str, OptionValue] = {"frame": "upright"}
    look_options = (
        Option("seconds", 2.0, "length of the simulation"),
        Option("meshes", "", "folder of .obj meshes to throw instead of the family's own shapes"),
    )
    samples_per_system = STARTS
    metrics = (
        Metric("vertex_rmse_m", "root mean squared error of vertex positions, m"),
        Metric("center_rmse_m", "root mean squared error of centres of mass, m"),
        Metric("rotation_error_deg", "root mean squared rotation error after Kabsch, degrees"),
        Metric("rigidity_error_m", "root mean squared distance of the predicted vertices from a rigid body, m"),
        Metric("nmse_free", "squared error of objects in free flight, over the mean squared target of all objects"),
        Metric("nmse_floor", "the same for objects that touch only the floor"),
        Metric("nmse_object", "the same for objects that touch another object"),
        Metric("equivariance_yaw", "equivariance error for turns about gravity's axis"),
    )
    words = Wording(
        name="rigid",
        sentence="From the state of the mesh vertices of colliding rigid bodies, predict where every vertex is 1/6 s "
        "later",
        unit=Noun("scene", "scenes"),
        sample=Noun("window", "windows"),
        trivial="ballistic motion",
        metrics={
            "nmse_free": "free flight",
            "nmse_floor": "floor only",
            "nmse_object": "another object",
            "vertex_rmse_m": "vertices, m",
            "center_rmse_m": "centre of mass, m",
            "rotation_error_deg": "rotation, °",
            "rigidity_error_m": "rigidity, m",
        },
        metrics_note="NMSE by what a body touches is over the mean squared target of all bodies; the others are root "
        "mean squares.",
        variant=Noun("frame", "frames"),
        rollout={"translation_rmse_m": "centre of mass, m", "rotation_rmse_deg": "rotation, °"},
        animation="One test scene: the truth, predictions one horizon ahead of each true state, and a rollout, which "
        "holds each of its states until its next step. Shapes are those of the truth at the start; a prediction moves "
        "each vertex by itself.",
    )
    stored_names: Mapping[str, str] = {
        "train_systems": "train_scenes",
        "test_systems": "test_scenes",
        "test_samples_per_system": "test_windows_per_scene",
        "unique_samples": "unique_windows",
    }

    def check_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """As ``Task.check_options``; a family may also be one made from other meshes."""
        own = given.get("family")
        if not isinstance(own, Family):
            return super().check_options(given)
        return super().check_options({k: v for k, v in given.items() if k != "family"}) | {"family": own}

    def max_tokens(self, options: Options) -> int:
        """As ``Task.max_tokens``."""
        scenes = _family(options)
        return scenes.max_objects * scenes.max_vertices

    def draw_tokens(self, options: Options, n: int, rng: np.random.Generator) -> np.ndarray:
        """Token counts as the family draws its objects."""
        scenes = _family(options)
        vertices = rng.choice([len(hull.vertices) for hull in scenes.hulls], (n, scenes.max_objects))
        objects = rng.integers(scenes.objects[0], scenes.objects[1] + 1, (n, 1))
        return np.where(np.arange(scenes.max_objects) < objects, vertices, 0).sum(1)

    def definition(self, options: Options, seed: int) -> dict[str, Any]:
        """As ``Task.definition``."""
        engine = ENGINES[str(options["engine"])]
        plain = {
            "format": FORMAT,
            "engine": {"name": "mujoco", "version": ENGINE_VERSION, **dataclasses.asdict(engine)},
            "family": dataclasses.asdict(_family(options)),
            "seed": seed,
            "gravity": GRAVITY,
            "frames": FRAMES,
            "frame_rate": FRAME_RATE,
        }
        # Nine digits: a vertex that another CPU's sine rounds differently is the same vertex.
        return json.loads(json.dumps(plain), parse_float=lambda text: round(float(text), 9))

    def folder_name(self, options: Options) -> str:
        """Name of the family."""
        return _family(options).name

    def records(self, options: Options, seed: int, split: str, start: int, stop: int) -> np.ndarray:
        """Simulate scenes ``start`` to ``stop - 1`` of a split."""
        scenes = _family(options)
        records = np.zeros(stop - start, record_type(scenes))
        for record, index in zip(records, range(start, stop), strict=True):
            scene = sample_scene(scenes, seed, split, index)
            run = simulate(scene, FRAMES, ENGINES[str(options["engine"])])
            n = scene.n
            record["trajectory"][:, :n] = run.state
            for i, vertices in enumerate(scene.vertices):
                record["vertices"][i, : len(vertices)] = vertices
                record["count"][i] = len(vertices)
            record["mass"][:n], record["friction"][:n] = scene.mass, scene.friction
            record["restitution"][:n] = scene.restitution
            record["floor"] = scene.floor_friction, scene.floor_restitution
            record["frame"] = random_frame(seed, split, index)
            record["contact"][:, :n] = run.contact @ np.array([1, 2], np.uint8)
        return records

    def statistics(self, options: Options, records: np.ndarray) -> dict[str, float]:
        """Unit of the targets at every horizon, m, and the simulator's time step, s."""
        step = ENGINES[str(options["engine"])].time_step
        return {"time_step": step} | {f"sigma_{h}": residual_rms(records, h, step) for h in HORIZONS}

    def open(self, options: Options, shards: Sequence[np.ndarray], statistics: Mapping[str, float]) -> Windows:
        """As ``Task.open``."""
        horizon, frame = int(options["horizon"]), str(options["frame"])
        return Windows(shards, horizon, statistics[f"sigma_{horizon}"], statistics["time_step"], frame)

    def check_labels(self, options: Options, seed: int) -> None:
        """Nothing: a simulation can't start from a window alone. docs/benchmark.md shows the symmetry, measured."""

    def elements(self, options: Options) -> Elements:
        """All of O(3) in random frames; in upright ones, turns about the vertical and their mirror images."""
        return random_vertical if options["frame"] == "upright" else random_orthogonal

    def classes(self) -> Mapping[str, Callable[[Batch, torch.Generator], Batch]]:
        """As ``Task.classes``."""
        return ELEMENTS

    def align(self, batch: Batch) -> tuple[Batch, Tensor]:
        """Upright, by gravity."""
        return align(batch)

    def rollout(self, predict: Predictor, samples: Samples, systems: int, seconds: float) -> dict[str, Any] | None:
        """Rollouts at starts that take turns among those that leave room for them."""
        assert isinstance(samples, Windows)
        longest = (FRAMES - 1) // samples.horizon
        steps = round(seconds / samples.time) if 0 <= seconds < 1e3 else -1
        if not 0 < steps <= longest:
            raise InputError(
                f"a rollout of {seconds:g} s: choose from {samples.time:.3g} to {longest * samples.time:.3g} s, in "
                f"steps of {samples.time:.3g} s, or 0 for none"
            )
        scene = np.arange(systems)
        starts = min(last_start(samples, steps), samples.samples_per_system)
        return evaluate_rollout(predict, samples, scene * samples.samples_per_system + scene % starts, steps)

    def look(self, options: Options, seed: int, index: int, out: Path | None) -> str:
        """A scene in real time, as a GIF."""
        seconds, meshes = float(options["seconds"]), str(options["meshes"])
        if not 0 < seconds <= 60:
            raise InputError(f"--seconds {seconds:g}: must be above 0 and at most 60")
        scenes = family_of_meshes(Path(meshes), _family(options)) if meshes else _family(options)
        scene = sample_scene(scenes, seed, "train", index)
        path = out or Path(f"scene-{scenes.name}-{seed}-{index}.gif")
        title = f"family {scenes.name}, seed {seed}, scene {index}"
        return f"wrote {animate_scene(scene, path, seconds, title)}: {scene.n} objects, {seconds:g} s"

    def look_at_prediction(self, predict: Predictor, samples: Samples, index: int, out: Path, title: str) -> Path:
        """Truth, prediction one horizon ahead, and rollout, as a GIF."""
        assert isinstance(samples, Windows)
        return animate_prediction(predict, samples, index, out, title)

    def evaluate(self, predict: Predictor, samples: Samples, indices: np.ndarray) -> dict[str, float]:
        """As ``Task.evaluate``, with the errors by contact."""
        assert isinstance(samples, Windows)
        return evaluate(predict, samples, indices)


def _family(options: Options) -> Family:
    chosen = options["family"]
    return chosen if isinstance(chosen, Family) else FAMILIES[chosen]


TASK = register(RigidTask())
