"""The figures that train no encoder, the search for learning rates, and the benchmark of the training step."""

import dataclasses
import json
import math
import subprocess
import sys

import jax
import matplotlib.image
import numpy as np
import pytest
from helpers import as_flags, tiny_config, write_images

from dcjax.runtime.errors import InterruptedRunError, SettingError
from dcjax.toy.statements.claims import Report, vanishes
from dcjax.toy.statements.plot import Curve, Panel
from experiments import diagnosis, figure1, figures3_to_6, learning_rate
from experiments.benchmarks import step as step_benchmark
from experiments.records import RESULTS, write_result
from experiments.run import Job, run_config
from experiments.scales import SCALES


def check_figure1(found, *, gone):
    """Of the standard deviations along the principal axes: all of a size, one gone beside the others, all gone."""
    full, dimensional, complete = (np.array(found[name]) for name, _, _ in figure1.KINDS)
    assert full[-1] > 0.5 * full[0]
    assert dimensional[1] > 0.5 * dimensional[0]
    assert dimensional[2] < gone * dimensional[0]
    assert complete[0] < gone * full[0]


def test_figure_1_shows_three_kinds_of_collapse(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figure1, "STEPS", 500)
    monkeypatch.setattr(figure1, "SAMPLES", 64)
    figure1.main([f"--results={tmp_path}"])
    check_figure1(json.loads((tmp_path / "figure1.json").read_text()), gone=0.05)
    image = matplotlib.image.imread(tmp_path / "figure1.png")[..., :3]
    assert 0.01 < np.mean(image.min(axis=-1) < 0.9) < 0.5
    assert "dimensional collapse: standard deviations" in capsys.readouterr().out


def test_the_committed_figure_1_shows_them_too():
    check_figure1(json.loads((RESULTS / "figure1.json").read_text()), gone=1e-6)


def test_figures_3_to_6_are_four_statements_of_the_toy_models(tmp_path, monkeypatch):
    """Statements of one claim each, in place of those that take a minute."""
    asked = []

    def statement_named(name):
        asked.append(name)

        def statement(*, seed=0):
            check = vanishes("nothing", [0.0], double=1e-2, single=1e-2)
            return Report("title", "statement", [check], [], [Panel([Curve([2.0, 1.0])], "x", "y")])

        return statement

    before = jax.config.jax_enable_x64
    monkeypatch.setattr("dcjax.toy.__main__._function", statement_named)
    try:
        figures3_to_6.main([f"--out={tmp_path / 'toy'}"])
    finally:
        jax.config.update("jax_enable_x64", before)  # the command sets it for its process
    assert len(asked) == 4
    for number in (3, 4, 5, 6):
        assert json.loads((tmp_path / f"toy/figure_{number}.json").read_text())["holds"]
        assert (tmp_path / f"toy/figure_{number}.png").exists()


@pytest.mark.parametrize("number", [3, 4, 5, 6])
def test_the_committed_toy_figures_hold(number):
    assert json.loads((RESULTS / f"toy/figure_{number}.json").read_text())["holds"]


@pytest.fixture
def search(tmp_path, monkeypatch):
    """The search's command with pretended runs, of which the best rate is 3; what was run."""
    scale = dataclasses.replace(SCALES["laptop"], images_per_class=(2, 1))
    monkeypatch.setitem(SCALES, "laptop", scale)
    for split in ("train", "test"):
        for label in "ab":
            write_images(tmp_path / "images" / split / label, 3)
    started = []

    def pretend(argv, **_):
        row = next(flag.removeprefix("--row=") for flag in argv if flag.startswith("--row="))
        changes = dict(flag.removeprefix("--change=").split("=") for flag in argv if flag.startswith("--change="))
        started.append((row, changes))
        rate = float(changes["optimizer.learning_rate"])
        if (row, rate) in fails:
            return subprocess.CompletedProcess(argv, 2)
        (job,) = (
            job
            for job in learning_rate.jobs_of("laptop", [row])
            if dict(job.changes)["optimizer.learning_rate"] == rate
        )
        part = {"top1": 0.5 - 0.1 * abs(math.log2(rate / 3)), "converged": True}
        write_result(job.file(tmp_path), {
            "format": 1, "config": run_config(job.config()), "data": "d", "code": "c", "platform": "cpu",
            "loss": [2.0, 1.0], "scores": {"r": part}, "spectra": {},
        })  # fmt: skip
        return subprocess.CompletedProcess(argv, 0)

    fails = set()
    monkeypatch.setattr(subprocess, "run", pretend)

    def command(*flags, failing=()):
        fails.update(failing)
        data = f"--data={tmp_path / 'images'}"
        learning_rate.main([*flags, data, f"--results={tmp_path}", f"--work={tmp_path / 'work'}"])
        return started

    return command


def test_the_search_compares_three_rates_on_held_out_images(search, tmp_path):
    started = search("--rows", "direct", "mlp")
    assert [(row, float(changes["optimizer.learning_rate"])) for row, changes in started] == [
        (row, rate) for row in ("direct", "mlp") for rate in learning_rate.RATES["laptop"]
    ]
    assert all(changes["data.test_split"] == "held_out" for _, changes in started)
    table = json.loads((tmp_path / "learning_rate.json").read_text())
    assert table == {row: {"1.5": 40.0, "3": 50.0, "6": 40.0} for row in ("direct", "mlp")}
    lines = (tmp_path / "learning_rate.md").read_text().splitlines()
    assert "| DirectCLR | 40.0 | 50.0 | 40.0 |  |" in lines


def test_the_search_goes_beyond_an_end_that_was_the_best(search, tmp_path):
    started = search("--rows", "none")
    assert [float(changes["optimizer.learning_rate"]) for _, changes in started] == [1.5, 3, 6, 12]
    assert "12" in json.loads((tmp_path / "learning_rate.json").read_text())["none"]


def test_the_search_goes_on_where_a_run_failed(search, tmp_path):
    with pytest.raises(InterruptedRunError, match="1 of 4 runs are missing"):
        search("--rows", "none", failing=[("none", 6.0)])
    assert "6" not in json.loads((tmp_path / "learning_rate.json").read_text())["none"]


def test_the_search_needs_a_scale_that_holds_images_out(tmp_path):
    with pytest.raises(SettingError, match="must be laptop, which holds images out, found digits"):
        learning_rate.main(["--scale=digits", f"--results={tmp_path}"])


def test_every_run_of_the_search_has_a_config_of_its_own():
    jobs = learning_rate.jobs_of("laptop", learning_rate.CHOSEN_FOR)
    assert len({job.file() for job in jobs}) == len(jobs) == 26
    for job in jobs:
        assert job.config().data.test_split == "held_out"
        assert job.config().optimizer.learning_rate in learning_rate.rates_of("laptop", job.row)
        assert job.file() != Job("laptop", job.row, 0).file()


def test_the_step_is_timed(monkeypatch, capsys, tmp_path):
    flags = ["--batch_size=8", "--steps=2", "--repeats=2", f"--profile={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["step", *as_flags(tiny_config(batch_size=16)), *flags])
    step_benchmark.main()
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["batch_size"], line["size"], line["devices"], line["dtype"]) == (8, 8, 1, "float32")
    assert line["config"] == "configs/quickstart.py"
    assert line["pairs_per_second"] == pytest.approx(8000 / line["step_ms"], rel=0.05)
    assert 0.3 * math.log(8) < line["loss"] < 3 * math.log(8)
    assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.slow
def test_the_parts_of_the_step_and_its_peers_are_timed(monkeypatch, capsys):
    pytest.importorskip("torch")
    settings = {"model.name": "resnet18", "model.width": 0.125, "projector.d0": 16, "data.image_size": 32}
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    argv = ["step", "--config=configs/directclr.py:cifar10", *flags, "--batch_size=8", "--steps=1", "--repeats=1"]
    monkeypatch.setattr(sys, "argv", [*argv, "--parts", "--peers", "flax_conv", "torch"])
    step_benchmark.main()  # raises where a peer finds another loss
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["what"] for line in lines] == [
        "step", "augmentation", "given views", "forward", "forward and backward", "optimiser", "flax_conv",
        "torch, channels last", "torch, channels first",
    ]  # fmt: skip
    assert all(line["step_ms"] > 0 for line in lines)


def test_the_diagnosis_finds_every_kind_in_every_precision(tmp_path, capsys):
    diagnosis.main([f"--results={tmp_path}"])
    found = json.loads((tmp_path / "diagnosis.json").read_text())["by_hand"]
    assert len(found) == 9
    for name, verdict in found.items():
        kind = {"no collapse": "none", "dimensional collapse": "dimensional", "complete collapse": "complete"}
        assert verdict["verdict"] == kind[name.split(", ")[0]], name
    assert found == json.loads((RESULTS / "diagnosis.json").read_text())["by_hand"]
    assert (tmp_path / "diagnosis.png").exists()
    assert "| dimensional collapse, float16 | dimensional | 16 |" in capsys.readouterr().out
