"""``eqscale run shapes``, for a clone: ``python tune_jobs/aspect_ratio.py --help`` lists its options."""

import sys

from eqscale.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", "shapes", *sys.argv[1:]]))
