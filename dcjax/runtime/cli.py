"""Shared by all commands: the parser, the flag for a run, and mistakes reported in one line with exit status 2."""

import argparse
import contextlib
import errno
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

from dcjax.runtime.compile_cache import use_compile_cache
from dcjax.runtime.errors import InterruptedRunError, SettingError, StoppedRunError

LAST_WORDS_SECONDS = 1.0  # for each of stdout and stderr


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
    """Adds the flags that name the run a command reads: `RUN`, or `--workdir=RUN`."""
    parser.add_argument("run", nargs="?", metavar="RUN", help="the folder of a run of dcjax main")
    parser.add_argument("--workdir", metavar="RUN", help="the same folder, as a flag")


def chosen_run(flags: argparse.Namespace) -> str:
    """The folder that the flags of `add_run` name.

    Raises:
      SettingError: they name no folder, or two.
    """
    given = [folder for folder in (flags.run, flags.workdir) if folder]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise SettingError(f"name one run, as RUN or as --workdir=RUN; found {found} (--help lists the flags)")
    return given[0]


def run(command: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits the process.

    The exit status is 0 after success; 1 where the same command goes on, after a signal, the failure of one of several
    processes, while another process trains the run, or while its files cannot be read; 2 after a mistake in a setting,
    a full disk or numbers that are not finite; and 130 after a KeyboardInterrupt, which saves nothing.
    `end_on_signals` ends a training at once with 130 or 143, the watchdog with 75.

    Args:
      command: a function of the arguments.
      argv: the arguments; None for those of the process.
    """
    use_compile_cache()
    try:
        command(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except SettingError as error:
        leave(2, " ".join(str(error).split()))
    except StoppedRunError as error:
        sys.exit(f"dcjax: {error}")  # not `leave`: the other processes of the run wait for an orderly end
    except InterruptedRunError as error:
        leave(1, " ".join(str(error).split()))
    except KeyboardInterrupt:
        leave(130, "ended by SIGINT; files that were saved before stay")
    except BrokenPipeError:  # the program that reads the output has ended, as `head` does
        os._exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        leave(2, f"a file or the output cannot be written ({error.strerror}); free some space")
    sys.exit(0)


def leave(status: int, message: str, *, before: Callable[[], str] | None = None) -> NoReturn:
    """Prints one line and ends the process at once, so that threads still at work do not print errors of their own.

    It ends also where nothing can be printed: on a full disk, after the end of the program that reads the output, or
    while that program has stopped reading and another thread, which waits for it, holds the lock of the output.

    Args:
      status: the exit status.
      message: the line, without the name of the program.
      before: gives the text before the line, which is written with it at once.
    """

    def last_words() -> None:
        text = ""
        with contextlib.suppress(Exception):
            text = before() if before is not None else ""
        print(f"{text}dcjax: {message}", file=sys.stderr, flush=True)

    try:
        for write in (lambda: sys.stdout.flush(), last_words):
            thread = threading.Thread(target=_suppressing, args=(write,), daemon=True)
            try:
                thread.start()
                thread.join(LAST_WORDS_SECONDS)
            except RuntimeError:  # no more threads
                _suppressing(write)
    finally:
        os._exit(status)


def _suppressing(write: Callable[[], object]) -> None:
    with contextlib.suppress(Exception):  # a stream may be missing, closed, no file, or on a full disk
        write()
