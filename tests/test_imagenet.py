"""The ImageNet config on real ImageNet files, from preparation to resumption."""

import pathlib
import subprocess
import sys

import pytest

from dcjax import main
from dcjax.data import prepare
from dcjax.training.metrics import read_metrics

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "unpack").exists(), reason="the real images are not here")
def test_three_steps_and_two_more(tmp_path):
    subprocess.run([sys.executable, str(SHARED / "unpack"), "imagenet_sample", str(tmp_path / "images")], check=True)
    prepare.main([f"--folder={tmp_path / 'images'}", "--name=sample", f"--data_dir={tmp_path}", "--shard_megabytes=10"])
    command = [
        "--config=configs/directclr.py",
        f"--workdir={tmp_path / 'run'}",
        "--config.data.dataset=sample",
        f"--config.data.dir={tmp_path}",
        "--config.data.test_split=",
        "--config.data.threads=2",
        "--config.batch_size=8",
        "--config.devices=1",
        "--config.log_every_steps=1",
        "--config.optimizer.warmup_steps=1",
        "--config.optimizer.learning_rate=0.05",
        "--config.probe.eval_batch_size=16",
    ]
    for steps in (3, 5):
        main.main([*command, f"--config.total_steps={steps}"])
        losses = [row["loss"] for row in read_metrics(tmp_path / "run")]
        assert len(losses) == steps
        assert all(0 < loss < 10 for loss in losses)
    assert (tmp_path / "run" / "spectrum.png").exists()
