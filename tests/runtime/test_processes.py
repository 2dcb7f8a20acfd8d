"""Several processes on one machine, as on a cluster."""

import contextlib
import dataclasses
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ROOT, as_flags, flip, new_process, tiny_config

from dcjax.main import main
from dcjax.runtime.errors import SettingError
from dcjax.training.metrics import read_looks, read_metrics

ENDLESS = {"devices": 0, "batch_size": 64, "total_steps": 10**6, "checkpoint_every_steps": 10**6}


@dataclasses.dataclass
class Ended:
    """What a process left."""

    status: int
    output: str
    errors: str


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def started_processes(workdir, config, *flags, processes, devices=2, module="tiny_main"):
    """`dcjax.main` as processes of some devices each, which find each other at a free port; none is left behind."""
    port = free_port()
    started = []
    for process in range(processes):
        argv = [sys.executable, "-m", module, *as_flags(config), f"--workdir={workdir}", *flags]
        if processes > 1:
            argv += [f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={processes}"]
            argv += [f"--process_id={process}"]
        started.append(
            subprocess.Popen(argv, env=new_process(devices), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def end_of(started, timeout):
    outputs = [process.communicate(timeout=timeout) for process in started]
    return [Ended(process.returncode, *texts) for process, texts in zip(started, outputs, strict=True)]


def run_processes(workdir, config, *, processes, devices=2):
    """Runs to the end; returns what the first process printed and the loss of every step."""
    with started_processes(workdir, config, processes=processes, devices=devices) as started:
        ended = end_of(started, timeout=600)
    assert [process.status for process in ended] == [0] * processes, ended
    return ended[0].output, [row["loss"] for row in read_metrics(workdir)]


def assert_close(losses, expected):
    """The losses of one run on other processes or devices.

    Wrong draws or statistics show in the first digits of the first steps, whose parameters are still the same but for
    the roundings of some thousand terms. What these grow to over the later steps depends on the processor.
    """
    np.testing.assert_allclose(losses[:2], expected[:2], rtol=1e-4)
    np.testing.assert_allclose(losses, expected, rtol=2e-2)


def wait_for_steps(workdir, started, steps):
    deadline = time.monotonic() + 300
    while not (workdir / "metrics.jsonl").exists() or len(read_metrics(workdir)) < steps:
        assert all(process.poll() is None for process in started), end_of(started, timeout=10)
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_two_processes_train_and_probe_like_one(tmp_path):
    settings = {"devices": 0, "total_steps": 3, "batch_size": 64, "data__image_size": 16, "projector__d0": 16}
    watched = {"monitor__every_steps": 2, "monitor__images": 64}
    config = tiny_config(**settings, **watched, optimizer__learning_rate=0.5, probe__after_training=True)
    tables, losses = zip(
        *(run_processes(tmp_path / str(count), config, processes=count) for count in (1, 2)), strict=True
    )
    assert_close(*losses)
    scores = [
        [float(word) for word in re.findall(r"^r  .*", table, re.M)[0].split()[1:] if word != "±"] for table in tables
    ]
    assert len(scores[0]) == 6
    one, two = (read_looks(tmp_path / str(count)) for count in (1, 2))
    assert [row["step"] for row in one] == [row["step"] for row in two] == [0, 2, 3]
    # Before the first step; afterwards the roundings of the training grow.
    assert two[0]["monitor"] == pytest.approx(one[0]["monitor"], rel=1e-3, abs=1e-5)
    np.testing.assert_allclose(*scores, atol=1.0)  # per cent: of 360 images some lie on the border


@pytest.mark.slow
def test_two_processes_evaluate_like_one(tmp_path):
    """Each holds its own rows alone; what needs all of them is the same as where one process holds them."""
    found = {}
    for processes in (1, 2):
        flags = [str(tmp_path / f"{processes}.npz"), f"127.0.0.1:{free_port()}", str(processes)]
        env = new_process(devices=processes)  # 1 device, and 2 for each of 2
        command = [sys.executable, str(ROOT / "tests" / "evaluating_process.py"), *flags]
        started = [subprocess.Popen([*command, str(process)], env=env) for process in range(processes)]
        try:
            assert [process.wait(timeout=300) for process in started] == [0] * processes
        finally:
            for process in started:
                process.kill()
        found[processes] = np.load(flags[0])
    one, two = found[1], found[2]
    for name in ("r", "z", "labels", "taken"):
        np.testing.assert_array_equal(one[name], two[name])
    np.testing.assert_allclose(one["spectrum"], two["spectrum"], atol=1e-13 * one["spectrum"].max())
    # A gradient of 1e-5 leaves W within n * sqrt(d k) * 1e-5 of the optimum, since the Hessian is at least 1 / n.
    for name, n in (("w", 77), ("few", 3)):
        np.testing.assert_allclose(one[name], two[name], atol=n * 9 * 2e-5)
    # Of 77 images one or two lie on the border.
    for name in ("knn", "top1", "sgd"):
        np.testing.assert_allclose(one[name], two[name], atol=2.5 / 77)
    assert one["bytes"] == 77 * 27 * 4
    assert two["bytes"] == 40 * 27 * 4  # of process 0: 9 batches of 4 images and one of 4 again


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_collectives_of_a_larger_network_keep_their_order(tmp_path, processes):
    """By XLA's default schedule this network's devices wait for each other in different collectives."""
    settings = {"devices": 0, "total_steps": 3, "batch_size": 128, "data__image_size": 16}
    config = tiny_config(**settings, model__name="resnet18", model__width=0.25, projector__d0=24)
    _, losses = run_processes(tmp_path, config, processes=processes, devices=4 // processes)
    assert len(losses) == 3


@pytest.mark.slow
def test_a_run_goes_on_with_other_processes(tmp_path):
    """8 steps on 2 x 2 devices; from the checkpoint of step 5 on also on 1 x 4 and on 4 x 1: the same losses."""
    settings = {"total_steps": 8, "checkpoint_every_steps": 5, "loss__block_size": "8"}
    config = tiny_config(devices=0, batch_size=64, optimizer__learning_rate=0.1, **settings)
    _, expected = run_processes(tmp_path / "one", config, processes=1, devices=4)
    _, losses = run_processes(tmp_path / "two", config, processes=2, devices=2)
    assert_close(losses, expected)
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "8")
    for processes in (1, 4):
        workdir = shutil.copytree(tmp_path / "two", tmp_path / f"then-{processes}")
        output, losses = run_processes(workdir, config, processes=processes, devices=4 // processes)
        assert "resumed at step 5" in output
        assert_close(losses, expected)


@pytest.mark.slow
def test_processes_agree_on_the_newest_whole_step(tmp_path):
    settings = {"total_steps": 4, "checkpoint_every_steps": 2, "batch_size": 64, "devices": 0}
    config = tiny_config(**settings, optimizer__learning_rate=0.1)
    _, expected = run_processes(tmp_path / "run", config, processes=2)
    shutil.copytree(tmp_path / "run", tmp_path / "none")
    file = tmp_path / "run" / "checkpoints" / "4" / "position" / "metadata"
    flip(file, byte=2)
    output, losses = run_processes(tmp_path / "run", config, processes=2)
    assert "checkpoint 4 is damaged (position/metadata has changed)" in output
    assert "resumed at step 2" in output
    np.testing.assert_array_equal(losses[:2], expected[:2])
    assert_close(losses, expected)
    for step in ("2", "4"):
        (tmp_path / "none" / "checkpoints" / step / "manifest.json").unlink()
    with started_processes(tmp_path / "none", config, processes=2) as started:
        ended = end_of(started, timeout=120)
    assert [process.status for process in ended] == [2, 2]
    assert "is whole: 4 (it has no manifest.json), 2 (it has no manifest.json)" in ended[0].errors
    assert sorted(path.name for path in (tmp_path / "none" / "checkpoints").iterdir() if path.is_dir()) == [
        "2",
        "4",
        "incomplete",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_end_when_a_process_dies(tmp_path, victim):
    with started_processes(tmp_path, tiny_config(**ENDLESS), processes=2) as started:
        wait_for_steps(tmp_path, started, 2)
        started[victim].kill()
        survivor = end_of(started, timeout=60)[1 - victim]
    assert re.search("another task died|computation of all processes failed", survivor.errors)
    assert survivor.status in (1, -signal.SIGABRT)


@pytest.mark.slow
def test_the_others_end_when_a_process_hangs(tmp_path):
    with started_processes(tmp_path, tiny_config(**ENDLESS), "--heartbeat_timeout_seconds=5", processes=2) as started:
        wait_for_steps(tmp_path, started, 2)
        started[1].send_signal(signal.SIGSTOP)
        (survivor,) = end_of(started[:1], timeout=60)
    assert "stopped sending heartbeats" in survivor.errors
    assert survivor.status == -signal.SIGABRT


@pytest.mark.slow
def test_the_others_end_when_a_process_fails(tmp_path):
    with started_processes(tmp_path, tiny_config(**ENDLESS), module="failing_main", processes=2) as started:
        failed, survivor = end_of(started, timeout=300)
    assert failed.status == 1
    assert "OSError: the disk has gone" in failed.errors
    assert "dcjax: process 0 of 2 failed as shown above, and the others end with it" in failed.errors
    assert survivor.status in (1, -signal.SIGABRT)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path, number):
    with started_processes(tmp_path, tiny_config(**ENDLESS), processes=2) as started:
        wait_for_steps(tmp_path, started, 2)
        started[1].send_signal(number)
        if number == signal.SIGTERM:  # a scheduler signals all, though not at the same moment
            time.sleep(1)
            started[0].send_signal(number)
        ended = end_of(started, timeout=120)
    assert [process.status for process in ended] == [1, 1]
    lines = {line for process in ended for line in process.errors.splitlines() if "dcjax: stopped at step" in line}
    (step,) = {line.split()[4] for line in lines}
    assert (tmp_path / "checkpoints" / step).is_dir()


def test_every_process_answers_a_mistake(tmp_path):
    with started_processes(tmp_path, tiny_config(**(ENDLESS | {"batch_size": 63})), processes=2) as started:
        ended = end_of(started, timeout=120)
    for process in ended:
        assert process.status == 2
        assert "dcjax: batch_size must be a multiple of the 4 device(s), e.g. 60 or 64; found 63" in process.errors


def test_a_cluster_that_is_not_there(tmp_path):
    with pytest.raises(SettingError, match=r"could not be joined .*--coordinator_address=HOST:PORT"):
        main(["--config=configs/quickstart.py", f"--workdir={tmp_path}", "--distributed"])


def test_flags_of_a_cluster_belong_together(tmp_path):
    with pytest.raises(SettingError, match="belong together"):
        main(["--config=configs/quickstart.py", f"--workdir={tmp_path}", "--num_processes=2", "--process_id=1"])


def test_a_heartbeat_takes_time(tmp_path):
    with pytest.raises(SettingError, match="--heartbeat_timeout_seconds must be at least 1, found 0"):
        main(["--config=configs/quickstart.py", f"--workdir={tmp_path}", "--heartbeat_timeout_seconds=0"])


@pytest.mark.parametrize("address", ["", "host", ":80", "host:", "host:port", "host:0", "host:65536"])
def test_an_address_has_a_host_and_a_port(tmp_path, address):
    flags = [f"--coordinator_address={address}", "--num_processes=2", "--process_id=1"]
    with pytest.raises(SettingError, match=rf"must be HOST:PORT, e.g. 10.0.0.1:1234, found '{address}'"):
        main(["--config=configs/quickstart.py", f"--workdir={tmp_path}", *flags])
