"""One run of a grid: trains a row with a seed, probes it, and writes its result.

    python -m experiments.run --scale=laptop --row=direct --seed=0 --data=DIR

The command is complete in itself: `python -m experiments.table1 --list` prints these lines for a Slurm array or GNU
parallel. A run that was stopped goes on from its last checkpoint, and a finished one is not repeated. While a run is in
progress, a second process with the same row and seed is refused.
"""

import argparse
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dcjax.runtime import cli
from dcjax.runtime.errors import SettingError
from dcjax.runtime.files import replace_text
from experiments.records import (
    FORMAT,
    RESULTS,
    code_fingerprint,
    commit,
    read_result,
    run_config,
    same_code,
    write_result,
)
from experiments.scales import ROWS, SCALES, make_config, open_data, row_named, scale_named

WORK = pathlib.Path("runs") / "experiments"
THREADS = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # for XLA and for two libraries of linear algebra

# How much of a GPU's memory JAX reserves at the start; the second is the older name of the first.
MEMORY = {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE"}


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: a row of a scale with a seed, and the config keys, with values, that differ from the scale's."""

    scale: str
    row: str
    seed: int
    changes: tuple[tuple[str, Any], ...] = ()
    group: str = ""  # the folder, among the scale's results, of runs with changes

    @property
    def name(self) -> str:
        changes = "".join(f"_{key.rpartition('.')[2]}={value}".replace("/", "-") for key, value in self.changes)
        return f"{self.row}{changes}_{self.seed}"

    def file(self, results: pathlib.Path = RESULTS) -> pathlib.Path:
        """Where the result lies."""
        return results / "runs" / self.scale / self.group / f"{self.name}.json"

    def config(self) -> Any:
        return make_config(self.scale, self.row, seed=self.seed, changes=dict(self.changes))

    def flags(self) -> list[str]:
        changes = [f"--change={key}={value}" for key, value in self.changes]
        group = [f"--group={self.group}"] if self.group else []
        return [f"--scale={self.scale}", f"--row={self.row}", f"--seed={self.seed}", *changes, *group]


def with_threads(environment: Mapping[str, str], threads: int) -> dict[str, str]:
    """An environment that limits a run to some CPU threads; 0 sets no limit."""
    return {**environment, **(dict.fromkeys(THREADS, str(threads)) if threads else {})}


def with_memory(environment: Mapping[str, str], jobs: int) -> dict[str, str]:
    """An environment in which each of several runs at a time takes its share of a GPU's memory.

    JAX reserves three quarters of it for one process, so a second run would find too little. What the user has set
    stays.
    """
    if jobs == 1 or environment.keys() & MEMORY:
        return dict(environment)
    return {**environment, "XLA_CLIENT_MEM_FRACTION": f"{0.9 / jobs:.3f}"}


def run(job: Job, *, data: str | None, work: pathlib.Path = WORK, results: pathlib.Path = RESULTS) -> None:
    """Trains, probes and records a job, unless its result is there.

    Raises:
      SettingError: no data, a result that is not of this job, another process that runs the same job, a run in `work`
        that other code began, or what `dcjax.pretrain.pretrain` raises.
    """
    file = job.file(results)
    workdir = work / job.scale / job.group / job.name
    if not file.exists():
        folder = open_data(job.scale, data, work)
        workdir.mkdir(parents=True, exist_ok=True)
        with open(workdir / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise SettingError(f"{job.name} is being run by another process in {workdir}") from error
            if not file.exists():  # the process that held the lock before may have written it
                write_result(file, train_and_score(job, workdir, folder))
    read_result(file, config=job.config())
    print(f"{job.name} is done: {file}", flush=True)


def train_and_score(job: Job, workdir: pathlib.Path, data: str) -> dict[str, Any]:
    """Trains and scores a job, and returns its result."""
    # Imported here because they load JAX; a finished run should be reported at once.
    import jax

    from dcjax.components import build
    from dcjax.evaluation.protocol import probe
    from dcjax.pretrain import pretrain
    from dcjax.training.metrics import read_metrics

    made_by = begin(workdir, {"code": code_fingerprint(), "platform": jax.default_backend()})
    config, start = job.config(), time.process_time()
    config.data.dir = data
    components = build(config)
    loss: list[float] = []
    if row_named(job.row).trained:
        pretrain(config, workdir)
        scores, spectra = probe(workdir, baselines=False, data_dir=data, devices=config.devices), read_spectra(workdir)
        lines = read_metrics(workdir)
        loss = [lines[0]["loss"], lines[-1]["loss"]]
    else:
        scores, spectra = score_untrained(components)
    return {
        "format": FORMAT,
        "scale": job.scale,
        "row": job.row,
        "seed": job.seed,
        "config": run_config(job.config()),
        "data": data_fingerprint(components),
        **made_by,
        "versions": {"jax": jax.__version__, "python": sys.version.split()[0]},
        "device": jax.devices()[0].device_kind,
        # Those of this process alone: a run that was stopped and resumed took more.
        "cpu_minutes": (time.process_time() - start) / 60,
        "loss": loss,
        "scores": {name: dataclasses.asdict(score) for name, score in scores.items()},
        "spectra": spectra,
    }


def begin(workdir: pathlib.Path, now: dict[str, str]) -> dict[str, str]:
    """Records in a run's folder which code and kind of device began it; returns that record, also for a resumed run.

    Raises:
      SettingError: a run that other code, or another kind of device, began.
    """
    note = workdir / "made_by.json"
    if not note.exists():
        if (workdir / "checkpoints").exists():
            raise SettingError(f"{workdir} holds a run that was not begun here; move the folder away")
        replace_text(note, json.dumps({**now, "commit": commit()}) + "\n")
    before = json.loads(note.read_text())
    if not same_code(before["code"], now["code"]) or before["platform"] != now["platform"]:
        raise SettingError(
            f"{workdir} was begun by other training code ({before['code']} on {before['platform']}, now {now['code']} "
            f"on {now['platform']}); move the folder away to begin anew"
        )
    return before


def data_fingerprint(components: Any) -> str:
    """A hash of the training and test images: their sources' fingerprints, and the bytes of up to 100,000 files."""
    digest, data = hashlib.sha256(), components.config.data
    for source, split in ((components.train_source, data.train_split), (components.test_source, data.test_split)):
        if source is None:
            continue
        digest.update(source.fingerprint.encode())
        if data.name == "folder" and len(source) <= 100_000:
            for path in sorted(pathlib.Path(data.dir, split).rglob("*")):
                digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:16]


def read_spectra(workdir: pathlib.Path) -> dict[str, list[float]]:
    """The spectra (eq. 1) of r and z on the test images, as they are and with rows scaled to norm 1."""
    import numpy as np

    from dcjax.pretrain import SPECTRUM_FILE

    with np.load(workdir / SPECTRUM_FILE) as arrays:
        return {name: arrays[name].tolist() for name in ("r", "r_unit", "z", "z_unit")}


def score_untrained(components: Any) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Scores and spectra of the encoder before its first step, and the scores of raw pixels."""
    from dcjax.evaluation import draw_labelled, spectrum_of_processes
    from dcjax.evaluation.baselines import pixels, untrained_variables
    from dcjax.evaluation.protocol import DRAWS, cached_scores

    per_class = components.config.probe.labels_per_class
    untrained = untrained_variables(components)
    features = [components.features(untrained, source) for source in (components.train_source, components.test_source)]
    images = [pixels(components, source) for source in (components.train_source, components.test_source)]
    labels = features[0].labels
    draws = [draw_labelled(labels, labels_per_class=per_class, draw=draw) for draw in range(DRAWS if per_class else 0)]
    scores = {name: cached_scores(components, *of, draws) for name, of in (("r", features), ("raw pixels", images))}
    rows = features[1].r[: features[1].own]
    return scores, {
        name: spectrum_of_processes(rows, normalize=unit).tolist() for name, unit in (("r", False), ("r_unit", True))
    }


def add_places(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that name folders, which runs and grids share."""
    parser.add_argument("--data", help="the folder of the images")
    parser.add_argument("--work", type=pathlib.Path, default=WORK, help=f"checkpoints (default: {WORK})")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="results (default: experiments/results)")


def parse_change(text: str) -> tuple[str, Any]:
    """Splits `key=value`; the value becomes a whole number or a number where it reads as one."""
    key, equals, value = text.partition("=")
    if not equals:
        raise SettingError(f"--change={text} is not KEY=VALUE")
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, value


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser(prog="python -m experiments.run", description=__doc__ or "")
    parser.add_argument("--scale", choices=SCALES, required=True)
    parser.add_argument("--row", choices=ROWS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--change", action="append", default=[], metavar="KEY=VALUE", help="a config key of its own")
    parser.add_argument("--group", default="", help="the folder, among the scale's results, of runs with changes")
    add_places(parser)
    flags = parser.parse_args(argv)
    if flags.change and not flags.group:
        raise SettingError("--change needs --group, so that these results are not taken for the scale's own")
    if not re.fullmatch(r"\w*", flags.group):
        raise SettingError(f"--group must be letters, digits and underscores, found '{flags.group}'")
    environment = with_threads(os.environ, scale_named(flags.scale).threads)
    if environment != dict(os.environ):  # the libraries read them as they are loaded
        os.execve(sys.executable, [sys.executable, "-m", "experiments.run", *argv], environment)
    changes = tuple(parse_change(text) for text in flags.change)
    job = Job(flags.scale, flags.row, flags.seed, changes, flags.group)
    run(job, data=flags.data, work=flags.work.absolute(), results=flags.results.absolute())


if __name__ == "__main__":
    cli.run(main)
