"""``eqscale run controls``, for a clone: ``python tune_jobs/controls.py --help`` lists its options."""

import sys

from eqscale.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", "controls", *sys.argv[1:]]))
