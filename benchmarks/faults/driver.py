"""A compute grid without its report: the driver that the fault scripts start and kill."""

from __future__ import annotations

import sys

from eqscale.cli import run_or_exit
from eqscale.study.grid import compute_grid
from eqscale.study.job import run_study
from eqscale.study.options import parse_options
from eqscale.study.presets import COMPUTE_GRIDS


def main() -> int:
    options = parse_options("", COMPUTE_GRIDS, command="grid", job="", argv=sys.argv[1:])
    return run_study(compute_grid(options.preset), options, publish=lambda table: None)


if __name__ == "__main__":
    sys.exit(run_or_exit(main))
