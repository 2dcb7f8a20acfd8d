"""Averages the scalars of the steps, stops at a NaN, and writes metrics.jsonl, TensorBoard and a progress bar."""

import collections
import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping

import jax
import tensorboardX
from tqdm import tqdm

from dcjax.runtime.errors import SettingError
from dcjax.runtime.files import replace_text

METRICS_FILE = "metrics.jsonl"

# Steps that the host may run ahead of the device: enough to keep the device busy, and few enough that batches do not
# pile up and a NaN is noticed soon.
STEPS_IN_FLIGHT = 2

# These must be finite. The last two are norms of the state after the step.
GUARDED = ("loss", "gradient_norm", "parameter_norm", "statistics_norm")


class MetricsWriter:
    """Writes scalars by step, on the first process only.

    A run that resumes keeps the lines up to `kept_step` and writes the later ones again.

    Args:
      workdir: the run's folder.
      first_step: the step that the run starts or resumes from.
      kept_step: the last step whose line is kept.
      total_steps: the last step of the run, for the bar.
      batch_size: images per step, for the rate.
    """

    def __init__(self, workdir: pathlib.Path, *, first_step: int, kept_step: int, total_steps: int, batch_size: int):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        path = workdir / METRICS_FILE
        if path.exists():
            kept = [row for row in read_metrics(workdir) if row["step"] <= kept_step]
            replace_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._lines = path.open("a")
        self._events = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=kept_step + 1)
        self._bar = tqdm(
            total=total_steps * batch_size,
            initial=first_step * batch_size,
            unit="img",
            unit_scale=True,
            mininterval=1.0 if sys.stderr.isatty() else 30.0,
        )
        self._batch_size = batch_size

    def advance(self) -> None:
        """Moves the bar on by one step."""
        if self._active:
            self._bar.update(self._batch_size)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the scalars of a step."""
        if not self._active:
            return
        self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
        self._lines.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        shown = {"loss": "loss", "online_accuracy": "online acc"}
        self._bar.set_postfix({label: f"{metrics[name]:.3f}" for name, label in shown.items() if name in metrics})

    def close(self) -> None:
        """Flushes everything."""
        if self._active:
            self._bar.close()
            self._lines.close()
            self._events.close()


class NotFiniteError(SettingError):
    """A scalar in `GUARDED` is NaN or infinite."""


class StepMetrics:
    """Reads the scalars of the steps a little behind the device and writes their averages.

    `push` and `drain` raise `NotFiniteError` at the first step whose scalars are not finite.

    Args:
      writer: the files and the bar for the averages.
      every: steps in a line; the first step has a line of its own.
      batch_size: images per step.
      sums: the `sums` that a resumed run saved, so that its lines equal those of an uninterrupted run.
    """

    def __init__(self, writer: MetricsWriter, *, every: int, batch_size: int, sums: Mapping[str, float]):
        self._writer, self._every, self._batch_size = writer, every, batch_size
        self._in_flight: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        self._sums = dict(sums)
        self._last_step = 0
        self._read_since = 0  # steps read by this process since the last line
        self._since = time.perf_counter()

    @property
    def sums(self) -> dict[str, float]:
        """The sums of the scalars since the last regular line, with the number of steps as `steps`, or nothing."""
        return dict(self._sums)

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the scalars of a step that was just dispatched, and reads those of an earlier step."""
        self._in_flight.append((step, metrics))
        while len(self._in_flight) > STEPS_IN_FLIGHT:
            self._read()

    def drain(self) -> None:
        """Reads the scalars of all steps that were pushed."""
        while self._in_flight:
            self._read()

    def flush(self) -> None:
        """Writes the average of the steps since the last line, if there were any."""
        if self._read_since:
            now = time.perf_counter()
            steps = self._sums.pop("steps")
            means = {name: total / steps for name, total in self._sums.items()}
            means["images_per_second"] = self._read_since * self._batch_size / (now - self._since)
            self._writer.write(self._last_step, means)
            self._sums, self._read_since, self._since = {}, 0, now

    def close(self) -> None:
        """Writes the last average and closes the files."""
        self.flush()
        self._writer.close()

    def _read(self) -> None:
        step, metrics = self._in_flight.popleft()
        row = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in GUARDED:
            if not math.isfinite(row[name]):
                self._in_flight.clear()
                raise NotFiniteError(
                    f"{name} is {row[name]} at step {step}; the last checkpoint is finite. Train with a lower "
                    "optimizer.learning_rate or a longer warm-up in a new --workdir"
                )
        for name, value in {"steps": 1, **row}.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._last_step = step
        self._read_since += 1
        self._writer.advance()
        if step == 1 or step % self._every == 0:
            self.flush()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, without a last line that an interruption cut short."""
    rows = []
    for line in (workdir / METRICS_FILE).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
