"""The forecast's experiment: tiny toy models, and made-up arrays in place of trained encoders."""

import json

import numpy as np
import pytest
from scipy import stats

from experiments import forecast, forecast_images, forecast_toy
from experiments.forecast_images import FORECASTS, OUTCOMES, ImageRun
from experiments.records import RESULTS


def test_strong_noise_is_named_and_collapses(tmp_path, monkeypatch, capsys):
    settings = dict(list(forecast_toy.SETTINGS.items())[:2])  # a program each
    for name, value in (("AMPLITUDES", (8.0,)), ("PAIRS", 512), ("ONE_BATCH", 512), ("SETTINGS", settings)):
        monkeypatch.setattr(forecast_toy, name, value)
    forecast.main(["--part=toy", "--seeds=2", "--steps=60", f"--results={tmp_path}"])
    found = json.loads((tmp_path / "forecast.json").read_text())["toy"]
    rows = {(row["setting"], row["naming"]): row for row in found["rows"]}
    assert len(rows) == 2 * 4 - 1  # eq. 2 has no directions that last
    for naming in ("rates", "unused rates", "noise share"):
        row = rows["eq. 2, noise on one view", naming]
        assert (row["named"][0], row["collapsed"][0], row["seeds"]) == (8, 8, 2)
        assert min(row["precision"][0], row["recall"][0]) > 0.98
    assert "| eq. 2, noise on one view | 8 | 8.0 ± 0.0 |" in capsys.readouterr().out
    assert (tmp_path / "forecast.png").exists()


def test_precision_and_recall_do_not_depend_on_the_basis():
    named, gone = np.eye(4)[:, :2], np.eye(4)[:, 1:]
    assert forecast_toy.overlap(named, gone) == (0.5, 1 / 3)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    np.testing.assert_allclose(forecast_toy.overlap(named, gone @ rotation), (0.5, 1 / 3))
    assert forecast_toy.overlap(np.zeros((4, 0)), gone) == (None, 0.0)
    assert forecast_toy.overlap(named, np.zeros((4, 0))) == (0.0, None)


def test_runs_are_ranked(tmp_path, monkeypatch, capsys):
    """Encoders whose views and final r have fewer directions the stronger the augmentation is."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(forecast_images, "SEEDS", 1)
    runs = forecast_images.all_runs()
    assert len({run.name for run in runs}) == len(runs) == 10
    for run in runs:
        x = rng.normal(size=(240, 6)).astype(np.float32)
        arrays = {"r_20": x, "r_prime_20": x + run.amplitude * rng.normal(size=x.shape), "losses": np.array([2.0, 1.0])}
        scale = 0.1 ** np.linspace(0, 4 * run.amplitude, 6)
        np.savez(tmp_path / f"{run.name}.npz", **arrays, w_20=np.eye(4, 6), r=x * scale, z=x * scale)
    forecast.main(["--part=images", "--runs=0", f"--work={tmp_path}", f"--results={tmp_path}"])
    found = json.loads((tmp_path / "forecast.json").read_text())["images"]["runs"]
    assert [set(run["forecasts"]["20"]) for run in found] == [set(FORECASTS)] * 10
    assert [set(run["outcomes"]) for run in found] == [set(OUTCOMES)] * 10
    shown = capsys.readouterr().out
    assert "Projector none, 5 runs" in shown
    assert "| baseline: noise share | 20 |" in shown
    line = next(line for line in shown.splitlines() if line.startswith("| baseline: noise share | 20"))
    assert line.split(" | ")[4].startswith("1.00")


def test_spearmans_rho_and_its_interval():
    rng = np.random.default_rng(0)
    predicted, outcome = rng.integers(0, 5, 15), rng.normal(size=15)
    rho, low, high = forecast_images.rank_correlation(predicted, outcome)
    assert rho == pytest.approx(stats.spearmanr(predicted, outcome).statistic)
    assert low < rho < high
    assert np.isnan(forecast_images.rank_correlation([1.0] * 5, [1.0, 2, 3, 4, 5])).all()


def test_a_run_that_is_done_is_not_repeated(tmp_path, monkeypatch):
    started = []

    def start(command, *, env, check):
        name = command[3].removeprefix("--train=")
        started.append((name, env["OMP_NUM_THREADS"]))
        (tmp_path / f"{name}.npz").touch()

    monkeypatch.setattr(forecast.subprocess, "run", start)
    monkeypatch.setattr(forecast_images, "measured", lambda work: [])
    monkeypatch.setattr(forecast, "commit", lambda: "abc")
    flags = ["--part=images", f"--work={tmp_path}", f"--results={tmp_path}"]
    forecast.main([*flags, "--runs=2"])
    forecast.main([*flags, "--runs=1"])
    assert started == [("none_0_0", "1"), ("none_0.25_0", "1"), ("none_0.5_0", "1")]


def test_the_augmentation_grows_with_the_amplitude():
    weak, strong = (ImageRun("linear", a, 0).config() for a in (0.0, 1.0))
    assert weak.augment.crop_scale == (1.0, 1.0)
    assert strong.augment.crop_scale == pytest.approx((0.1, 1.0))
    assert (weak.augment.brightness, strong.augment.contrast) == (0, 0.8)
    assert weak.projector.name == "linear"


@pytest.mark.slow
def test_a_run_leaves_its_early_views(tmp_path):
    run = ImageRun("linear", 0.5, 0)
    forecast_images.train(run, tmp_path / f"{run.name}.npz", early=(0, 1), total_steps=2)
    with np.load(tmp_path / f"{run.name}.npz") as arrays:
        assert arrays["r_0"].shape == arrays["r_prime_1"].shape == arrays["r"].shape == (360, 64)
        assert arrays["w_1"].shape == (32, 64)
        assert np.abs(arrays["r_0"] - arrays["r_prime_0"]).max() > 0
        np.testing.assert_allclose(arrays["r"] @ arrays["w_views"].T, arrays["z"], rtol=1e-3, atol=1e-3)
    (found,) = forecast_images.measured(tmp_path)
    assert found["loss"][0] > 3


def test_the_committed_toy_models_collapse_as_forecast():
    """Away from the threshold: eq. 2 by its rates, InfoNCE by the directions that last."""
    rows = json.loads((RESULTS / "forecast.json").read_text())["toy"]["rows"]
    near = {"eq. 2, noise on one view": (0.75, 1.25), "InfoNCE, noise on one view": (2,)}
    near["InfoNCE, noise on both views"] = (1, 1.25)
    for row in rows:
        low, high = min(near[row["setting"]]), max(near[row["setting"]])
        if row["naming"] == ("rates" if row["setting"].startswith("eq. 2") else "lasting"):
            assert row["seeds"] == 10
            if not low <= row["amplitude"] <= high:
                assert row["named"][0] == row["collapsed"][0], row
                assert row["named"][0] == 0 or min(row["precision"][0], row["recall"][0]) > 0.99
