"""The monitor's warnings: runs that were made to fail are warned about, healthy ones are not.

Claim:     a run whose augmentation, temperature or learning rate breaks it is warned about within its first 150 steps;
           healthy runs never are.
Command:   python -m experiments.monitor     (--seeds=N; --kinds=KIND ...; what is done is not repeated)
Cost:      35 runs of about a minute of a CPU core.
Look for:  a step for each run of the broken kinds, none for the healthy ones; how near those come to the
           thresholds of `dcjax.collapse.monitor`.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dcjax.collapse.monitor import Look, signs_of, warnings_of
from dcjax.runtime import cli
from dcjax.runtime.errors import InterruptedRunError
from dcjax.runtime.files import replace_text
from dcjax.training.metrics import read_looks
from experiments.grid import markdown
from experiments.records import RESULTS, commit, rounded
from experiments.run import with_threads

EVERY, WARMUP = 25, 40  # steps; the second is the quickstart's
MLP = {"projector.name": "mlp", "projector.hidden": 64, "projector.features": 32}
# Views that share nothing but a few pixels: crops of 2 to 100 % of a digit, in any brightness, blurred and inverted.
STRONG = {
    "augment.crop_scale": (0.02, 1.0), "augment.brightness": 1.0, "augment.contrast": 1.0, "augment.blur": (1.0, 1.0),
    "augment.blur_sigma": (0.5, 4.0), "augment.solarize": (0.3, 0.3),
}  # fmt: skip
# Kind to whether it is healthy and to its changes of the quickstart.
KINDS: dict[str, tuple[bool, dict[str, Any]]] = {
    "DirectCLR (the quickstart)": (True, {}),
    "2-layer projector": (True, MLP),
    "linear projector": (True, {"projector.name": "linear", "projector.features": 32}),
    "no projector": (True, {"projector.name": "none"}),
    "no projector, strong augmentation": (False, {"projector.name": "none", **STRONG}),
    "temperature 50": (False, {"loss.temperature": 50.0}),
    "learning rate 200": (False, {"optimizer.learning_rate": 200.0}),
}
STEPS = {True: 300, False: 150}


def train(kind: str, seed: int, work: pathlib.Path) -> dict[str, Any]:
    """Trains a run, unless its folder holds it whole, and returns the looks of its monitor."""
    healthy, changes = KINDS[kind]
    workdir = work / f"{kind.replace(' ', '_').replace(',', '')}_{seed}"
    settings = {"seed": seed, "monitor.every_steps": EVERY, "total_steps": STEPS[healthy], "devices": 1}
    settings |= {"probe.after_training": False, **changes}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "dcjax.main", "--config=configs/quickstart.py", f"--workdir={workdir}", *flags]
    looks = read_looks(workdir)
    if not looks or looks[-1]["step"] < STEPS[healthy]:
        done = subprocess.run(command, env=with_threads(os.environ, 1), capture_output=True, text=True)
        if done.returncode:
            raise InterruptedRunError(f"a run of '{kind}' ended with status {done.returncode}: {done.stderr[-300:]}")
        looks = read_looks(workdir)
    return {"looks": [{name: look[name] for name in ("step", "monitor", "verdict")} for look in looks]}


def warnings_in(run: Mapping[str, Any]) -> list[tuple[int, str]]:
    """The step and the kind of each warning that the monitor gives at the looks of a run."""
    history: list[dict[str, Any]] = []
    found = []
    for row in run["looks"]:
        words = dict.fromkeys("rz", "")
        spectra = {name: np.ones(1) for name in row["verdict"]}
        seen = Look(row["step"], row["monitor"], row["verdict"], words, spectra)
        signs = signs_of(history, seen, warmup_steps=WARMUP)
        found += [(row["step"], kind) for kind in warnings_of(history, signs)]
        history.append({**row, "signs": sorted(signs)})
    return found


def summary(record: Mapping[str, Mapping[str, Any]]) -> str:
    """The table: for each kind, the step and kind of the first warning of every seed, and the nearest approach."""
    rows = []
    for kind, runs in record.items():
        firsts = [next(iter(warnings_in(run)), None) for run in runs.values()]
        looks = [look["monitor"] for run in runs.values() for look in run["looks"] if look["step"] >= WARMUP]
        below = min((1 - look["loss"] / look["loss_chance"] for look in looks), default=float("nan"))
        rows.append(
            [
                kind,
                str(len(runs)),
                f"{sum(first is not None for first in firsts)}",
                ", ".join(f"{first[0]} ({first[1]})" if first else "-" for first in firsts),
                f"{100 * below:.1f} %",
                f"{min(fall(run, name) for run in runs.values() for name in 'rz'):.2f}",
                f"{max(look['r/collapsed'] for look in looks):.0f}, {max(look['r/lost'] for look in looks):.0f}",
            ]
        )
    header = [
        "kind", "seeds", "warned", "first warning: step (kind)", "loss, least below its chance line",
        "lowest effective rank / highest before", "of 64 directions of r, most collapsed, lost",
    ]  # fmt: skip
    return markdown(header, rows) + f"\n\nThe last three columns: looks after the {WARMUP} steps of the warm-up."


def fall(run: Mapping[str, Any], name: str) -> float:
    """The least effective rank of a run as a share of the largest before it, after the warm-up."""
    best, least = 0.0, 1.0
    for look in run["looks"]:
        rank = look["monitor"].get(f"{name}/effective_rank")
        if look["step"] < WARMUP or rank is None:
            continue
        best = max(best, rank)
        least = min(least, rank / best)
    return least


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser(prog="python -m experiments.monitor", description=__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("runs") / "monitor")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    flags = parser.parse_args(argv)
    flags.results.mkdir(parents=True, exist_ok=True)  # before hours of training
    file = flags.results / "monitor.json"
    record: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    for seed in range(flags.seeds):
        for kind in flags.kinds:
            if str(seed) in record.get(kind, {}):
                continue
            run = train(kind, seed, flags.work)
            record.setdefault(kind, {})[str(seed)] = {"commit": commit(), **rounded(run)}
            ordered = {kind: dict(sorted(record[kind].items())) for kind in KINDS if kind in record}
            lines = ",\n".join(f'"{kind}": {json.dumps(runs)}' for kind, runs in ordered.items())
            replace_text(file, "{\n" + lines + "\n}\n")
            print(f"{kind}, seed {seed}: {warnings_in(run) or 'no warning'}", flush=True)
            record = ordered
    text = summary(record)
    replace_text(file.with_suffix(".md"), text + "\n")
    print(text)


if __name__ == "__main__":
    cli.run(main)
