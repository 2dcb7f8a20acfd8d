"""Lemma 2 as a forecast: are the directions that X = S0 - S1 names at the start those that collapse in the end?

Claim:     where augmentation is stronger than the data, X has negative eigenvalues, and W collapses in their
           directions (Theorem 1). The theorem holds X fixed; here it changes, and the encoders of the second part are
           not linear.
Command:   python -m experiments.forecast --part=toy
           python -m experiments.forecast --part=images
Cost:      toy: five to ten minutes of one CPU core. images: 30 runs on scikit-learn's digits, two minutes of one core
           each; a stopped command goes on with the first run that has no file in --work, and --runs=0 reports what is
           there.
Look for:  toy, eq. 2: the initial rates name the directions that collapse, from a little above the threshold k = 1 on;
           just above it not all that are named have collapsed yet. toy, InfoNCE: its initial rates name about five of
           16 directions at every k and say little; `lasting_directions` names those that collapse, but within a quarter
           or so of the threshold, and the share of the noise alone names them far too early. images: Spearman's rho
           between a forecast from an early step and the final collapse over the runs of a projector, beside the
           baselines. A forecast is worth its cost only where it beats the share of the noise and the amplitude.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from dcjax.runtime import cli
from dcjax.runtime.files import replace_text
from experiments import forecast_images, forecast_report
from experiments.records import RESULTS, commit, rounded
from experiments.run import with_threads

WORK = pathlib.Path("runs") / "forecast"


def main(argv: Sequence[str]) -> None:
    flags = _parse(argv)
    if flags.train:
        run = next(run for run in forecast_images.all_runs() if run.name == flags.train)
        forecast_images.train(run, flags.work / f"{run.name}.npz")
        return
    flags.results.mkdir(parents=True, exist_ok=True)  # before hours of training
    found = run_toy(flags) if flags.part == "toy" else run_images(flags)
    file = flags.results / "forecast.json"
    record = json.loads(file.read_text()) if file.exists() else {}
    record[flags.part] = rounded({"commit": commit(), **found})
    replace_text(file, json.dumps(record) + "\n")
    text = forecast_report.text(record)
    replace_text(flags.results / "forecast.md", text + "\n")
    forecast_report.draw(record, flags.results / "forecast.png")
    print(text)


def run_toy(flags: argparse.Namespace) -> dict[str, Any]:
    """Trains the toy models and compares; the numbers of the record."""
    from experiments import forecast_toy  # loads JAX

    cells = forecast_toy.toy_cells(seeds=flags.seeds, steps=flags.steps)
    return {"steps": flags.steps, "rows": forecast_toy.summary(cells)}


def run_images(flags: argparse.Namespace) -> dict[str, Any]:
    """Trains the runs that are missing, one at a time and each in a process of its own; the numbers of the record."""
    work = flags.work.absolute()
    left = flags.runs
    for run in forecast_images.all_runs():
        file = work / f"{run.name}.npz"
        if file.exists() or not left:
            continue
        left -= 1
        print(f"{run.name}: started", flush=True)
        command = [sys.executable, "-m", "experiments.forecast", f"--train={run.name}", f"--work={work}"]
        subprocess.run(command, env=with_threads(os.environ, 1), check=True)
    return {"runs": forecast_images.measured(work)}


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(prog="python -m experiments.forecast", description=__doc__ or "")
    parser.add_argument("--part", choices=("toy", "images"), default="toy")
    parser.add_argument("--seeds", type=int, default=10, help="seeds of the toy part (default: 10)")
    parser.add_argument("--steps", type=int, default=6000, help="steps of the toy part (default: 6000)")
    parser.add_argument("--runs", type=int, default=1000, help="digits runs to train at most (default: all)")
    parser.add_argument("--work", type=pathlib.Path, default=WORK, help=f"files of the runs (default: {WORK})")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="where the results go")
    parser.add_argument("--train", metavar="RUN", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    cli.run(main)
