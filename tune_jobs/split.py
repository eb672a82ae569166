"""``eqscale run split``, for a clone: ``python tune_jobs/split.py --help`` lists its options."""

import sys

from eqscale.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", "split", *sys.argv[1:]]))
