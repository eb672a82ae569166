"""``eqscale run optimizers``, for a clone: ``python tune_jobs/optimizers.py --help`` lists its options."""

import sys

from eqscale.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", "optimizers", *sys.argv[1:]]))
