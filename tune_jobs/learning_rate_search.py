"""``eqscale run search``, for a clone: ``python tune_jobs/learning_rate_search.py --help`` lists its options."""

import sys

from eqscale.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", "search", *sys.argv[1:]]))
