"""Probes a trained encoder: linear and nearest-neighbour accuracy of its frozen representation, and of parts of it.

    dcjax probe runs/directclr        (or python -m dcjax.probe)

Reads the run's last checkpoint and its config.json. With `probe.cached` the features are computed once and a logistic
regression is solved on them, beside baselines (raw pixels, the untrained encoder); without, the paper's recipe trains a
linear classifier by SGD on augmented images, and --baselines adds the nearest-neighbour vote of the baselines. The
results are printed and written to probe.json in the run's folder.
"""

from collections.abc import Sequence

from dcjax.runtime import cli, processes

PARTS = ("all", "selected", "rest")


def main(argv: Sequence[str]) -> None:
    """Parses the command line and probes."""
    parser = cli.Parser(prog="dcjax probe", description=__doc__ or "")
    cli.add_run(parser)
    parser.add_argument(
        "--features", choices=PARTS, help="probe r, r[:d0] or r[d0:] alone (default: each that there is)"
    )
    parser.add_argument("--labels_per_class", type=int, help="also with so few labels, averaged over 5 fixed draws")
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="raw pixels and the untrained encoder too (default: with probe.cached and without --features)",
    )
    parser.add_argument("--data_dir", help="where the data lies now (default: where the run found it)")
    parser.add_argument("--export", metavar="FILE.npz", help="write r, z and labels")
    parser.add_argument("--devices", type=int, default=0, help="how many devices to use (default: all)")
    processes.add_process_flags(parser)
    flags = parser.parse_args(argv)
    workdir = cli.chosen_run(flags)

    # Imported late: a mistake on the command line is answered before JAX has started.
    from dcjax.evaluation.protocol import probe

    processes.join_processes(flags)
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
