"""What the commands share: flags without surprises, and mistakes answered in one line with exit status 2."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from dcjax.runtime.errors import InterruptedRunError, SettingError


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
    """Runs a command on the process's arguments and leaves with its exit status.

    0 when it is done, 1 when a signal or the failure of one of several processes stopped it and it can go on from a
    checkpoint, 2 after a mistake in a setting, 130 when it was interrupted before there was anything to save.
    """
    try:
        command(sys.argv[1:])
    except SettingError as error:
        leave(2, " ".join(str(error).split()))
    except InterruptedRunError as error:
        leave(1, " ".join(str(error).split()))
    except KeyboardInterrupt:
        leave(130, "interrupted; what was saved before stays")
    sys.exit(0)


def leave(status: int, message: str) -> NoReturn:
    """Prints one line and ends the process at once: threads that are reading or compiling would add their own noise."""
    sys.stdout.flush()
    print(f"dcjax: {message}", file=sys.stderr, flush=True)
    os._exit(status)
