"""What the commands share: flags without surprises, and mistakes answered in one line with exit status 2."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from dcjax.runtime.errors import InterruptedRunError, SettingError, StoppedRunError


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


def add_run(parser: Parser) -> None:
    """Adds the run that a command reads: `RUN`, or `--workdir=RUN`."""
    parser.add_argument("run", nargs="?", metavar="RUN", help="the folder of a run of dcjax main")
    parser.add_argument("--workdir", metavar="RUN", help="the same")


def chosen_run(flags: argparse.Namespace) -> str:
    """The folder that the flags of `add_run` name."""
    given = [folder for folder in (flags.run, flags.workdir) if folder]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise SettingError(f"name one run, as RUN or as --workdir=RUN; found {found} (--help lists the flags)")
    return given[0]


def run(command: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and leaves with its exit status.

    0 when it is done, 1 when a signal or the failure of one of several processes stopped it and it can go on from a
    checkpoint, 2 after a mistake in a setting, 130 when it was interrupted before there was anything to save.

    Args:
      command: takes the arguments.
      argv: the arguments; None for the process's own.
    """
    try:
        command(sys.argv[1:] if argv is None else argv)
    except SettingError as error:
        leave(2, " ".join(str(error).split()))
    except StoppedRunError as error:
        sys.exit(f"dcjax: {error}")  # an orderly end: the other processes of the run wait for this one
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
