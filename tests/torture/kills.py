"""Kills at random moments: of a whole run, and of a save between two of its writes."""

import contextlib
import itertools
import os
import pathlib
import random
import shutil
import signal
import sys
import threading
import time
from typing import Any

import numpy as np
from harness import (
    Child,
    Ended,
    differences,
    reference,
    save_steps,
    saved_arrays,
    small_run,
    state_of,
    training,
    value_of,
)

from dcjax.training.checkpoint import Checkpointer


def kill_runs(
    folder: pathlib.Path, kills: int, *, number: signal.Signals = signal.SIGKILL, seed: int = 0
) -> dict[str, Any]:
    """SIGKILL or SIGTERM at random moments, until there were so many; each run is started again until it ends."""
    rng, config = random.Random(seed), small_run()
    killed = runs = starts = 0
    ended_by = {signal.SIGKILL: (-signal.SIGKILL,), signal.SIGTERM: (1, 143, -signal.SIGTERM)}[number]
    differing: list[str] = []
    failures: list[str] = []
    with reference(folder, config) as (whole, seconds):
        while killed < kills:
            workdir = folder / f"run-{runs}"
            workdir.mkdir()
            for tries in itertools.count():
                child = Child(training(config, workdir), workdir)
                starts += 1
                # Later from try to try, or on a machine that has become busier no run would reach its end.
                moment = rng.uniform(0, seconds * (1 + tries / 10))
                timer = threading.Timer(moment, child.send, (number,))
                if killed < kills:
                    timer.start()
                begin = time.monotonic()
                ended = child.wait()
                timer.cancel()
                if ended.status == 0:
                    seconds = min(seconds, time.monotonic() - begin)  # other work on the machine may have ended
                    break
                killed += ended.status in ended_by
                print(f"{killed} kills, {runs} runs, {seconds:.1f} s a run", end="\r", file=sys.stderr, flush=True)
                if ended.status not in ended_by or "Traceback" in ended.errors:
                    failures.append(f"{ended.status}: {ended.errors[-300:]}")
                    break
            if ended.status == 0:
                found = differences(workdir, whole)
                differing += [f"run {runs}: {name}" for name in found]
                if not found:
                    shutil.rmtree(workdir)
            runs += 1
    return {
        "injected": killed, "runs": runs, "starts": starts, "runs_that_differ": len(differing),
        "seconds_of_a_run": round(seconds, 2), "problems": differing + failures,
    }  # fmt: skip


def kill_saves(folder: pathlib.Path, kills: int, *, seed: int = 0) -> dict[str, Any]:
    """SIGKILL after a random change of the files of a save; what is restored then has to be what was saved."""
    rng = random.Random(seed)
    steps, wrong, unusable, moments = 4, [], [], set()

    def save() -> None:
        done = int((workdir / "done").read_text()) if (workdir / "done").exists() else 0
        save_steps(workdir, *range(done + 2, done + 2 + steps))  # `done` may be one behind

    def check(workdir: pathlib.Path, done: int) -> str:
        with contextlib.closing(Checkpointer(workdir, read_only=True)) as checkpointer:
            step = checkpointer.last_whole_step()
        if step is None or step < done:
            return f"step {step} after step {done} was saved"
        found = saved_arrays(workdir, step)
        expected = state_of(step)["params"]
        good = len(found) == 3 and all(
            np.array_equal(array, expected[name[-3]]) for name, array in found.items()
        )  # the path of a leaf ends with ['a']
        return "" if good else f"other arrays in step {step}"

    workdir = folder / "saves"
    workdir.mkdir()
    whole, ended = changes_until_end(Child(save, workdir), workdir, None)
    assert ended.status == 0, ended.errors
    injected = early = 0
    while injected < kills:
        moment = rng.randrange(1, whole)
        _, ended = changes_until_end(Child(save, workdir), workdir, moment)
        if ended.status == -signal.SIGKILL:
            injected += 1
            moments.add(moment)
        elif ended.status == 0:  # it made fewer changes that could be seen
            early += 1
            assert early < 10 * kills
        else:
            unusable.append(ended.errors[-300:])
        done = int((workdir / "done").read_text())
        problem = value_of(lambda done=done: check(workdir, done), workdir)
        if problem.startswith("other"):
            wrong.append(problem)
        elif problem:
            unusable.append(problem)
    return {
        "injected": injected, "silently_wrong": len(wrong), "could_not_go_on": len(unusable),
        "changes_of_files_in_all": whole, "different_moments": len(moments), "problems": wrong + unusable,
    }  # fmt: skip


def changes_until_end(child: Child, workdir: pathlib.Path, kill_at: int | None) -> tuple[int, Ended]:
    """Counts the changes of the files in `checkpoints` until the child ends, or kills it at one of them."""
    seen: set[Any] = set()
    changes, folder = 0, workdir / "checkpoints"
    while alive(child.pid):
        now = listing(folder)
        changes += len(now - seen)
        seen |= now
        if kill_at is not None and changes >= kill_at:
            child.send(signal.SIGKILL)
            break
        time.sleep(0.0005)
    return changes, child.wait()


def alive(pid: int) -> bool:
    """Whether a child runs; one that has ended, but was not waited for, does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def listing(folder: pathlib.Path) -> set[Any]:
    """Names and sizes of all files below a folder, which may change at this moment."""
    found = set()
    for top, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                path = os.path.join(top, name)
                found.add((path, os.stat(path).st_size))
        found.add((top, -1))
    return found
