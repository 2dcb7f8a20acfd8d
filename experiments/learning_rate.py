"""The learning rate of each row, from three values at one seed, judged on held-out training images.

Command:   python -m experiments.learning_rate --scale=laptop --data=DIR     (--dry_run: the plan and its cost)
Cost:      three runs a row, four where the best of three lay at an end; the test images are never looked at.
Look for:  the middle rate is the best; where it is the first or the last, a better one may lie outside of the three.
           `SCALES` in experiments/scales.py holds the choice.
"""

import json
from collections.abc import Sequence

from dcjax.runtime import cli
from dcjax.runtime.errors import InterruptedRunError, SettingError
from dcjax.runtime.files import replace_text
from experiments.grid import execute, load, markdown, output, parse_grid
from experiments.records import rounded
from experiments.run import Job
from experiments.scales import SCALES, row_named

RATES = {"laptop": (1.5, 3.0, 6.0)}
# Further rates of a row whose best one of the three was the first or the last.
BEYOND = {("laptop", "none"): (12.0,), ("laptop", "low_rank"): (12.0,)}
CHOSEN_FOR = ("none", "linear", "mlp", "direct", "orthogonal", "diagonal", "low_rank", "random_subset")
GROUP = "learning_rate"


def jobs_of(scale: str, rows: Sequence[str]) -> list[Job]:
    """The runs of the search."""
    return [
        Job(scale, row, 0, (("optimizer.learning_rate", rate), ("data.test_split", "held_out")), GROUP)
        for row in rows
        for rate in rates_of(scale, row)
    ]


def rates_of(scale: str, row: str) -> tuple[float, ...]:
    """The rates of a row, ascending."""
    return tuple(sorted((*RATES[scale], *BEYOND.get((scale, row), ()))))


def main(argv: Sequence[str]) -> None:
    flags, rows = parse_grid(argv, module="experiments.learning_rate", doc=__doc__ or "", rows=CHOSEN_FOR)
    if flags.scale not in RATES:
        raise SettingError(f"--scale must be {' or '.join(RATES)}, which holds images out, found {flags.scale}")
    results = flags.results.absolute()
    jobs = jobs_of(flags.scale, rows)
    failed = execute(jobs, flags, results)
    if failed is None:
        return
    found = load(jobs_of(flags.scale, CHOSEN_FOR), results)
    table: dict[str, dict[str, float]] = {job.row: {} for job in found}
    for job, result in found.items():
        table[job.row][f"{dict(job.changes)['optimizer.learning_rate']:g}"] = 100 * result["scores"]["r"]["top1"]
    rates = sorted({rate for row in CHOSEN_FOR for rate in rates_of(flags.scale, row)})
    header = ["linear probe on held-out images, %", *(f"{rate:g}" for rate in rates)]
    cells = [
        [row_named(row).label, *(f"{line[name]:.1f}" if name in line else None for name in header[1:])]
        for row, line in table.items()
    ]
    text = f"{markdown(header, cells)}\n\n{SCALES[flags.scale].description}, seed 0."
    replace_text(output(results, "learning_rate", flags.scale, "md"), text + "\n")
    replace_text(output(results, "learning_rate", flags.scale, "json"), json.dumps(rounded(table), indent=1) + "\n")
    print(text)
    if failed:
        raise InterruptedRunError(f"{failed} of {len(jobs)} runs are missing; the same command goes on")


if __name__ == "__main__":
    cli.run(main)
