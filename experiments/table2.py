"""Table 2: six linear projectors, from none to a fixed low-rank diagonal matrix.

Claim:     a projector helps by being of low rank, and need not be trained: none 51.5, orthogonal 52.2, linear 61.1,
           diagonal 60.2, fixed low-rank 62.3, fixed low-rank diagonal (DirectCLR) 62.7.
Command:   python -m experiments.table2 --scale=laptop --data=DIR     (--dry_run: the plan and its cost)
Cost:      see --dry_run; the rows that Table 1 has are shared with it.
Look for:  orthogonal is as low as none, since its rank is full; fixed low-rank is as high as trained linear.
"""

import functools
from collections.abc import Sequence

from dcjax.runtime import cli
from experiments.grid import run_grid
from experiments.tables import score_report

ROWS = ("none", "orthogonal", "linear", "diagonal", "low_rank", "low_rank_diagonal")

report = functools.partial(score_report, name="table2", title="Table 2: linear projectors")


def main(argv: Sequence[str]) -> None:
    run_grid(argv, module="experiments.table2", doc=__doc__ or "", rows=ROWS, report=report)


if __name__ == "__main__":
    cli.run(main)
