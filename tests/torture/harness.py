"""Runs of `dcjax main` in forked children, which start within a second because this process has imported everything.

Only children touch a device, so that each can have its own number of them and be killed at any moment.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

# A start should take a second: every program comes from the cache.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# What a command imports, for the children. None of these starts a device.
import jax
import numpy as np
from helpers import as_flags, tiny_config

import dcjax.evaluation.protocol
import dcjax.pretrain  # noqa: F401
from dcjax.main import main
from dcjax.runtime import cli
from dcjax.runtime.files import replace_text
from dcjax.runtime.mesh import make_mesh, replicated
from dcjax.training.checkpoint import Checkpointer
from dcjax.training.metrics import read_lines

PATIENCE = 600  # seconds after which a child counts as hung


@dataclasses.dataclass
class Ended:
    """How a child ended.

    Attributes:
      status: its exit status, or minus the signal that ended it.
      errors: its stderr.
      output: its stdout.
      time: the moment, `time.time()`.
    """

    status: int
    errors: str
    output: str
    time: float


def small_run(**overrides: Any) -> Any:
    """The config of a run that saves every step and shows everything: the monitor, the spectrum, the probe."""
    settings = {
        "total_steps": 16,
        "checkpoint_every_steps": 1,
        "log_every_steps": 4,
        "monitor__every_steps": 8,
        "monitor__images": 64,
        "probe__after_training": True,
        "probe__cached": True,
        "probe__labels_per_class": 0,
        "probe__neighbors": 5,
    }
    return tiny_config(**settings | overrides)


class Child:
    """A forked process that runs a function; its output goes to files in `folder`.

    Args:
      work: the function; its return ends the child with status 0.
      folder: an existing folder.
      devices: how many CPU devices the child has.
    """

    def __init__(self, work: Callable[[], Any], folder: pathlib.Path, *, devices: int = 1):
        assert jax._src.xla_bridge._backends == {}, "this process must not start a device"  # pyright: ignore
        self._files = [folder / f".child-{name}" for name in ("out", "err")]
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(work, devices)

    def _run(self, work: Callable[[], Any], devices: int) -> None:
        status = 1  # as of Python after a traceback
        try:
            os.setpgid(0, 0)
            for number, file in zip((1, 2), self._files, strict=True):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
            os.environ["XLA_FLAGS"] = " ".join([*flags, f"--xla_force_host_platform_device_count={devices}"])
            work()
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
            if not isinstance(error.code, int):
                print(error.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, seconds: float = PATIENCE) -> Ended:
        """Waits for the end; a child that hangs is killed, and its status is None-like: -SIGALRM."""
        killer = threading.Timer(seconds, os.kill, (self.pid, signal.SIGALRM))
        killer.start()
        try:
            _, code = os.waitpid(self.pid, 0)
        finally:
            killer.cancel()
        out, err = (file.read_text(errors="replace") for file in self._files)
        return Ended(os.waitstatus_to_exitcode(code), err, out, time.time())


def training(
    config: Any, workdir: pathlib.Path, *flags: str, before: Callable[[], Any] | None = None
) -> Callable[[], Any]:
    """A function that trains as the command does; `before` may change the program in the child first."""
    argv = [*as_flags(config), f"--workdir={workdir}", *flags]

    def work() -> None:
        if before is not None:
            before()
        cli.run(main, argv)

    return work


def run(config: Any, workdir: pathlib.Path, *flags: str, devices: int = 1) -> Ended:
    """Trains to the end."""
    workdir.mkdir(parents=True, exist_ok=True)
    return Child(training(config, workdir, *flags), workdir, devices=devices).wait()


def value_of(work: Callable[[], Any], folder: pathlib.Path) -> Any:
    """The JSON value that a function returns in a child, which may use a device."""
    file = folder / ".value"

    def write() -> None:
        file.write_text(json.dumps(work()))

    ended = Child(write, folder).wait()
    assert ended.status == 0, ended.errors
    return json.loads(file.read_text())


def state_of(step: int) -> dict[str, Any]:
    """A small state, which the step determines."""
    draw = np.random.default_rng(step)
    return {"params": {name: draw.standard_normal((64, 64)).astype(np.float32) for name in "abc"}}


def save_steps(workdir: pathlib.Path, *steps: int) -> None:
    """Saves such states, and writes the number of the last one that is whole to the file `done`. For a child."""
    with contextlib.closing(Checkpointer(workdir)) as checkpointer:
        checkpointer.last_whole_step(lambda _: None)
        for step in steps:
            checkpointer.save(step, state=state_of(step), position={"unlogged": {}}, config={"step": step})
            checkpointer.wait()
            replace_text(workdir / "done", str(step))


def saved_arrays(workdir: pathlib.Path, step: int | None = None) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by path; of the last whole one unless a step is given. For a child."""
    with contextlib.closing(Checkpointer(workdir, read_only=True)) as checkpointer:
        step = checkpointer.last_whole_step() if step is None else step
        assert step is not None
        tree = checkpointer.restore_saved(step, replicated(make_mesh(1)))
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def differences(one: pathlib.Path, two: pathlib.Path) -> list[str]:
    """What differs in two finished runs: arrays of the last checkpoint, logs without the timing, and the probe."""

    def compare() -> list[str]:
        arrays = [saved_arrays(folder) for folder in (one, two)]
        found = [] if arrays[0].keys() == arrays[1].keys() else ["names of the arrays"]
        return found + [
            name for name, array in arrays[0].items() if not np.array_equal(array, arrays[1].get(name), equal_nan=True)
        ]

    found = value_of(compare, one)
    for name in ("metrics.jsonl", "spectra.jsonl"):
        rows = [read_lines(folder / name) for folder in (one, two)]
        for row in (*rows[0], *rows[1]):
            row.pop("images_per_second", None)
        found += [] if rows[0] == rows[1] and rows[0] else [name]
    texts = [(folder / "probe.json").read_text() for folder in (one, two)]
    found += [] if texts[0] == texts[1] else ["probe.json"]
    spectra = [dict(np.load(folder / "spectrum.npz")) for folder in (one, two)]
    return found + [name for name in spectra[0] if not np.array_equal(spectra[0][name], spectra[1][name])]


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed; NaN of none."""
    ranked = sorted(values)
    return ranked[max(int(np.ceil(share * len(ranked))) - 1, 0)] if ranked else float("nan")


@contextlib.contextmanager
def reference(folder: pathlib.Path, config: Any) -> Iterator[tuple[pathlib.Path, float]]:
    """A run that nothing disturbed, and the seconds that a start and a whole run take with a warm cache of programs."""
    whole = folder / "whole"
    ended = run(config, whole)
    assert ended.status == 0, ended.errors
    warm, begin = folder / "warm", time.monotonic()
    ended = run(config, warm)
    assert ended.status == 0, ended.errors
    seconds = time.monotonic() - begin
    assert differences(warm, whole) == []
    shutil.rmtree(warm)
    yield whole, seconds
