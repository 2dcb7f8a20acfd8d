"""Table 1: SimCLR with and without projectors, and DirectCLR.

Claim:     without a projector the representation is worse by 15 points of linear accuracy (51.5 against 66.5 with two
           layers and 61.1 with one); DirectCLR, without a trained projector, gains most of them back (62.7).
Command:   python -m experiments.table1 --scale=laptop --data=DIR     (--dry_run: the plan and its cost)
Cost:      see --dry_run; paper scale: 7 hours on 32 V100 a row, and the probe 20 hours on 8 (the authors' runs).
Look for:  the order of the rows, and whether their intervals overlap; `figure7` shows the spectra of the same runs.
"""

import functools
from collections.abc import Sequence

from dcjax.runtime import cli
from experiments.grid import run_grid
from experiments.tables import score_report

ROWS = ("none", "linear", "mlp", "direct", "untrained")
TITLE = "Table 1: SimCLR and DirectCLR"

report = functools.partial(score_report, name="table1", title=TITLE, order=("mlp", "linear", *ROWS))


def main(argv: Sequence[str]) -> None:
    run_grid(argv, module="experiments.table1", doc=__doc__ or "", rows=ROWS, report=report)


if __name__ == "__main__":
    cli.run(main)
