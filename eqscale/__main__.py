"""``python -m eqscale`` is the command ``eqscale``."""

import sys

from eqscale.cli import main

if __name__ == "__main__":
    sys.exit(main())
