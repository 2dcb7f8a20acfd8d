"""Averages the scalars of the steps, stops at a NaN, and writes the logs, TensorBoard and a progress bar.

`metrics.jsonl` holds two kinds of lines: averages over steps of the training, and looks of the monitor, which have the
key "monitor". `spectra.jsonl` holds the spectra of those looks.
"""

import collections
import concurrent.futures
import json
import logging
import math
import pathlib
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from tqdm import tqdm

from dcjax.collapse.monitor import Look, signs_of, warnings_of
from dcjax.runtime.errors import SettingError
from dcjax.runtime.reading import read_log
from dcjax.training.kept_lines import KeptLines, is_look
from dcjax.training.logs import SCREEN, EventFile, LogFile, say
from dcjax.training.monitor import Monitor

METRICS_FILE, SPECTRA_FILE = "metrics.jsonl", "spectra.jsonl"
MAX_LOG_BYTES = 2**28  # of a log that is read as a whole

# Steps that the host may run ahead of the device: enough to keep the device busy, and few enough that batches do not
# pile up and a NaN is noticed soon.
STEPS_IN_FLIGHT = 2

# These must be finite. The last two are norms of the state after the step.
GUARDED = ("loss", "gradient_norm", "parameter_norm", "statistics_norm")


class MetricsWriter:
    """Writes scalars by step and the looks of a monitor, on the first process only.

    A run that resumes keeps the averages up to `kept_step` and the looks before `first_step`, and writes the later ones
    again. Averages and looks come in the order of their steps, however long a look takes, so that a log does not depend
    on the speed of threads. A file that cannot be written ends nothing, as `LogFile` says.

    Args:
      workdir: the run's folder.
      first_step: the step that the run starts or resumes from.
      kept_step: the last step whose average is kept.
      total_steps: the last step of the run, for the bar.
      batch_size: images per step, for the rate.
      warmup_steps: the warm-up of the learning rate, during which some warnings would come too early.
      chance: the loss of embeddings that tell nothing apart, for the bar; None for none.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        first_step: int,
        kept_step: int,
        total_steps: int,
        batch_size: int,
        warmup_steps: int = 0,
        chance: float | None = None,
    ):
        self._looks: collections.deque[tuple[int, concurrent.futures.Future[Look]]] = collections.deque()
        self._history: list[dict[str, Any]] = []
        self.total_steps, self._warmup_steps = total_steps, warmup_steps
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._events = EventFile(workdir / "tensorboard", kept_step + 1 if first_step else 0)
        # A run that goes on repeats the look at its first step: a checkpoint does not wait for the one at its step.
        last = {True: first_step if first_step == total_steps else first_step - 1, False: kept_step}
        kept = KeptLines(workdir / METRICS_FILE, last)
        self._history = kept.looks
        spectra = KeptLines(workdir / SPECTRA_FILE, dict.fromkeys(last, last[True]))
        self._lines = LogFile(workdir / METRICS_FILE, unit="line", start=kept.lines)
        self._spectra = LogFile(workdir / SPECTRA_FILE, unit="line", start=spectra.lines)
        self._bar = tqdm(
            total=total_steps * batch_size,
            initial=first_step * batch_size,
            unit="img",
            unit_scale=True,
            mininterval=1.0 if sys.stderr.isatty() else 30.0,
            file=SCREEN,
        )
        self._batch_size, self._chance, self._first = batch_size, chance, True
        self._shown = {"loss": "", "rank": "", "online": ""}
        if self._history:
            self._show_rank(self._history[-1]["monitor"])

    def advance(self) -> None:
        """Moves the bar on by one step."""
        if self._active:
            if self._first:
                # The first step includes the compilation. The rate and the time left are those of the steps after it.
                self._first = False
                self._bar.n += self._batch_size
                self._bar.initial = self._bar.last_print_n = self._bar.n
                self._bar.unpause()
            else:
                self._bar.update(self._batch_size)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the average that ends with a step, after the looks at earlier steps."""
        if not self._active:
            return
        self.write_looks(before=step)
        self._lines.append(as_lines([{"step": step, **metrics}]).encode())
        self._add_scalars(step, metrics)
        chance = "" if self._chance is None else f" (chance {self._chance:.3f})"
        self._shown["loss"] = f"loss {metrics['loss']:.3f}{chance}"
        if "online_accuracy" in metrics:
            self._shown["online"] = f"online {metrics['online_accuracy']:.3f}"
        self._show()

    def expect(self, step: int, look: "concurrent.futures.Future[Look]") -> None:
        """Takes the look at a step, which is under way."""
        if self._active:
            self._looks.append((step, look))

    def write_looks(self, *, before: int | None = None) -> None:
        """Waits for the looks at steps before a given one, or for all, and records them."""
        while self._looks and (before is None or self._looks[0][0] < before):
            self._write_look(self._looks.popleft()[1].result())

    def close(self) -> None:
        """Flushes everything."""
        if self._active:
            self.write_looks()
            self._bar.close()
            for file in (self._lines, self._spectra, self._events):
                file.close()

    def _write_look(self, look: Look) -> None:
        signs = signs_of(self._history, look, warmup_steps=self._warmup_steps)
        row: dict[str, Any] = {"step": look.step, "monitor": look.values, "verdict": look.verdicts}
        row |= {"signs": sorted(signs), "warnings": warnings_of(self._history, signs)}
        self._history.append(row)
        self._lines.append(as_lines([row]).encode())
        spectra = {name: [float(f"{value:.6g}") for value in values] for name, values in look.spectra.items()}
        if spectra:
            self._spectra.append(as_lines([{"step": look.step, **spectra}]).encode())
        if look.image is not None:
            self._events.add_image("spectrum", look.image, look.step)
        self._add_scalars(look.step, look.values, group="monitor/")
        for warning in row["warnings"].values():
            self._events.add_text("warning", warning, look.step)
            say(f"dcjax: step {look.step}: {warning}")
        self._show_rank(look.values)
        self._show()

    def _show_rank(self, values: Mapping[str, float]) -> None:
        if "z/effective_rank" in values:
            self._shown["rank"] = f"rank of z {values['z/effective_rank']:.1f}"

    def _show(self) -> None:
        self._bar.set_postfix_str(", ".join(filter(None, self._shown.values())))

    def _add_scalars(self, step: int, values: Mapping[str, float], group: str = "") -> None:
        for name, value in values.items():
            self._events.add_scalar(group + name, value, step)


class NotFiniteError(SettingError):
    """A scalar in `GUARDED` is NaN or infinite.

    Attributes:
      name: the scalar.
      step: the step whose scalar it is, counted from 1.
      value: the value found.
    """

    def __init__(self, message: str, *, name: str, step: int, value: float):
        super().__init__(message)
        self.name, self.step, self.value = name, step, value

    @property
    def found(self) -> str:
        """The scalar, its value and its step, in words."""
        return f"{self.name} is {self.value} at step {self.step}"

    def explained(self, message: str) -> "NotFiniteError":
        """The same error with another message."""
        return NotFiniteError(message, name=self.name, step=self.step, value=self.value)


class StepMetrics:
    """Reads the scalars of the steps a little behind the device and writes their averages.

    `push` and `drain` raise `NotFiniteError` at the first step whose scalars are not finite.

    Args:
      writer: the files and the bar for the averages.
      every: steps in a line; the first step has a line of its own.
      batch_size: images per step.
      sums: the `sums` that a resumed run saved, so that its lines equal those of an uninterrupted run.
      monitor: the monitor; None for none.
      look_every: steps from one look of it to the next.
    """

    def __init__(
        self,
        writer: MetricsWriter,
        *,
        every: int,
        batch_size: int,
        sums: Mapping[str, float],
        monitor: Monitor | None = None,
        look_every: int | None = None,
    ):
        self._writer, self._every, self._batch_size = writer, every, batch_size
        self._monitor, self._look_every = monitor, look_every
        self._looked: int | None = None  # the last step that `look` was called for
        self._has_looked = False
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
        """Reads the scalars of all steps that were pushed, and writes the looks at steps before the last of them."""
        while self._in_flight:
            self._read()
        self._writer.write_looks(before=self._last_step)

    def finish(self) -> None:
        """Reads and writes everything up to the last step, before the checkpoint of that step is saved."""
        self.drain()
        self.flush()
        self._writer.write_looks()

    @property
    def has_looked(self) -> bool:
        """Whether this process has started a look, so that its program is compiled."""
        return self._has_looked

    def look(self, step: int, variables: Any) -> None:
        """Starts a look of the monitor if one is due: at the first and the last step of a run, and every few steps.

        A run that begins at its last step has had all of its looks.
        """
        last, first, self._looked = self._writer.total_steps, self._looked is None, step
        if self._monitor is None or self._look_every is None or (first and step == last):
            return
        if step in (0, last) or step % self._look_every == 0:
            self._has_looked = True
            self._writer.expect(step, self._monitor.look(step, variables))

    def flush(self) -> None:
        """Writes the average of the steps since the last line, if there were any."""
        if self._read_since:
            now = time.perf_counter()
            steps = self._sums.pop("steps")
            means = {name: total / steps for name, total in self._sums.items()}
            means["images_per_second"] = self._read_since * self._batch_size / (now - self._since)
            self._sums, self._read_since, self._since = {}, 0, now  # first, or `close` would divide by nothing
            self._writer.write(self._last_step, means)

    def close(self) -> None:
        """Writes the last average and all looks, and closes the files."""
        try:
            self.flush()
        finally:
            self._writer.close()
            if self._monitor is not None:
                self._monitor.close()

    def _read(self) -> None:
        step, metrics = self._in_flight.popleft()
        row = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in GUARDED:
            if not math.isfinite(row[name]):
                self._in_flight.clear()
                raise NotFiniteError(
                    f"{name} is {row[name]} at step {step}; the last checkpoint is finite. Train with a lower "
                    "optimizer.learning_rate or a longer warm-up in a new --workdir",
                    name=name,
                    step=step,
                    value=row[name],
                )
        for name, value in {"steps": 1, **row}.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._last_step = step
        self._read_since += 1
        self._writer.advance()
        if step == 1 or step % self._every == 0:
            self.flush()


def as_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """The lines of a log, as `read_lines` reads them."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The averages in metrics.jsonl, without a last line that an interruption cut short."""
    return [row for row in read_rows(workdir) if "monitor" not in row]


def read_looks(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The looks in metrics.jsonl.

    Each has "step"; "monitor", the measures by name; "verdict" by "r" and "z"; "signs", their kinds; and "warnings",
    the texts of new signs by kind.
    """
    return [row for row in read_rows(workdir) if "monitor" in row]


def read_rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl; none where there is no such file."""
    return read_lines(workdir / METRICS_FILE)


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a log that are objects with a step; none where there is no such file.

    A last line that an interruption cut short is left out; other lines that are no such objects are left out with a
    warning.

    Raises:
      SettingError: the file is too large, not a regular file, or cannot be read.
    """
    if not path.exists():
        return []
    found = read_log(path, MAX_LOG_BYTES)
    good = [row for row in found.rows if "monitor" not in row or is_look(row)]
    lost = len(found.rows) - len(good) + len(found.bad)
    if lost:
        logging.warning("%s: %d damaged lines were left out", path, lost)
    return good
