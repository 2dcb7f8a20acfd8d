"""The watchdog: what it ends, what it lets pass."""

import threading
import time

import pytest
from helpers import run_main, tiny_config

from dcjax.training import watchdog
from dcjax.training.watchdog import Watchdog

LONG = 30.0  # seconds that a test waits for what should take one


@pytest.fixture
def ended(monkeypatch):
    """What the watchdog would have ended the process with, as (status, message), once it has."""
    calls, called = [], threading.Event()

    def leave(status, message):
        calls.append((status, message))
        called.set()

    monkeypatch.setattr(watchdog, "leave", leave)
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback", lambda **_: None)
    return calls, called


def test_a_phase_that_takes_too_long_is_named(ended):
    calls, called = ended
    with Watchdog(0.2) as dog, dog.phase("step 7"), dog.phase("something else", limited=False):
        assert called.wait(LONG)
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
