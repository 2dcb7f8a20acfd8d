"""SIGINT and SIGTERM outside of the training loop; `tests/torture` sends them in every phase of a run."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from helpers import ROOT

from dcjax.runtime.signals import LOST, answer_signals, end_on_signals

NATIVE = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 2_000_000_000)"  # half an hour in native code


def sent(code, *numbers):
    """The exit status and stderr of a process that runs `code`, and gets signals once it has printed a line each."""
    command = [sys.executable, "-c", f"from dcjax.runtime.signals import *\n{code}"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for number in numbers:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    return process.returncode, errors


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_ends_at_once_even_in_native_code(number, status):
    found, errors = sent(f"with end_on_signals('nothing is lost'): print('ready', flush=True); {NATIVE}", number)
    assert found == status
    assert errors == f"dcjax: ended by {number.name}; nothing is lost\n"


def test_a_loop_that_answers_goes_on():
    code = """
import signal, time
with end_on_signals(""), answer_signals(lambda number: number == signal.SIGTERM):
    print("ready", flush=True)
    time.sleep(0.3)  # the signal does not end this
    print("ready", flush=True)
    time.sleep(60)
"""
    assert sent(code, signal.SIGTERM, signal.SIGINT) == (130, f"\ndcjax: ended by a second SIGINT; {LOST}\n")


def test_the_handlers_are_those_of_before_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with end_on_signals(""), answer_signals(lambda number: True):
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_nothing_changes():
    found = []

    def enter():
        with end_on_signals(""):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


def test_a_mistake_is_told_though_there_is_no_stdout():
    command = f"{sys.executable} -c 'from dcjax.runtime.cli import leave; leave(2, \"a mistake\")' >&-"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, shell=True, env=env, stderr=subprocess.PIPE, text=True)
    assert (process.returncode, process.stderr) == (2, "dcjax: a mistake\n")


@pytest.mark.parametrize("stderr", ["/dev/full", "closed"])
def test_a_command_ends_though_nothing_can_be_printed(stderr):
    code = "import os, signal, time\nwith end_on_signals(''): os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
    command = [sys.executable, "-c", f"from dcjax.runtime.signals import *\n{code}"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    if stderr == "closed":
        near, far = os.pipe()
        os.close(near)
    else:
        far = os.open(stderr, os.O_WRONLY)
    try:
        assert subprocess.run(command, env=env, stderr=far, timeout=60).returncode == 143
    finally:
        os.close(far)


@pytest.mark.parametrize("blocked", ["stdout", "stderr"])
def test_a_command_ends_though_nobody_reads_its_output(blocked):
    """The main thread waits for room in a pipe, and holds the lock of the output."""
    other = {"stdout": "stderr", "stderr": "stdout"}[blocked]
    code = f"""
import sys
from dcjax.runtime.signals import end_on_signals
with end_on_signals("nothing is lost"):
    print("ready", file=sys.{other}, flush=True)
    while True:
        print("x" * 5000, file=sys.{blocked})
"""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, **pipes)
    try:
        assert getattr(process, other).readline() == b"ready\n"
        time.sleep(0.5)  # until the pipe is full
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
        assert blocked == "stderr" or process.stderr.read() == b"dcjax: ended by SIGTERM; nothing is lost\n"
    finally:
        process.kill()
        process.communicate()
