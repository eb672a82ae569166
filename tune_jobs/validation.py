"""``eqscale run validate``, for a clone: ``python tune_jobs/validation.py --help`` lists its options."""

import sys

from eqscale.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", "validate", *sys.argv[1:]]))
