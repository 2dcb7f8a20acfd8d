"""Records some steps of a training for TensorBoard, and sums the time of their operations by part of the step."""

import contextlib
import pathlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import jax
from jax.stages import Compiled

from dcjax.aot import hlo
from dcjax.aot.parts import PARTS, part_of
from dcjax.runtime.errors import SettingError, first_line
from dcjax.runtime.files import reason_of, replace_text, warn_of

SUMMARY = "summary.txt"
WITHOUT = "the run goes on, and the record is incomplete"
CONTAINERS = ("while", "conditional", "call", "async-start", "async-done")  # their operations are recorded themselves


class ProfiledStep:
    """A training step that records its calls from `first` to `last` for TensorBoard and Perfetto.

    After the last one it prints the time of each part of the step, and writes this table beside the record.

    Args:
      step: the compiled step.
      folder: where the record is written.
      first, last: steps of the run, counted from 1.
      done: steps that the run has taken.
      devices: devices of this process that the step runs on.

    Attributes:
      compiled: the step without any record.
    """

    def __init__(self, step: Compiled, folder: pathlib.Path, *, first: int, last: int, done: int, devices: int):
        self.compiled, self._folder, self._first, self._last = step, folder, first, last
        self._done, self._devices, self._running = done, devices, False

    def __call__(self, state: Any, batch: Any) -> Any:
        """One step."""
        self._done += 1
        if self._done == self._first:
            jax.block_until_ready(state)  # the steps before it are not part of the record
            with _recording(self._folder):
                jax.profiler.start_trace(str(self._folder))
                self._running = True
        found = self.compiled(state, batch)
        if self._done == self._last and self._running:
            jax.block_until_ready(found)
            with _recording(self._folder):
                self._stop()
                self._summarise()
        return found

    def close(self) -> None:
        """Ends a record that is under way, such as that of a run which a signal stops."""
        if self._running:
            with _recording(self._folder):
                self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()

    def _summarise(self) -> None:
        try:
            seconds = seconds_by_part(self._folder, self.compiled.as_text() or "")
        except (KeyError, OSError, ValueError) as error:  # a form of program or record that is not known ends no run
            summary = f"no summary by part of the step: {error}"
        else:
            summary = as_text(seconds, self._last - self._first + 1, self._devices)
        if jax.process_index() == 0:
            print(f"dcjax: steps {self._first} to {self._last} are recorded in {self._folder}", flush=True)
            print(summary, flush=True)
            replace_text(self._folder / SUMMARY, summary + "\n")


@contextlib.contextmanager
def _recording(folder: pathlib.Path) -> Iterator[None]:
    """Prints one line where the profiler or the summary cannot write: the training goes on."""
    try:
        yield
    except OSError as error:
        warn_of(folder, reason_of(error), WITHOUT)
    except jax.errors.JaxRuntimeError as error:  # the profiler's, e.g. for a full disk
        warn_of(folder, first_line(error), WITHOUT)


def check_steps(steps: tuple[int, int] | None, *, done: int, total: int) -> None:
    """Raises `SettingError` if the steps to record are not all still to come."""
    if steps is not None and (steps[0] <= done or steps[1] > total):
        found = f"{steps[0]}:{steps[1]}"
        if done >= total:
            raise SettingError(f"--profile has no step to record, since the run has taken all {total}, found {found}")
        raise SettingError(f"--profile must name steps from {done + 1} to {total}, found {found}")


def seconds_by_part(folder: pathlib.Path, program: str) -> dict[str, float]:
    """Seconds of device time by part of the step, summed over steps and this process's devices.

    On a CPU, an operation that several threads share counts once, by the thread that started it.

    Args:
      folder: what `jax.profiler.start_trace` was given; its newest record is read.
      program: the text of the compiled step.
    """
    module = hlo.parse(program)
    parts: dict[str, str] = {}
    for computation, instruction, _ in module.executed():
        if instruction.opcode not in CONTAINERS:
            parts[instruction.name] = part_of(module, computation, instruction)
    records = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    found: defaultdict[str, float] = defaultdict(float)
    if not records:
        return found
    for plane in jax.profiler.ProfileData.from_file(str(records[-1])).planes:
        for line in plane.lines:
            if plane.name.startswith("/device:TPU") and line.name != "XLA Ops":
                continue  # its other lines hold the same time again, by step and by module
            for event in line.events:
                named = dict(event.stats).get("hlo_op") or event.name
                part = parts.get(str(named).split(" ")[0].lstrip("%"))
                if part is not None:
                    found[part] += event.duration_ns * 1e-9
    return found


def as_text(seconds: dict[str, float], steps: int, devices: int) -> str:
    """A table of milliseconds a device and step."""
    total = sum(seconds.values())
    lines = [f"{'operations, by part of the step':<34}{'ms a step':>10}{'share':>8}"]
    for part in PARTS:
        if seconds.get(part):
            lines.append(f"  {part:<32}{1e3 * seconds[part] / (steps * devices):>10.2f}{seconds[part] / total:>8.1%}")
    return "\n".join([*lines, f"  {'in all':<32}{1e3 * total / (steps * devices):>10.2f}"])
