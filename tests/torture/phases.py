"""SIGTERM and SIGINT in every phase of a run, once and twice: what is lost, how long the end takes."""

import contextlib
import os
import pathlib
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from harness import Child, differences, percentile, reference, small_run, training

import dcjax.evaluation.protocol
import dcjax.main
import dcjax.pretrain
from dcjax.runtime.files import replace_text
from dcjax.training.checkpoint import Checkpointer
from dcjax.training.manifest import check_step, step_folders
from dcjax.training.metrics import StepMetrics

PHASES = ("start-up", "first compile", "step", "checkpoint", "last checkpoint", "spectrum", "probe")
BOUND = 5.0  # seconds from a signal to the end
STATUSES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Injection:
    """Signals sent by a run to itself, some moments after it has entered a phase.

    Args:
      folder: where the moments are written down.
      phase: one of `PHASES`.
      numbers: the signals, in order.
      delay: seconds from the beginning of the phase to the first of them.
      last: the last step of the run.
    """

    def __init__(self, folder: pathlib.Path, phase: str, numbers: tuple[int, ...], delay: float, *, last: int):
        self._folder, self._phase, self._numbers, self._delay = folder, phase, numbers, delay
        self._armed, self._last = False, last

    def __call__(self) -> None:
        """Changes the program in the child."""
        if self._phase == "start-up":
            self.arm()
        if self._phase == "first compile":  # or else the programs would come from the cache
            os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        around = {
            "first compile": (dcjax.pretrain, "compile_step"),
            "checkpoint": (Checkpointer, "_commit_whole"),
            "last checkpoint": (Checkpointer, "_commit_whole"),
            "spectrum": (dcjax.pretrain, "write_spectrum"),
            "probe": (dcjax.evaluation.protocol, "probe"),
        }
        if self._phase in around:
            owner, name = around[self._phase]
            setattr(owner, name, self._before(getattr(owner, name)))
        push = StepMetrics.push

        def noted(metrics: StepMetrics, step: int, scalars: Any) -> None:
            replace_text(self._folder / "reached", str(step))
            if self._phase == "step" and step == 7:
                self.arm()
            push(metrics, step, scalars)

        StepMetrics.push = noted

    def _before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self._phase != "last checkpoint" or args[1] == self._last:
                self.arm()
            return function(*args, **kwargs)

        return wrapped

    def arm(self) -> None:
        if not self._armed:
            self._armed = True
            threading.Thread(target=self._send, daemon=True).start()

    def _send(self) -> None:
        time.sleep(self._delay)
        for number in self._numbers:
            with (self._folder / "sent").open("a") as file:
                file.write(f"{time.time()}\n")
            os.kill(os.getpid(), number)
            time.sleep(0.02)


def signal_phases(folder: pathlib.Path, each: int, *, seed: int = 0) -> dict[str, Any]:
    """Each phase, with one signal and with two, SIGTERM and SIGINT in turn."""
    rng, config = random.Random(seed), small_run(checkpoint_every_steps=4)
    report: dict[str, Any] = {}
    with reference(folder, config) as (whole, seconds):
        for phase in PHASES:
            exits, lost, statuses, problems = [], [], {}, []
            for k in range(each):
                number = (signal.SIGTERM, signal.SIGINT)[k % 2]
                numbers = (number,) * (1 + (k // 2) % 2)
                workdir = folder / f"{phase.replace(' ', '-')}-{k}"
                workdir.mkdir()
                longest = {"start-up": 0.3 * seconds, "first compile": 0.2 * seconds, "step": 0.05}
                longest |= {"checkpoint": 0.05, "last checkpoint": 0.05}
                delay = rng.uniform(0, longest.get(phase, 0.3))
                change = Injection(workdir, phase, numbers, delay, last=config.total_steps)
                ended = Child(training(config, workdir, before=change), workdir).wait()
                name = f"{number.name} x {len(numbers)}: {ended.status}"
                statuses[name] = statuses.get(name, 0) + 1
                sent = (
                    [float(line) for line in (workdir / "sent").read_text().split()]
                    if (workdir / "sent").exists()
                    else []
                )
                if not sent:
                    problems.append("the phase ended before the signal")
                    continue
                exits.append(ended.time - sent[0])
                reached = int((workdir / "reached").read_text()) if (workdir / "reached").exists() else 0
                interrupted = len(numbers) == 2 and number == signal.SIGINT
                saved = last_step(workdir)
                if not interrupted:  # a second Ctrl-C asks to lose the steps
                    lost.append(reached - saved)
                allowed = {1, STATUSES[number]}
                told = [
                    line for line in ended.errors.splitlines() if line.startswith(("dcjax: stopped", "dcjax: ended"))
                ]
                if ended.status not in allowed or len(told) != 1 or "Traceback" in ended.errors:
                    problems.append(f"{name}: {ended.errors[-200:]}")
                if k < 2:
                    again = Child(training(config, workdir), workdir).wait()
                    found = differences(workdir, whole) if again.status == 0 else [again.errors[-200:]]
                    problems += [f"after {name}: {what}" for what in found]
            problems += [f"{steps} steps lost" for steps in lost if steps]
            problems += [f"{moments:.1f} seconds to the end" for moments in exits if moments > BOUND]
            report[phase] = {
                "injected": each, "lost_steps": max(lost, default=0), "p50_seconds": round(percentile(exits, 0.5), 3),
                "p99_seconds": round(percentile(exits, 0.99), 3), "statuses": statuses, "problems": problems,
            }  # fmt: skip
    return report


def last_step(workdir: pathlib.Path) -> int:
    """The last whole step, or 0."""
    with contextlib.suppress(Exception):
        return max(int(path.name) for path in step_folders(workdir) if not check_step(path).problem)
    return 0


def hang(folder: pathlib.Path, count: int, *, watchdog: float = 3.0) -> dict[str, Any]:
    """A step, a batch and a checkpoint that hang: seconds from the hang to the end, and the line."""
    config = small_run(watchdog_seconds=watchdog, probe__after_training=False)
    seconds: list[float] = []
    lines: set[str] = set()
    problems: list[str] = []
    for k in range(count):
        workdir = folder / f"hang-{k}"
        workdir.mkdir()

        def change(k: int = k, workdir: pathlib.Path = workdir) -> None:
            def hung(*_: Any, **__: Any) -> Any:
                (workdir / "sent").write_text(str(time.time()))
                time.sleep(600)

            push, calls = StepMetrics.push, [0]

            def push_then_hang(metrics: StepMetrics, step: int, scalars: Any) -> None:
                push(metrics, step, scalars)
                calls[0] = step
                if step == 6 and k % 3 == 0:
                    hung()
                if step == 6 and k % 3 == 1:
                    from dcjax.data.loader import TrainLoader

                    TrainLoader.__next__ = hung
                if step == 6 and k % 3 == 2:
                    Checkpointer._commit_whole = hung

            StepMetrics.push = push_then_hang

        ended = Child(training(config, workdir, before=change), workdir).wait()
        seconds.append(ended.time - float((workdir / "sent").read_text()))
        last = ended.errors.strip().splitlines()[-1]
        lines.add(f"{ended.status}: {last}")
        named = ("dcjax: step 6 has", "dcjax: the batch of step 7 has", "dcjax: the checkpoint of step")[k % 3]
        if ended.status != 75 or "Thread" not in ended.errors or not last.startswith(named):
            problems.append(f"{ended.status}: {last}")
        if seconds[-1] > watchdog + BOUND:
            problems.append(f"{seconds[-1]:.1f} seconds to the end")
    return {
        "injected": count, "watchdog_seconds": watchdog, "p50_seconds": round(percentile(seconds, 0.5), 2),
        "p99_seconds": round(percentile(seconds, 0.99), 2), "lines": sorted(lines),
        "problems": problems,
    }  # fmt: skip
