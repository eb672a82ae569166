"""``eqscale run grid``, for a clone: ``python tune_jobs/compute_grid.py --help`` lists its options."""

import sys

from eqscale.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", "grid", *sys.argv[1:]]))
