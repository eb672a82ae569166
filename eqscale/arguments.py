"""The parser of every command line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from eqscale.errors import InputError


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, except that a wrong word is one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        raise InputError(f"{message} ({self.prog} --help lists what there is)")
