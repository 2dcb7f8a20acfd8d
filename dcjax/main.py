"""Trains the encoder of a config file.

    dcjax main --config=configs/directclr.py --workdir=runs/directclr --config.batch_size=1024

(or python -m dcjax.main). The same command, given again, resumes from the last checkpoint. `--config` takes `file.py`
or `file.py:argument`; if the working directory has no file such as configs/simclr.py, the one that ships with the
package is used. --config.KEY=VALUE sets any key of the config; docs/config.md lists the keys.
"""

import pathlib
import shlex
from collections.abc import Sequence

from dcjax.config import add_config_flags, config_from_flags
from dcjax.runtime import cli, processes
from dcjax.runtime.errors import SettingError
from dcjax.runtime.files import forgiving_stdout
from dcjax.runtime.signals import end_on_signals


def main(argv: Sequence[str]) -> None:
    """Parses the command line, trains, and probes where the config asks for it."""
    parser = cli.Parser(prog="dcjax main", description=__doc__ or "")
    parser.usage = "dcjax main --config=FILE[:ARGUMENT] [--workdir=RUN] [--config.KEY=VALUE ...]"
    parser.add_argument("--workdir", help="the run's folder (default: runs/CONFIG[-ARGUMENT])")
    parser.add_argument(
        "--extend",
        action="store_true",
        help="resume a run with another total_steps or total_epochs, although its learning rate then jumps",
    )
    parser.add_argument(
        "--profile",
        metavar="FIRST:LAST",
        help="record these steps for TensorBoard in RUN/profile, and print the time of each part of a step",
    )
    processes.add_process_flags(parser)
    add_config_flags(parser)
    config, flags = config_from_flags(parser, argv)
    profile = parse_steps(flags.profile) if flags.profile else None
    file, _, argument = flags.config.partition(":")
    name = "-".join([pathlib.Path(file).stem, *argument.split(",")] if argument else [pathlib.Path(file).stem])
    workdir = flags.workdir or pathlib.Path("runs") / name

    with end_on_signals("the same command goes on from the last checkpoint, if there is one"), forgiving_stdout():
        processes.join_processes(flags)

        # Imported here because they load JAX: a mistake on the command line is reported before that.
        import jax

        from dcjax.evaluation.protocol import probe
        from dcjax.evaluation.table import losses_line
        from dcjax.pretrain import pretrain

        with processes.one_of_several():
            pretrain(config, workdir, extend=flags.extend, origin=flags.origin, profile=profile)
            if config.probe.after_training:
                probe(workdir, devices=config.devices, must_write=False)
            elif jax.process_index() == 0:
                print(
                    f"{losses_line(pathlib.Path(workdir))}\nnext: dcjax probe {shlex.quote(str(workdir))}", flush=True
                )


def parse_steps(text: str) -> tuple[int, int]:
    """The steps that `--profile=FIRST:LAST` names.

    Raises:
      SettingError: the text has another form, or the steps are not in order.
    """
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise SettingError(f"--profile must be FIRST:LAST, two steps in order such as 20:25, found '{text}'")
    return int(first), int(last)


if __name__ == "__main__":
    cli.run(main)
