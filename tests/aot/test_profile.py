"""`--profile`: the record of some steps, and the time of their parts."""

import json
import re

import numpy as np
import pytest
from helpers import tiny_config

from dcjax.main import parse_steps
from dcjax.pretrain import pretrain
from dcjax.runtime.errors import SettingError
from dcjax.training.metrics import read_metrics


def test_steps_are_recorded_and_their_parts_summed(tmp_path, capsys):
    config = tiny_config(total_steps=4)
    pretrain(config, tmp_path / "profiled", profile=(2, 3))
    assert list((tmp_path / "profiled" / "profile").rglob("*.xplane.pb"))
    summary = (tmp_path / "profiled" / "profile" / "summary.txt").read_text()
    assert summary in capsys.readouterr().out
    shares = dict(re.findall(r"^  (\S.*?)  +[\d.]+ +([\d.]+)%$", summary, re.MULTILINE))
    for part in ("augmentation", "convolutions, forward", "convolutions, weight gradient", "loss", "optimiser"):
        assert part in shares, summary
    assert sum(map(float, shares.values())) == pytest.approx(100, abs=1)
    # A record changes nothing about the training.
    pretrain(config, tmp_path / "plain")
    losses = [[row["loss"] for row in read_metrics(tmp_path / name)] for name in ("profiled", "plain")]
    np.testing.assert_array_equal(*losses)
    assert json.loads((tmp_path / "plain" / "config.json").read_text())
    with pytest.raises(SettingError, match="--profile must name steps from 5 to 6, found 4:5"):
        pretrain(tiny_config(total_steps=6), tmp_path / "plain", extend=True, profile=(4, 5))


@pytest.mark.parametrize("text", ["3", "5:4", "0:2", "a:b", "-1:3", "2:3:4"])
def test_steps_that_are_none(text):
    with pytest.raises(SettingError, match=f"--profile must be FIRST:LAST, .* found '{text}'"):
        parse_steps(text)


def test_steps_in_order():
    assert parse_steps("20:25") == (20, 25)
