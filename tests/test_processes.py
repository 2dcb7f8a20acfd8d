"""Several processes on one machine, as on a cluster."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from helpers import as_flags, tiny_config

from dcjax.errors import SettingError
from dcjax.main import main
from dcjax.metrics_writer import read_metrics

ROOT = pathlib.Path(__file__).parent.parent


def run_processes(count, workdir, config):
    """Runs `dcjax.main` as `count` processes of two devices each; returns what the first printed."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for process in range(count):
        argv = [sys.executable, "-m", "dcjax.main", *as_flags(config), f"--workdir={workdir}"]
        if count > 1:
            argv += [f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={process}"]
        started.append(subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=600) for process in started]
    for process, (_, errors) in zip(started, outputs, strict=True):
        assert process.returncode == 0, errors
    return outputs[0][0]


@pytest.mark.slow
def test_two_processes_train_and_probe_like_one(tmp_path):
    settings = {"devices": 0, "total_steps": 3, "batch_size": 64, "data__image_size": 16, "projector__d0": 16}
    config = tiny_config(**settings, optimizer__learning_rate=0.5, probe__after_training=True)
    tables = {count: run_processes(count, tmp_path / str(count), config) for count in (1, 2)}
    losses = {count: [row["loss"] for row in read_metrics(tmp_path / str(count))] for count in (1, 2)}
    np.testing.assert_allclose(losses[1], losses[2], atol=1e-5)
    rows = [[line for line in table.splitlines() if line.startswith("r ")] for table in tables.values()]
    assert rows[0] == rows[1] != []


def test_a_cluster_that_is_not_there(tmp_path):
    with pytest.raises(SettingError, match=r"could not be joined .*--coordinator_address=HOST:PORT"):
        main(["--config=configs/quickstart.py", f"--workdir={tmp_path}", "--distributed"])


def test_flags_of_a_cluster_belong_together(tmp_path):
    with pytest.raises(SettingError, match="belong together"):
        main(["--config=configs/quickstart.py", f"--workdir={tmp_path}", "--num_processes=2", "--process_id=1"])
