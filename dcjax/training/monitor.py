"""Watches a run from the host: averages the scalars of the steps, stops at the first NaN, listens for signals."""

import collections
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from dcjax.runtime.errors import SettingError
from dcjax.training.metrics import MetricsWriter

# Steps that the host may run ahead of the device: enough to keep it busy, few enough that neither batches nor unnoticed
# NaNs pile up.
STEPS_IN_FLIGHT = 2

# What must be finite: the step itself, and the parameters and batch statistics that it leaves.
GUARDED = ("loss", "gradient_norm", "parameter_norm", "statistics_norm")


class NotFiniteError(SettingError):
    """The loss or the gradient is NaN or infinite."""


class Monitor:
    """Follows the scalars of the steps a little behind the device, writes their averages and stops at the first NaN.

    Args:
      writer: where the averages go.
      every: steps to a line; the first step has a line of its own.
      batch_size: images to a step.
      sums: `sums` of the checkpoint that the run goes on from, so that its lines are those of a run without a stop.
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
        """The sums of the scalars since the last regular line, and under `steps` the number of steps; or nothing."""
        return dict(self._sums)

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the scalars of a step that was just dispatched, and reads those of an earlier one."""
        self._in_flight.append((step, metrics))
        while len(self._in_flight) > STEPS_IN_FLIGHT:
            self._read()

    def drain(self) -> None:
        """Reads all that was pushed."""
        while self._in_flight:
            self._read()

    def flush(self) -> None:
        """Writes the average of the steps since the last line, if there was one."""
        if self._read_since:
            now = time.perf_counter()
            steps = self._sums.pop("steps")
            means = {name: total / steps for name, total in self._sums.items()}
            means["images_per_second"] = self._read_since * self._batch_size / (now - self._since)
            self._writer.write(self._last_step, means)
            self._sums, self._read_since, self._since = {}, 0, now

    def _read(self) -> None:
        step, metrics = self._in_flight.popleft()
        row = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in GUARDED:
            if not math.isfinite(row[name]):
                self._in_flight.clear()
                raise NotFiniteError(
                    f"{name} is {row[name]} at step {step}; the last checkpoint is good. A lower "
                    "optimizer.learning_rate (or a longer warm-up) in a new workdir is the usual cure"
                )
        for name, value in {"steps": 1, **row}.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._last_step = step
        self._read_since += 1
        self._writer.advance()
        if step == 1 or step % self._every == 0:
            self.flush()


class StopRequest:
    """Turns SIGINT and SIGTERM into a request that the loop sees between two steps; a second SIGINT interrupts as
    usual.

    With several processes it is enough that one of them gets the signal: JAX's preemption service tells the others, and
    all stop at the same step.
    """

    def __init__(self) -> None:
        self._requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if jax.process_count() == 1:
            handlers = {signal.SIGINT: self._request, signal.SIGTERM: self._request}
        else:
            handlers = {signal.SIGINT: self._pass_on}  # SIGTERM is the service's
        try:
            self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        except ValueError:  # not the main thread: whoever runs it there handles signals
            self._before = {}
        return self

    def reached(self, step: int) -> bool:
        """Whether to stop before another step; every process asks at every step.

        Args:
          step: steps taken.
        """
        return self._requested or multihost_utils.reached_preemption_sync_point(step)

    def _request(self, number: int, _frame: Any) -> None:
        self._requested = True
        self._announce()

    def _pass_on(self, number: int, _frame: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        self._announce()

    def _announce(self) -> None:
        print("dcjax: stopping after this step, with a checkpoint", file=sys.stderr, flush=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before and jax.process_count() > 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # after the loop the service would only swallow it
