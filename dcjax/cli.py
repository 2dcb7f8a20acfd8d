"""What the commands share: flags without surprises, and mistakes answered in one line with exit status 2."""

import argparse
import os
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


def add_process_flags(parser: Parser) -> None:
    """Adds the flags by which the processes of a run find each other."""
    parser.add_argument("--distributed", action="store_true", help="join the processes of a pod slice or a cluster")
    parser.add_argument("--coordinator_address", metavar="HOST:PORT", help="of process 0, where JAX does not find it")
    parser.add_argument("--num_processes", type=int, help="with --coordinator_address")
    parser.add_argument("--process_id", type=int, help="with --coordinator_address")


def join_processes(flags: argparse.Namespace) -> None:
    """Joins the other processes where the flags ask for it."""
    given = [flags.coordinator_address, flags.num_processes, flags.process_id]
    if any(value is not None for value in given) and any(value is None for value in given):
        raise SettingError("--coordinator_address, --num_processes and --process_id belong together; give all three")
    if flags.distributed or flags.coordinator_address:
        from dcjax.mesh import start_processes

        start_processes(flags.coordinator_address, flags.num_processes, flags.process_id)


def run(command: Callable[[Sequence[str]], None]) -> NoReturn:
    """Runs a command on the process's arguments and leaves with its exit status.

    0 when it is done, 1 when a signal stopped it with its state saved, 2 after a mistake in a setting, 130 when it was
    interrupted before there was anything to save.
    """
    try:
        command(sys.argv[1:])
    except SettingError as error:
        leave(2, " ".join(str(error).split()))
    except KeyboardInterrupt:
        leave(130, "interrupted; what was saved before stays")
    sys.exit(0)


def leave(status: int, message: str) -> NoReturn:
    """Prints one line and ends the process at once: threads that are reading or compiling would add their own noise."""
    sys.stdout.flush()
    print(f"dcjax: {message}", file=sys.stderr, flush=True)
    os._exit(status)
