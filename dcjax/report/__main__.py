"""Writes one HTML file about a run, or about several runs side by side.

    dcjax report runs/directclr                                      report.html, here
    dcjax report runs/directclr runs/simclr --out=comparison.html

The page says whether r or z has collapsed and what to try next, gives the command that trains the run again, and draws
the loss with its chance line, the measures and spectra over time, gradient norms, the probe's scores, throughput and
warnings. It holds no script, needs no network, and stays below 500 kB. Runs that are still training can be reported,
too. Nothing in a run's folder is executed. Runs in one report train on the same kind of data.
"""

import argparse
import pathlib
from collections.abc import Sequence

from dcjax.runtime import cli
from dcjax.runtime.errors import SettingError
from dcjax.runtime.files import refusing, replace_text

SUFFIXES = (".html", ".htm")


def main(argv: Sequence[str]) -> None:
    """Parses the command line, writes the report and prints a line about it."""
    flags = _parse(argv)
    from dcjax.report.finding import finding  # imported here because Matplotlib takes a second, which --help need not
    from dcjax.report.page import page, run_names
    from dcjax.report.record import read_runs

    try:
        runs = read_runs(flags.runs)
    except OSError as error:  # of a folder that may not be searched
        raise SettingError(f"{error.filename} cannot be read ({error.strerror})") from error
    text = page(runs)
    with refusing(flags.out, "--out"):
        replace_text(flags.out, text)
    verdicts = "; ".join(f"{name}: {finding(run).short}" for name, run in zip(run_names(runs), runs, strict=True))
    print(f"{flags.out} ({len(text) / 1000:.0f} kB) {verdicts}")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(prog="dcjax report", description=__doc__ or "")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="the folder of a run of dcjax main")
    parser.add_argument(
        "--out", metavar="FILE.html", type=pathlib.Path, default=pathlib.Path("report.html"),
        help="the file to write (report.html)",
    )  # fmt: skip
    flags = parser.parse_args(argv)
    if not flags.runs:
        raise SettingError("name one RUN or more; found none (--help lists the flags)")
    out = flags.out
    if out.is_dir():
        raise SettingError(f"--out must name a file, found the folder {out}")
    if out.suffix.lower() not in SUFFIXES:
        raise SettingError(f"--out must name an .html file, found {out}")
    if not out.absolute().parent.is_dir():
        raise SettingError(f"--out={out}: there is no folder {out.absolute().parent}")
    return flags


if __name__ == "__main__":
    cli.run(main)
