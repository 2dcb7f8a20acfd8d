"""Measures the linear and nearest-neighbour accuracy of a trained encoder's frozen representation and of its parts.

    dcjax probe runs/directclr        (or python -m dcjax.probe)

The command reads the run's config.json and its last checkpoint, or the one that is named, such as
`runs/directclr/checkpoints/1000`. With `probe.cached`, the features are computed once and a logistic regression is
fitted to them, and also to baselines (raw pixels, the untrained encoder). Without it, a linear classifier is trained by
SGD on augmented images, as in the paper, and --baselines scores the baselines by nearest neighbours only. The results
are printed and, for the last checkpoint, written to probe.json in the run's folder.
"""

from collections.abc import Sequence

from dcjax.runtime import cli, processes
from dcjax.runtime.signals import end_on_signals
from dcjax.training.manifest import run_and_step, some_step_folders

PARTS = ("all", "selected", "rest")


def main(argv: Sequence[str]) -> None:
    """Parses the command line and probes."""
    parser = cli.Parser(prog="dcjax probe", description=__doc__ or "")
    cli.add_run(parser)
    parser.add_argument(
        "--features", choices=PARTS, help="probe only r, r[:d0] or r[d0:] (default: all that the projector has)"
    )
    parser.add_argument(
        "--labels_per_class", type=int, help="also score with this many labels of each class, over 5 fixed draws"
    )
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="also score raw pixels and the untrained encoder (default: with probe.cached and without --features)",
    )
    parser.add_argument("--data_dir", help="folder of the data (default: the one in the run's config)")
    parser.add_argument("--export", metavar="FILE.npz", help="write r, z and labels of both splits to this file")
    parser.add_argument("--devices", type=int, default=0, help="how many devices to use (default: all)")
    processes.add_process_flags(parser)
    flags = parser.parse_args(argv)
    workdir = cli.chosen_run(flags)
    some_step_folders(run_and_step(workdir)[0])  # a wrong folder is answered before JAX is loaded

    with end_on_signals("the scores were not written; give the same command again"):
        processes.join_processes(flags)

        # Imported here because it loads JAX: a mistake in the flags is reported before that.
        from dcjax.evaluation.protocol import probe

        with processes.one_of_several():
            probe(
                workdir,
                features=flags.features,
                labels_per_class=flags.labels_per_class,
                baselines=flags.baselines or None,
                data_dir=flags.data_dir,
                devices=flags.devices,
                export=flags.export,
            )


if __name__ == "__main__":
    cli.run(main)
