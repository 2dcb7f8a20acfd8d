"""The processes of a run: flags by which they find each other, and errors that end all of them when one is gone."""

import argparse
import contextlib
import re
import time
import traceback
from collections.abc import Iterator

from dcjax.runtime.cli import Parser
from dcjax.runtime.errors import InterruptedRunError, SettingError

HEARTBEAT_TIMEOUT_SECONDS = 30
LAST_TO_LEAVE_SECONDS = 3


def add_process_flags(parser: Parser) -> None:
    """Adds the flags by which the processes of a run find each other."""
    parser.add_argument("--distributed", action="store_true", help="join the processes of a pod slice or a cluster")
    parser.add_argument("--coordinator_address", metavar="HOST:PORT", help="process 0, where JAX does not find it")
    parser.add_argument("--num_processes", type=int, help="how many there are, with --coordinator_address")
    parser.add_argument("--process_id", type=int, help="which one this is, from 0, with --coordinator_address")
    parser.add_argument(
        "--heartbeat_timeout_seconds",
        type=int,
        default=HEARTBEAT_TIMEOUT_SECONDS,
        help=f"a process silent for so long counts as dead and ends the run (default: {HEARTBEAT_TIMEOUT_SECONDS})",
    )


def join_processes(flags: argparse.Namespace) -> None:
    """Joins the other processes if the flags ask for it.

    Raises:
      SettingError: the flags are incomplete or malformed, or JAX detects no cluster.
    """
    given = [flags.coordinator_address, flags.num_processes, flags.process_id]
    if any(value is not None for value in given) and any(value is None for value in given):
        raise SettingError("--coordinator_address, --num_processes and --process_id belong together; give all three")
    address = flags.coordinator_address
    if address is not None:
        host, _, port = address.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 2**16):
            raise SettingError(f"--coordinator_address must be HOST:PORT, e.g. 10.0.0.1:1234, found '{address}'")
    if flags.heartbeat_timeout_seconds < 1:
        raise SettingError(f"--heartbeat_timeout_seconds must be at least 1, found {flags.heartbeat_timeout_seconds}")
    if flags.distributed or address is not None:
        from dcjax.runtime.mesh import start_processes  # imported here because it loads JAX

        if address is not None:
            print(f"dcjax: process {flags.process_id} of {flags.num_processes} joins at {address}", flush=True)
        start_processes(
            address,
            flags.num_processes,
            flags.process_id,
            heartbeat_timeout_seconds=flags.heartbeat_timeout_seconds,
        )


@contextlib.contextmanager
def one_of_several() -> Iterator[None]:
    """Turns a failure of one of several processes into an error that ends it at once, so that the others notice.

    Otherwise the failed process would wait for the others to end, while they wait for its next step. Where the network
    tells that a process is gone (on CPU), the computation of the others fails and they report it in one line. Where
    they would wait without end (on GPU and TPU, or for a process that hangs), the missing heartbeats end them with
    JAX's own message.

    Raises:
      InterruptedRunError: this process failed, or the connection to the others is lost. A `SettingError`, an
        `InterruptedRunError` and any error of a single process pass unchanged.
    """
    import jax

    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or isinstance(error, InterruptedRunError):  # `StoppedRunError` is one
            raise
        if isinstance(error, SettingError):
            if jax.process_index() == 0:
                # JAX ends the others as soon as process 0 ends. This leaves them time to report a mistake that all of
                # them made.
                time.sleep(LAST_TO_LEAVE_SECONDS)
            raise
        this = f"process {jax.process_index()} of {jax.process_count()}"
        # Mostly a connection that is gone. XLA's errors begin with a status such as INTERNAL; some are `ValueError`.
        if isinstance(error, jax.errors.JaxRuntimeError) or re.match("[A-Z]{2}[A-Z_]+: ", str(error)):
            reason = str(error).partition("\n")[0]
            raise InterruptedRunError(
                f"{this} ends because a computation of all processes failed ({reason}); see which one ended first and "
                "why, then start all of them again: the run resumes from its last checkpoint, if there is one"
            ) from error
        traceback.print_exc()
        raise InterruptedRunError(f"{this} failed as shown above, and the others end with it") from error
