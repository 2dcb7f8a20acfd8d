"""Figures 7 and 9: the spectrum of the representation, with and without a projector.

Claim:     without a projector the representation collapses in a part of its dimensions; with a projector of one or two
           layers, or with DirectCLR, it does not.
Command:   python -m experiments.figure7 --scale=laptop --data=DIR     (--dry_run: the plan and its cost)
Cost:      none beyond Table 1, whose runs it shows.
Look for:  the tail of the curve without a projector, below all others; the number of dimensions below each tolerance.
"""

import json
import pathlib
from collections.abc import Sequence

import numpy as np

from dcjax.runtime import cli
from dcjax.runtime.files import replace_text
from dcjax.toy.statements.plot import Curve
from experiments.grid import Results, collapsed, markdown, output, run_grid, score, span
from experiments.records import rounded
from experiments.scales import SCALES, row_named
from experiments.tables import draw_spectra

ROWS = ("none", "linear", "mlp", "direct", "untrained")
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-6)  # the last is that of `dcjax collapse`


def report(results: Results, scale: str, folder: pathlib.Path) -> str:
    curves, rows, table = [], [], {}
    for i, (row, runs) in enumerate(results.items()):
        label = row_named(row).label
        spectra = np.array([run["spectra"]["r_unit"] for run in runs])
        colour = i if row != "untrained" else "grey"
        curves.append(Curve(spectra / spectra[:, :1], label=label, colour=colour))
        below = {f"{limit:g}": [collapsed(spectrum, limit) for spectrum in spectra] for limit in TOLERANCES}
        rows.append([label, *(span(counts) for counts in below.values()), score(runs, "r", "effective_rank")])
        table[row] = {"seeds": len(runs), "collapsed": below}
    draw_spectra(curves, output(folder, "figure7", scale, "png"), title="The representation r", scale=scale)
    replace_text(output(folder, "figure7", scale, "json"), json.dumps(rounded(table), indent=1) + "\n")
    header = [f"dimensions of {SCALES[scale].width} below", *(f"{limit:g}" for limit in TOLERANCES), "effective rank"]
    text = markdown(header, rows)
    note = "Of the largest singular value of eq. 1, r scaled to norm 1; the counts of all seeds."
    replace_text(output(folder, "figure7", scale, "md"), f"{text}\n\n{note}\n")
    return text


def main(argv: Sequence[str]) -> None:
    run_grid(argv, module="experiments.figure7", doc=__doc__ or "", rows=ROWS, report=report)


if __name__ == "__main__":
    cli.run(main)
