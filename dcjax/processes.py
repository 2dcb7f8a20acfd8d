"""The processes of a run: how they find each other, and what they say when one of them is gone."""

import argparse
import contextlib
import time
from collections.abc import Iterator

from dcjax.cli import Parser
from dcjax.errors import InterruptedRunError, SettingError

HEARTBEAT_TIMEOUT_SECONDS = 30
LAST_TO_LEAVE_SECONDS = 3


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
    if flags.heartbeat_timeout_seconds < 1:
        raise SettingError(f"--heartbeat_timeout_seconds must be at least 1, found {flags.heartbeat_timeout_seconds}")
    if flags.distributed or flags.coordinator_address:
        from dcjax.mesh import start_processes  # late: the flags are read before JAX is imported

        start_processes(
            flags.coordinator_address,
            flags.num_processes,
            flags.process_id,
            heartbeat_timeout_seconds=flags.heartbeat_timeout_seconds,
        )


@contextlib.contextmanager
def explain_lost_processes() -> Iterator[None]:
    """Says in one line what a failed computation of several processes most likely means.

    Where the network tells that a process is gone (on CPU), the computation fails and ends here. Where the others would
    wait for it without end (on GPU and TPU, or for a process that hangs), the missing heartbeats end them, with JAX's
    own message.

    Raises:
      InterruptedRunError: the devices report an error, and the run has several processes.
    """
    import jax

    try:
        yield
    except SettingError:
        if jax.process_count() > 1 and jax.process_index() == 0:
            # JAX ends the others as soon as the first process leaves: a mistake that all have made they answer before.
            time.sleep(LAST_TO_LEAVE_SECONDS)
        raise
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("\n")[0]
        if jax.process_count() == 1 or reason.startswith("RESOURCE_EXHAUSTED"):
            raise
        raise InterruptedRunError(
            f"process {jax.process_index()} of {jax.process_count()} has lost the others ({reason}); see which one "
            "ended first and why, then start all of them again: the run goes on from its last checkpoint"
        ) from error
