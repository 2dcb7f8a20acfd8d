"""Figure 2: the spectrum of SimCLR's embedding.

Claim:     about 30 of the 128 singular values of the embedding's covariance drop to numerical zero on ImageNet: the
           embedding lies in a subspace.
Command:   python -m experiments.figure2 --scale=laptop --data=DIR     (--dry_run: the plan and its cost)
Cost:      none beyond Table 1, whose runs it shows.
Look for:  a cliff in the curve of z. The paper's axis is the natural logarithm of the values, sorted.
"""

import json
import pathlib
from collections.abc import Sequence

import numpy as np

from dcjax.runtime import cli
from dcjax.runtime.files import replace_text
from dcjax.toy.statements.plot import Curve
from experiments.grid import TOLERANCE, Results, collapsed, output, run_grid
from experiments.records import rounded
from experiments.scales import row_named
from experiments.tables import draw_spectra

ROWS = ("mlp", "linear")


def report(results: Results, scale: str, folder: pathlib.Path) -> str:
    curves, table = [], {}
    for i, (row, runs) in enumerate(results.items()):
        spectra = np.array([run["spectra"]["z_unit"] for run in runs])
        curves.append(Curve(spectra / spectra[:, :1], label=row_named(row).label, colour=i))
        table[row] = {"seeds": len(runs), "collapsed": [collapsed(spectrum) for spectrum in spectra]}
    draw_spectra(curves, output(folder, "figure2", scale, "png"), title="SimCLR's embedding z", scale=scale)
    replace_text(output(folder, "figure2", scale, "json"), json.dumps(rounded(table), indent=1) + "\n")
    lines = [f"dimensions of z below {TOLERANCE:g} of the largest, by seed:"]
    return "\n".join([*lines, *(f"  {row_named(row).label}: {values['collapsed']}" for row, values in table.items())])


def main(argv: Sequence[str]) -> None:
    run_grid(argv, module="experiments.figure2", doc=__doc__ or "", rows=ROWS, report=report)


if __name__ == "__main__":
    cli.run(main)
