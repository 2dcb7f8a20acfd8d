"""Restarts on other numbers of devices and processes, a stopped peer, and a crash in a thread of the loader."""

import os
import pathlib
import random
import signal
import socket
import time
from typing import Any

import jax
import numpy as np
from harness import Child, percentile, run, small_run, training
from phases import BOUND, last_step

from dcjax.training.checkpoint import Checkpointer
from dcjax.training.metrics import StepMetrics, read_metrics


def other_devices(folder: pathlib.Path) -> dict[str, Any]:
    """A run of 10 steps that is stopped every second step and goes on with 1, 8, 2, 4 devices and with 2 processes."""
    settings = {"total_steps": 10, "batch_size": 64, "log_every_steps": 1, "devices": 0, "probe__after_training": False}
    config = small_run(**settings, optimizer__learning_rate=0.1, monitor__every_steps=None)
    expected, workdir = folder / "one-device", folder / "others"
    assert run(config, expected).status == 0
    workdir.mkdir()
    statuses = []
    for k, devices in enumerate((1, 8, 2, 4)):
        child = Child(training(config, workdir, before=stop_after(2 * (k + 1))), workdir, devices=devices)
        statuses.append(child.wait().status)
    statuses += [ended.status for ended in together(config, workdir, devices=2)]
    losses = [[row["loss"] for row in read_metrics(path)] for path in (expected, workdir)]
    steps = [row["step"] for row in read_metrics(workdir)]
    once = steps == list(range(1, 11))
    apart = float(np.max(np.abs(np.array(losses[0]) / np.array(losses[1]) - 1))) if once else None
    # What roundings grow to over ten steps depends on the processor; wrong draws show in the first digits.
    good = statuses == [1, 1, 1, 1, 0, 0] and apart is not None and apart < 2e-2
    return {
        "statuses": statuses, "steps_logged_once": once, "largest_relative_difference": apart,
        "problems": [] if good else ["as above"],
    }  # fmt: skip


def stop_after(last: int) -> Any:
    """A change of the program that sends SIGTERM to the run at a step."""

    def change() -> None:
        push = StepMetrics.push

        def push_and_stop(metrics: StepMetrics, step: int, scalars: Any) -> None:
            push(metrics, step, scalars)
            if step == last:
                signal.raise_signal(signal.SIGTERM)

        StepMetrics.push = push_and_stop

    return change


def together(
    config: Any, workdir: pathlib.Path, *flags: str, devices: int, before: Any = None, meanwhile: Any = None
) -> list[Any]:
    """Two processes of a run, to their end; `before` changes the program, `meanwhile` gets the started children."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for number in range(2):
        own = workdir.parent / f"{workdir.name}-{number}"
        own.mkdir(exist_ok=True)
        several = [f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", f"--process_id={number}"]
        children.append(Child(training(config, workdir, *several, *flags, before=before), own, devices=devices))
    if meanwhile is not None:
        meanwhile(children)
    return [child.wait() for child in children]


def stopped_peer(folder: pathlib.Path, count: int, *, heartbeat: int = 5) -> dict[str, Any]:
    """SIGSTOP for one of two processes: seconds until the other ends, and the line that names it."""
    config = small_run(total_steps=10**6, batch_size=64, log_every_steps=1, checkpoint_every_steps=10**6, devices=0)
    seconds, said, statuses = [], set(), []
    for k in range(count):
        workdir = folder / f"stopped-{k}"
        workdir.mkdir()

        def stop(children: list[Child], workdir: pathlib.Path = workdir) -> None:
            while not (workdir / "metrics.jsonl").exists() or len(read_metrics(workdir)) < 3:
                time.sleep(0.05)
            children[1].send(signal.SIGSTOP)
            begin = time.time()
            ended = children[0].wait()
            children[1].send(signal.SIGKILL)
            seconds.append(ended.time - begin)
            statuses.append(ended.status)
            said.update(line for line in ended.errors.splitlines() if "stopped sending heartbeats" in line)
            children.remove(children[0])

        together(config, workdir, f"--heartbeat_timeout_seconds={heartbeat}", devices=1, meanwhile=stop)
    return {
        "injected": count, "heartbeat_seconds": heartbeat, "p50_seconds": round(percentile(seconds, 0.5), 1),
        "p99_seconds": round(percentile(seconds, 0.99), 1), "statuses": statuses, "said": len(said) > 0,
        "problems": [] if said and max(seconds) < heartbeat + BOUND else ["as above"],
    }  # fmt: skip


def signalled_pair(folder: pathlib.Path, count: int, *, seed: int = 0) -> dict[str, Any]:
    """SIGTERM or SIGINT to one of two processes at a random moment: both stop at one step, which is saved."""
    rng, seconds, statuses, problems = random.Random(seed), [], [], []
    config = small_run(total_steps=10**6, batch_size=64, log_every_steps=1, checkpoint_every_steps=3, devices=0)
    for k in range(count):
        workdir = folder / f"pair-{k}"
        workdir.mkdir()

        def send(children: list[Child], workdir: pathlib.Path = workdir, k: int = k) -> None:
            while not (workdir / "metrics.jsonl").exists() or len(read_metrics(workdir)) < 2:
                time.sleep(0.05)
            time.sleep(rng.uniform(0, 1))
            children[rng.randrange(2)].send((signal.SIGTERM, signal.SIGINT)[k % 2])
            begin = time.time()
            ended = [child.wait() for child in children]
            seconds.append(max(end.time for end in ended) - begin)
            statuses.extend(end.status for end in ended)
            children.clear()

        together(config, workdir, devices=1, meanwhile=send)
        reached, saved = read_metrics(workdir)[-1]["step"], last_step(workdir)
        problems += [] if reached == saved else [f"step {reached} was reached, step {saved} saved"]
    problems += [] if set(statuses) == {1} and max(seconds) < BOUND else ["a status or the time"]
    return {
        "injected": count, "statuses": {str(status): statuses.count(status) for status in set(statuses)},
        "p50_seconds": round(percentile(seconds, 0.5), 1), "p99_seconds": round(percentile(seconds, 0.99), 1),
        "problems": problems,
    }  # fmt: skip


def signalled_at_the_end(folder: pathlib.Path, count: int) -> dict[str, Any]:
    """SIGTERM or SIGINT to one of two processes during the last step or its checkpoint: both stop, and nothing is lost.

    They must not go on to the spectrum and the probe, which may take hours.
    """
    config = small_run(total_steps=6, batch_size=64, checkpoint_every_steps=100, devices=0)
    seconds, statuses, problems = [], [], []
    for k in range(count):
        workdir = folder / f"late-{k}"
        workdir.mkdir()

        def change(k: int = k, workdir: pathlib.Path = workdir) -> None:
            def send() -> None:
                (workdir / "sent").write_text(str(time.time()))
                signal.raise_signal((signal.SIGTERM, signal.SIGINT)[k // 2 % 2])

            push, commit = StepMetrics.push, Checkpointer._commit_whole

            def push_and_send(metrics: StepMetrics, step: int, scalars: Any) -> None:
                push(metrics, step, scalars)
                if step == 6 and jax.process_index() == k % 2:
                    send()

            def send_and_commit(checkpointer: Checkpointer, *step_and_config: Any) -> None:
                if jax.process_index() == k % 2:
                    (workdir / "sent").write_text(str(time.time()))
                    os.kill(os.getpid(), (signal.SIGTERM, signal.SIGINT)[k // 2 % 2])
                commit(checkpointer, *step_and_config)

            if k % 4 < 2:
                StepMetrics.push = push_and_send
            else:
                Checkpointer._commit_whole = send_and_commit

        ended = together(config, workdir, devices=1, before=change)
        sent = float((workdir / "sent").read_text())
        seconds.append(max(end.time for end in ended) - sent)
        statuses += [end.status for end in ended]
        if [end.status for end in ended] != [1, 1] or last_step(workdir) != 6 or (workdir / "spectrum.npz").exists():
            problems.append(
                f"{k}: {[end.status for end in ended]}, step {last_step(workdir)}: {ended[0].errors[-300:]}"
            )
        again = together(config, workdir, devices=1)
        if [end.status for end in again] != [0, 0] or not (workdir / "probe.json").exists():
            problems.append(f"{k}, again: {again[0].errors[-300:]}")
    problems += [] if max(seconds) < BOUND else [f"{max(seconds):.1f} seconds to the end"]
    return {
        "injected": count, "statuses": {str(status): statuses.count(status) for status in set(statuses)},
        "p50_seconds": round(percentile(seconds, 0.5), 1), "p99_seconds": round(percentile(seconds, 0.99), 1),
        "problems": problems,
    }  # fmt: skip


def crash_in_the_loader(folder: pathlib.Path) -> dict[str, Any]:
    """A fault of the program in a thread that reads images, between two checkpoints."""
    config = small_run(total_steps=12, checkpoint_every_steps=100, probe__after_training=False, data__threads=2)
    workdir = folder / "crash"
    workdir.mkdir()

    def change() -> None:
        from dcjax.data import fixed_size

        read, calls = fixed_size.FixedSizeImages.read_many, [0]

        def failing(self: Any, indices: Any) -> Any:
            calls[0] += len(indices)
            if calls[0] > 7 * 16 + 100:
                raise RuntimeError("a fault in a thread")
            return read(self, indices)

        fixed_size.FixedSizeImages.read_many = failing

    ended = Child(training(config, workdir, before=change), workdir).wait()
    reached = read_metrics(workdir)[-1]["step"]
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())
    again = Child(training(config, workdir), workdir).wait()
    named = "a fault in a thread" in ended.errors
    return {
        "status": ended.status, "named": named, "steps_logged": reached, "lost_steps": reached - saved,
        "status_afterwards": again.status,
        "problems": [] if named and reached == saved and again.status == 0 else ["as above"],
    }  # fmt: skip
