"""``eqscale run data``, for a clone: ``python tune_jobs/data_grid.py --help`` lists its options."""

import sys

from eqscale.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", "data", *sys.argv[1:]]))
