"""DirectCLR over d0, the number of dimensions that the loss acts on.

Claim:     some d0 in between is the best, 360 of 2,048 on ImageNet: with few dimensions the loss sees too little, and
           with all of them it is SimCLR without a projector. (The paper shows the curve in a figure, without numbers.)
Command:   python -m experiments.d0_sweep --scale=laptop --data=DIR     (--dry_run: the plan and its cost)
Cost:      see --dry_run; the paper's share of r and the whole of r are runs of Table 1.
Look for:  a maximum between the ends, and how flat it is beside the intervals.
"""

import functools
from collections.abc import Sequence

from dcjax.runtime import cli
from experiments.grid import run_grid
from experiments.tables import score_report

ROWS = ("direct_1_of_32", "direct_3_of_32", "direct", "direct_12_of_32", "direct_20_of_32", "none")

report = functools.partial(score_report, name="d0_sweep", title="DirectCLR over d0")


def main(argv: Sequence[str]) -> None:
    run_grid(argv, module="experiments.d0_sweep", doc=__doc__ or "", rows=ROWS, report=report)


if __name__ == "__main__":
    cli.run(main)
