"""Grids of runs, shared by the tables and figures: a plan, its execution, and means with intervals."""

import concurrent.futures
import dataclasses
import math
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from scipy import stats

from dcjax.runtime import cli
from dcjax.runtime.errors import InterruptedRunError, SettingError, unknown_name
from experiments.records import check_together, code_fingerprint, read_result, rounded
from experiments.run import Job, add_places, with_memory, with_threads
from experiments.scales import SCALES, Scale, open_data, row_named, scale_named

SEEDS = 3
MAX_SEEDS = 100
# A dimension is called collapsed where its singular value of eq. 1, on rows of norm 1, is below this share of the
# largest.
TOLERANCE = 1e-3

Results = dict[str, list[dict[str, Any]]]  # row name to the results of its seeds


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over seeds with the half-width of its 95 % interval (Student's t); infinite for a single seed."""

    mean: float
    half_width: float
    count: int

    def __str__(self) -> str:
        interval = f" ± {self.half_width:.1f}" if math.isfinite(self.half_width) else ""
        return f"{self.mean:.1f}{interval}"


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of independent runs and its 95 % interval."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Mean(mean, math.inf, n)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Mean(mean, float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n), n)


def collapsed(spectrum: Sequence[float], tolerance: float = TOLERANCE) -> int:
    """The number of singular values of eq. 1 below a share of the largest; all of them count where all are zero.

    Raises:
      ValueError: a value that is not finite.
    """
    if not all(math.isfinite(value) for value in spectrum):
        raise ValueError("the spectrum holds values that are not finite")
    if spectrum[0] == 0:
        return len(spectrum)
    return int(sum(value < tolerance * spectrum[0] for value in spectrum))


def span(values: Sequence[float]) -> str:
    """The smallest and the largest of some counts, whose errors are not normal enough for an interval."""
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def paired_difference(results: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> Mean | None:
    """The mean difference in linear top-1 (percent) over the seeds that both rows have; None without any."""
    found, other = ({run["seed"]: run["scores"]["r"]["top1"] for run in runs} for runs in (results, others))
    differences = [100 * (found[seed] - other[seed]) for seed in sorted(found.keys() & other.keys())]
    return mean_of(differences) if differences and None not in found.values() else None


def score(results: Sequence[dict[str, Any]], part: str, name: str) -> Mean | None:
    """The mean of a score (`top1`, `few_label`, `knn` in percent; `effective_rank`) of a part of r over seeds."""
    factor = 1 if name == "effective_rank" else 100
    found = [result["scores"][part][name] for result in results if part in result["scores"]]
    return mean_of([factor * value for value in found]) if found and None not in found else None


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; None is shown as an empty cell."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)


def output(results: pathlib.Path, name: str, scale: str, suffix: str) -> pathlib.Path:
    """The file of a table or figure: at the laptop scale with the plain name, at others with the scale's added."""
    return results / (f"{name}.{suffix}" if scale == "laptop" else f"{name}_{scale}.{suffix}")


def run_grid(
    argv: Sequence[str],
    *,
    module: str,
    doc: str,
    rows: Sequence[str],
    report: Callable[[Results, str, pathlib.Path], str],
) -> None:
    """The command of a table or figure.

    Args:
      argv: the command's arguments.
      module: the name of its module, which `--help` shows.
      doc: the docstring of its module, which `--help` shows.
      rows: names of the rows, in the order in which they are run and shown.
      report: takes the results by row, the scale and the folder of the results; writes the table and the figure and
        returns what is printed.
    """
    flags, chosen = parse_grid(argv, module=module, doc=doc, rows=rows)
    results = flags.results.absolute()
    jobs = [Job(flags.scale, row, seed) for seed in range(flags.seeds) for row in chosen]
    pending = execute(jobs, flags, results)
    if pending is None:
        return
    found = all_results(flags.scale, rows, results)  # earlier results stay where only a part was run now
    if not found:
        raise InterruptedRunError(f"all of {len(jobs)} runs failed; their logs say why")
    print(report(found, flags.scale, results))
    if pending:
        raise InterruptedRunError(f"{pending} of {len(jobs)} runs are missing; the same command goes on")


def all_results(scale: str, rows: Sequence[str], results: pathlib.Path) -> Results:
    """All results of these rows, of any seed, in the order of the rows."""
    loaded = load([Job(scale, row, seed) for row in rows for seed in range(MAX_SEEDS)], results)
    found: Results = {}
    for job, result in loaded.items():
        found.setdefault(job.row, []).append(result)
    return found


def parse_grid(argv: Sequence[str], *, module: str, doc: str, rows: Sequence[str]) -> tuple[Any, list[str]]:
    """The flags of a grid, checked, and the rows that they choose."""
    parser = cli.Parser(prog=f"python -m {module}", description=doc)
    parser.add_argument("--scale", choices=SCALES, default="laptop")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds 0, 1, ... of each row (default: {SEEDS})")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"some of: {' '.join(rows)}")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share a GPU's memory (default: 1)")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and its cost")
    parser.add_argument("--list", action="store_true", help="print the commands of the runs that are missing")
    add_places(parser)
    flags = parser.parse_args(argv)
    if not 1 <= flags.seeds <= MAX_SEEDS or flags.jobs < 1:
        raise SettingError(
            f"--seeds must be from 1 to {MAX_SEEDS} and --jobs at least 1, found {flags.seeds} and {flags.jobs}"
        )
    chosen = list(flags.rows or rows)
    for name in chosen:
        if name not in rows:
            raise unknown_name("--rows", name, rows)
    return flags, chosen


def execute(jobs: Sequence[Job], flags: Any, results: pathlib.Path) -> int | None:
    """Runs the jobs that have no result yet.

    Returns:
      The number of runs that failed; None where only a plan was asked for.

    Raises:
      SettingError: no data, or results that these runs could not be averaged with.
    """
    done = load(jobs, results)
    pending = [job for job in jobs if job not in done]
    if done and not flags.dry_run:  # on stderr, since stdout may be a list of commands
        already = f"{len(done)} of {len(jobs)} results are in {results / 'runs'} already"
        print(f"{already}; --results=DIR names another folder, to run them anew", file=sys.stderr, flush=True)
    scale = scale_named(flags.scale)
    if flags.dry_run:
        print(plan(jobs, pending, scale, flags.jobs))
        return None
    if flags.list:
        for job in pending:
            print(shlex.join(command(job, flags)))
        return None
    check_together({job.file(results): done[job] for job in done}, code=code_fingerprint() if pending else None)
    if not pending:
        return 0
    open_data(flags.scale, flags.data, flags.work.absolute())  # a mistake is told here, once, instead of by every run
    cores = len(os.sched_getaffinity(0))
    if flags.jobs > cores:
        print(f"--jobs={flags.jobs} runs share {cores} cores and slow each other down", flush=True)
    environment = with_memory(with_threads(os.environ, scale.threads), flags.jobs)

    def start(job: Job) -> bool:
        print(f"{job.name}: started", flush=True)
        log = flags.work.absolute() / flags.scale / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            status = subprocess.run(command(job, flags), env=environment, stdout=file, stderr=file, check=False)
        told = "done" if status.returncode == 0 else f"ended with status {status.returncode}; see {log}"
        print(f"{job.name}: {told}", flush=True)
        return status.returncode == 0

    with concurrent.futures.ThreadPoolExecutor(flags.jobs) as pool:
        return sum(not succeeded for succeeded in pool.map(start, pending))


def command(job: Job, flags: Any) -> list[str]:
    """The command of one run."""
    places = [f"--data={flags.data}"] if flags.data else []
    places += [f"--work={flags.work}", f"--results={flags.results}"]
    return [sys.executable, "-m", "experiments.run", *job.flags(), *places]


def load(jobs: Sequence[Job], results: pathlib.Path) -> dict[Job, dict[str, Any]]:
    """The results that exist, each checked against its job and all against each other."""
    files = {job: job.file(results) for job in jobs}
    found = {job: read_result(file, config=job.config()) for job, file in files.items() if file.exists()}
    check_together({files[job]: result for job, result in found.items()})
    return found


def plan(jobs: Sequence[Job], pending: Sequence[Job], scale: Scale, at_a_time: int) -> str:
    """The text of `--dry_run`."""
    lines = [f"{len(jobs)} runs, {len(jobs) - len(pending)} done, {len(pending)} to run, {at_a_time} at a time"]
    if len(pending) < len(jobs):
        lines.append("done: their results are there; --results=DIR names another folder, to run them anew")
    trained = sum(row_named(job.row).trained for job in pending)
    lines += [
        f"scale: {scale.description}",
        f"cost of a run: {duration(scale.minutes)} of {scale.processor}",
        f"cost of all: {duration(trained * scale.minutes)} of the same; an untrained encoder costs little",
        f"data: {scale.data}",
    ]
    return "\n".join([*lines, *(f"  {'to run' if job in pending else 'done  '}  {job.name}" for job in jobs)])


def duration(minutes: float) -> str:
    """A time in minutes or hours."""
    return f"{minutes:g} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"


def summary(results: Results) -> dict[str, dict[str, Any]]:
    """Row name to means and half-widths of its scores, for the JSON file of a table."""
    table = {}
    for row, runs in results.items():
        scores = {name: score(runs, "r", name) for name in ("top1", "few_label", "knn", "effective_rank")}
        table[row] = {
            "seeds": len(runs),
            "collapsed": [collapsed(run["spectra"]["r_unit"]) for run in runs],
            "converged": all(part["converged"] for run in runs for part in run["scores"].values()),
            "paper": row_named(row).paper,
            **{
                name: {"mean": value.mean, "half_width": value.half_width if value.count > 1 else None}
                for name, value in scores.items()
                if value is not None
            },
        }
    return rounded(table)
