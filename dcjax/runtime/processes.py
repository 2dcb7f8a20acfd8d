"""The processes of a run: how they find each other, and what they say when one of them is gone."""

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

# How the errors begin, or what they name, when the other side of a connection is gone.
LOST = re.compile(r"^(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED)|Gloo|[Cc]onnection|[Bb]arrier")


def add_process_flags(parser: Parser) -> None:
    """Adds the flags by which the processes of a run find each other."""
    parser.add_argument("--distributed", action="store_true", help="join the processes of a pod slice or a cluster")
    parser.add_argument("--coordinator_address", metavar="HOST:PORT", help="of process 0, where JAX does not find it")
    parser.add_argument("--num_processes", type=int, help="with --coordinator_address")
    parser.add_argument("--process_id", type=int, help="with --coordinator_address")
    parser.add_argument(
        "--heartbeat_timeout_seconds",
        type=int,
        default=HEARTBEAT_TIMEOUT_SECONDS,
        help=f"a process silent for so long counts as dead and ends the run (default: {HEARTBEAT_TIMEOUT_SECONDS})",
    )


def join_processes(flags: argparse.Namespace) -> None:
    """Joins the other processes where the flags ask for it."""
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
        from dcjax.runtime.mesh import start_processes  # late: the flags are read before JAX is imported

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
    """Ends this process of a run in a way that the others notice.

    Whatever fails here would otherwise wait for the others to end too, while they wait for its next step. Where the
    network tells that a process is gone (on CPU), the computation of the others fails, and one line says so. Where they
    would wait without end (on GPU and TPU, or for a process that hangs), the missing heartbeats end them, with JAX's
    own message.

    Raises:
      InterruptedRunError: the connection to the other processes is lost.
    """
    import jax

    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, SettingError):
            if jax.process_index() == 0:
                # JAX ends the others as soon as the first process leaves: a mistake that all of them made they answer
                # before.
                time.sleep(LAST_TO_LEAVE_SECONDS)
            raise
        this = f"process {jax.process_index()} of {jax.process_count()}"
        reason = str(error).partition("\n")[0]
        if isinstance(error, jax.errors.JaxRuntimeError) and LOST.search(reason):
            raise InterruptedRunError(
                f"{this} has lost the others ({reason}); see which one ended first and why, then start all of them "
                "again: the run goes on from its last checkpoint, if there is one"
            ) from error
        traceback.print_exc()
        raise InterruptedRunError(f"{this} failed as shown above, and the others end with it") from error
