"""Trains an encoder as a config file says.

    python -m dcjax.main --config=configs/directclr.py --workdir=runs/directclr --config.batch_size=1024

The same command again goes on from the last checkpoint. `--config` takes `file.py` or `file.py:argument`; a name such
as configs/simclr.py that is not found from the working directory is the one that ships with the package. Any key of the
config is set by --config.KEY=VALUE.
"""

import pathlib
from collections.abc import Sequence

from dcjax.config import parse_config
from dcjax.runtime import cli, processes


def main(argv: Sequence[str]) -> None:
    """Parses the command line, trains, and probes where the config asks for it."""
    parser = cli.Parser(prog="python -m dcjax.main", description=__doc__ or "")
    parser.add_argument("--config", metavar="FILE[:ARGUMENT]", help="the config file (required)")
    parser.add_argument("--workdir", help="the run's folder (default: runs/CONFIG[-ARGUMENT])")
    parser.add_argument(
        "--extend",
        action="store_true",
        help="go on with a run to another total_steps or total_epochs, although its learning rate then jumps",
    )
    processes.add_process_flags(parser)
    spec, config, rest = parse_config(argv)
    flags = parser.parse_args(rest)
    if spec is None:
        parser.error("--config=FILE is required, e.g. --config=configs/quickstart.py")
    file, _, argument = spec.partition(":")
    name = "-".join([pathlib.Path(file).stem, *argument.split(",")] if argument else [pathlib.Path(file).stem])
    workdir = flags.workdir or pathlib.Path("runs") / name

    # Imported late: a mistake on the command line is answered before JAX has started.
    from dcjax.pretrain import pretrain
    from dcjax.probe import probe

    processes.join_processes(flags)
    with processes.one_of_several():
        pretrain(config, workdir, extend=flags.extend)
        if config.probe.after_training:
            probe(workdir)


if __name__ == "__main__":
    cli.run(main)
