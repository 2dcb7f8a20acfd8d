"""The quickstart, as a newcomer runs it."""

import json
import subprocess
import sys

import pytest
from helpers import new_process


@pytest.mark.slow
def test_the_representation_beats_raw_pixels_with_ten_labels_of_each_class(tmp_path):
    command = [sys.executable, "-m", "dcjax.main", "--config=configs/quickstart.py"]
    done = subprocess.run(command, cwd=tmp_path, env=new_process(optimised=True), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "runs" / "quickstart" / "probe.json").read_text())["scores"]
    assert list(scores) == ["r", "r[:16]", "r[16:]", "raw pixels", "untrained encoder"]
    assert all(row["converged"] for row in scores.values())
    assert scores["r"]["few_label"] > scores["raw pixels"]["few_label"] + 0.02
    assert scores["r"]["few_label"] > scores["untrained encoder"]["few_label"] + 0.2
    assert "spectrum.png" in done.stdout
