"""The jobs of ``eqscale run``: each plans runs, trains what is missing with Ray Tune, and reports.

A job's module has the name of the job, the text of its ``--help`` as docstring, and ``main(options)``. What its command
line needs is here, so that a wrong word needn't wait for the imports of the module.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Job:
    """A job's command line."""

    question: str
    presets: str
    """Name of its presets in ``eqscale.study.presets``."""
    part: str = ""
    """Subfolder of its results in those of the study, and suffix of the study's name."""
    add_options: Callable[[argparse.ArgumentParser], object] = lambda parser: None
    """Adds the options that only this job has."""


def _next_runs(parser: argparse.ArgumentParser) -> None:
    help_text = (
        "choose the K runs that would make the arms' laws most certain just beyond the largest budget, from the "
        "ladders, at no more than the cost of K average runs; they become part of the study. If runs chosen earlier "
        "haven't ended, these go on instead"
    )
    parser.add_argument("--next", type=int, metavar="K", help=help_text)


JOBS = {
    "grid": Job(
        "which arm wins at a given training compute, and how large should it be?",
        "COMPUTE_GRIDS",
        add_options=_next_runs,
    ),
    "data": Job("at fixed compute, what is more unique data worth to each arm?", "DATA_GRIDS", "data_grid"),
    "controls": Job("is it the symmetry: what does an arm lose without it?", "CONTROLS", "controls"),
    "validate": Job("does a prediction hold above the budgets of the grid?", "VALIDATIONS", "validation"),
    "optimizers": Job("does the answer depend on the optimiser?", "OPTIMIZERS", "optimizers"),
    "search": Job("which learning rate, batch size and other settings suit an arm?", "SEARCHES", "learning_rate"),
    "shapes": Job("does it matter whether an arm is wide or deep?", "ASPECT_RATIOS", "aspect_ratio"),
}
