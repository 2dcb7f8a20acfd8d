"""The flags by which the processes of a run find each other."""

import argparse

from dcjax.cli import Parser
from dcjax.errors import SettingError


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
        from dcjax.mesh import start_processes  # late: the flags are read before JAX is imported

        start_processes(flags.coordinator_address, flags.num_processes, flags.process_id)
