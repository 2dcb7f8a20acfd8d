"""What the commands share: flags without surprises, and mistakes answered in one line with exit status 2."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from dcjax.errors import SettingError


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations and raises `SettingError` where argparse would print its usage."""

    def __init__(self, prog: str, description: str):
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise SettingError(f"{message} (--help lists the flags)")


def run(command: Callable[[Sequence[str]], None]) -> NoReturn:
    """Runs a command on the process's arguments and leaves with status 0, or 2 after a mistake in a setting."""
    try:
        command(sys.argv[1:])
    except SettingError as error:
        print("dcjax: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
