"""The monitor's warnings: runs that were made to fail are warned about, healthy ones are not.

Claim:     a run whose augmentation, temperature or learning rate breaks it is warned about within its first 150 steps;
           healthy runs with each kind of projector never are.
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

from dcjax.runtime import cli
from dcjax.runtime.errors import InterruptedRunError
from dcjax.runtime.files import replace_text
from dcjax.training.metrics import read_looks
from experiments.grid import markdown
from experiments.records import RESULTS, commit, rounded
from experiments.run import with_threads

EVERY = 25
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
    """Trains a run and returns the looks of its monitor, and its exit status."""
    healthy, changes = KINDS[kind]
    workdir = work / f"{kind.replace(' ', '_').replace(',', '')}_{seed}"
    settings = {"seed": seed, "monitor.every_steps": EVERY, "total_steps": STEPS[healthy], "devices": 1}
    settings |= {"probe.after_training": False, **changes}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "dcjax.main", "--config=configs/quickstart.py", f"--workdir={workdir}", *flags]
    done = subprocess.run(command, env=with_threads(os.environ, 1), capture_output=True, text=True)
    if done.returncode not in (0, 2):
        raise InterruptedRunError(f"a run of '{kind}' ended with the status {done.returncode}: {done.stderr[-300:]}")
    looks = read_looks(workdir)
    keep = ("loss", "loss_chance", "r/effective_rank", "z/effective_rank", "r/collapsed", "z/collapsed", "z/lost")
    return {
        "status": done.returncode,
        "warnings": [[look["step"], name] for look in looks for name in look["warnings"]],
        "message": done.stderr.strip().splitlines()[-1] if done.returncode else "",
        "looks": [
            {"step": look["step"], **{name: look["monitor"][name] for name in keep if name in look["monitor"]}}
            for look in looks
        ],
    }


def summary(record: Mapping[str, Mapping[str, Any]]) -> str:
    """The table: for each kind, the step and kind of the first warning of every seed, and the nearest approach."""
    rows = []
    for kind, runs in record.items():
        firsts = [run["warnings"][0] if run["warnings"] else None for run in runs.values()]
        looks = [look for run in runs.values() for look in run["looks"] if look["step"] > 0]
        below = min((1 - look["loss"] / look["loss_chance"] for look in looks), default=float("nan"))
        rows.append(
            [
                kind,
                str(len(runs)),
                f"{sum(first is not None for first in firsts)}",
                ", ".join(f"{first[0]} ({first[1]})" if first else "-" for first in firsts),
                f"{100 * below:.1f} %",
                f"{min(fall(run, name) for run in runs.values() for name in 'rz'):.2f}",
                f"{max((look.get('r/collapsed', 0) for look in looks), default=0):.0f} of 64",
            ]
        )
    header = [
        "kind", "seeds", "warned", "first warning: step (kind)", "loss, least below its chance line",
        "lowest rank / highest before", "most collapsed directions of r",
    ]  # fmt: skip
    return markdown(header, rows)


def fall(run: Mapping[str, Any], name: str) -> float:
    """The least effective rank of a run as a share of the largest before it, after the first step."""
    best, least = 0.0, 1.0
    for look in run["looks"]:
        rank = look.get(f"{name}/effective_rank")
        if look["step"] == 0 or rank is None:
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
            print(f"{kind}, seed {seed}: {run['warnings'] or 'no warning'}", flush=True)
            record = ordered
    text = summary(record)
    replace_text(file.with_suffix(".md"), text + "\n")
    print(text)


if __name__ == "__main__":
    cli.run(main)
