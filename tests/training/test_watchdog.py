"""The watchdog: what it ends, what it lets pass."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
from helpers import ROOT, run_main, tiny_config

from dcjax.components import build
from dcjax.program import make_optimizer, make_schedule
from dcjax.resume import start_or_resume
from dcjax.training import watchdog
from dcjax.training.checkpoint import Checkpointer
from dcjax.training.watchdog import Watchdog

LONG = 30.0  # seconds that a test waits for what should take one


@pytest.fixture
def ended(monkeypatch):
    """What the watchdog would have ended the process with, as (status, message), once it has."""
    calls, called = [], threading.Event()

    def leave(status, message, *, before):
        calls.append((status, message))
        called.set()

    monkeypatch.setattr(watchdog, "leave", leave)
    return calls, called


def test_a_phase_that_takes_too_long_is_named(ended):
    calls, called = ended
    with Watchdog(0.2) as dog:
        time.sleep(0.03)  # the phase begins between two looks
        begin = time.monotonic()
        with dog.phase("step 7"), dog.phase("something else", limited=False):
            assert called.wait(LONG)
        assert time.monotonic() - begin > 0.2
    status, message = calls[0]
    assert status == 75
    assert message.startswith("step 7 has taken more than 0.2 seconds; the stacks")


def test_every_phase_has_its_own_time_in_any_thread(ended):
    calls, called = ended
    with Watchdog(0.4) as dog:

        def write():
            with dog.phase("the checkpoint of step 3"):
                called.wait(LONG)

        thread = threading.Thread(target=write)
        thread.start()
        while not called.is_set():
            with dog.phase("a short step"):
                time.sleep(0.01)
        thread.join()
    assert calls[0][1].startswith("the checkpoint of step 3 has taken")


def test_time_in_which_the_process_stands_still_does_not_count(ended, monkeypatch):
    """As after SIGSTOP: the clock jumps by an hour between two looks."""
    jump = [0.0]
    clock = time.monotonic
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: clock() + jump[0])
    with Watchdog(40.0) as dog, dog.phase("step 1"):
        time.sleep(0.1)
        jump[0] = 3600.0
        time.sleep(1.2)
    assert not ended[0]


def test_without_a_limit_there_is_no_thread(ended):
    threads = threading.active_count()
    with Watchdog(0) as dog, dog.phase("step 1"):
        assert threading.active_count() == threads


def test_checkpoints_are_read_in_a_phase(four_steps, tmp_path, monkeypatch):
    """A read from a dead network disk ends, as a step does."""
    workdir, seen, phases = shutil.copytree(four_steps[0], tmp_path / "run"), [], []

    @contextlib.contextmanager
    def phase(name):
        phases.append(name)
        yield
        phases.pop()

    for name in ("last_whole_step", "restore_record", "restore_state"):
        method = getattr(Checkpointer, name)

        def noted(self, *args, name=name, method=method):
            seen.append((name, tuple(phases)))
            return method(self, *args)

        monkeypatch.setattr(Checkpointer, name, noted)
    components = build(tiny_config())
    optimizer = make_optimizer(components.config, make_schedule(components.config, len(components.train_source)))
    with contextlib.closing(Checkpointer(workdir)) as checkpointer:
        start_or_resume(components, optimizer, checkpointer, workdir, phase=phase)
    assert seen == [
        ("last_whole_step", ("the check of the checkpoints",)),
        ("restore_record", ("the restored checkpoint",)),
        ("restore_state", ("the restored checkpoint",)),
    ]


def test_a_run_ends_though_nobody_reads_its_output():
    """A pipe takes the first line, but not the stacks."""
    code = """
import sys, threading
from dcjax.training.watchdog import Watchdog
def wait(depth):
    wait(depth - 1) if depth else threading.Event().wait()
for _ in range(8):
    threading.Thread(target=wait, args=(80,), daemon=True).start()
with Watchdog(0.5) as dog, dog.phase("step 3"):
    print("ready", flush=True)
    wait(80)
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    near, far = os.pipe()
    os.set_blocking(far, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(far, bytes(4096))
    os.set_blocking(far, True)
    os.read(near, 4096)
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=far)
    try:
        assert process.wait(timeout=60) == 75
    finally:
        process.kill()
        process.communicate()
        os.close(near)
        os.close(far)


@pytest.mark.slow
def test_a_hung_step_ends_the_run_with_all_stacks(tmp_path):
    hang = """
import time
from dcjax.training.metrics import StepMetrics
push = StepMetrics.push
def push_and_hang(self, step, metrics):
    push(self, step, metrics)
    if step == 3:
        time.sleep(600)
StepMetrics.push = push_and_hang
"""
    process = run_main(tmp_path / "run", tiny_config(watchdog_seconds=2.0), before=hang)
    assert process.returncode == 75, process.stderr
    assert "dcjax: step 3 has taken more than 2 seconds" in process.stderr
    assert "push_and_hang" in process.stderr
    assert (tmp_path / "run" / "checkpoints" / "2" / "manifest.json").is_file()
