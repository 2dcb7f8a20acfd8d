"""Trains an encoder as a config file says.

    python -m dcjax.main --config=configs/directclr.py --workdir=runs/directclr --config.batch_size=1024

The same command again goes on from the last checkpoint. `--config` takes `file.py` or `file.py:argument`; a name such
as configs/simclr.py that is not found from the working directory is the one that ships with the package. Any key of the
config is set by --config.KEY=VALUE.
"""

import pathlib
from collections.abc import Sequence

from dcjax import cli
from dcjax.config import parse_config


def main(argv: Sequence[str]) -> None:
    """Parses the command line, trains, and probes where the config asks for it."""
    parser = cli.Parser(prog="python -m dcjax.main", description=__doc__ or "")
    parser.add_argument("--config", metavar="FILE[:ARGUMENT]", help="the config file (required)")
    parser.add_argument("--workdir", help="the run's folder (default: runs/<config>)")
    parser.add_argument("--distributed", action="store_true", help="join the processes of a pod slice or a cluster")
    parser.add_argument("--coordinator_address", metavar="HOST:PORT", help="of process 0, where JAX does not find it")
    parser.add_argument("--num_processes", type=int, help="with --coordinator_address")
    parser.add_argument("--process_id", type=int, help="with --coordinator_address")
    spec, config, rest = parse_config(argv)
    flags = parser.parse_args(rest)
    if spec is None:
        parser.error("--config=FILE is required, e.g. --config=configs/quickstart.py")
    workdir = flags.workdir or pathlib.Path("runs") / pathlib.Path(spec.partition(":")[0]).stem / spec.partition(":")[2]

    # Imported late: a mistake on the command line is answered before JAX has started.
    from dcjax.mesh import start_processes
    from dcjax.pretrain import pretrain
    from dcjax.probe import probe

    if flags.distributed or flags.coordinator_address:
        start_processes(flags.coordinator_address, flags.num_processes, flags.process_id)
    pretrain(config, workdir)
    if config.probe.after_training:
        probe(workdir)


if __name__ == "__main__":
    cli.run(main)
