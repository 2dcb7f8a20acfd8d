"""What a report reads of a run's folder: every format, and every kind of damage."""

import json
import math
import os

import numpy as np
import pytest
from report_runs import write_lines, write_run

from dcjax.collapse.monitor import CHANCE_MARGIN
from dcjax.collapse.ranks import TOLERANCE
from dcjax.collapse.verdict import ALIKE
from dcjax.evaluation.protocol import RESULTS_FILE
from dcjax.losses.contrastive import chance_loss
from dcjax.pretrain import SPECTRUM_FILE
from dcjax.report import lines, record
from dcjax.report.figures import COLLAPSED, mappable, thin
from dcjax.report.finding import LEARNT, POINT, finding
from dcjax.report.record import read_run, read_runs
from dcjax.runtime.errors import SettingError
from dcjax.training.metrics import METRICS_FILE, SPECTRA_FILE


def append(path, text):
    with path.open("a") as file:
        file.write(text)


def message(*folders):
    with pytest.raises(SettingError) as error:
        read_runs([str(folder) for folder in folders])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_names_are_those_of_the_modules_that_write_them():
    assert (record.METRICS_FILE, record.SPECTRA_FILE) == (METRICS_FILE, SPECTRA_FILE)
    assert (record.SPECTRUM_FILE, record.PROBE_FILE) == (SPECTRUM_FILE, RESULTS_FILE)
    assert COLLAPSED == TOLERANCE
    assert (POINT, LEARNT) == (ALIKE**2, 1 - CHANCE_MARGIN)


def test_a_whole_run(tmp_path):
    run = read_run(str(write_run(tmp_path / "run", seed=3, dead=5)))
    assert run.notes == []
    assert run.last_step == 300
    assert run.command is not None
    assert run.command.text.endswith("--config.seed=3")
    assert run.differences == {"seed": (0, 3)}
    assert run.chance == pytest.approx(math.log(128))
    assert list(run.training["loss"].steps[:2]) == [1, 25]
    assert "gradient_norm/encoder.stem" in run.training
    assert run.kinds == {"r": "dimensional", "z": "none"}
    assert len(run.advice) == 1
    assert "5 of its 64" in run.advice[0]
    assert [look.step for look in run.looks][:2] == [1, 25]
    assert run.ended
    assert len(run.final["r"]) == 64
    assert run.probe is not None
    assert run.probe.scores["r"]["few_label_std"] == 0.003
    assert run.probe.unconverged == ("raw pixels",)


def test_a_run_that_has_not_ended_and_was_begun_from_python(tmp_path):
    run = read_run(str(write_run(tmp_path / "run", command=False, monitor=False, end=False)))
    assert run.command is None
    assert run.differences["batch_size"] == (4096, 128)
    assert run.final == {}
    assert run.probe is None
    found = finding(run)
    assert (found.tone, found.short) == ("unknown", "not known")
    assert "dcjax collapse" in found.next[0]


def test_the_verdict_without_a_monitor_is_that_of_the_spectra(tmp_path):
    found = finding(read_run(str(write_run(tmp_path / "run", monitor=False, dead=7))))
    assert found.short == "r: dimensional, z: no collapse"
    assert any("7 of 64 of r, 0 of 16 of z" in reason for reason in found.reasons)
    np.savez(tmp_path / "run" / "spectrum.npz", r_unit=np.zeros(8), z_unit=np.ones(4))
    assert finding(read_run(str(tmp_path / "run"))).short == "r: complete, z: no collapse"


def test_each_loss_has_its_own_chance_line(tmp_path):
    run = read_run(str(write_run(tmp_path / "run", monitor=False, loss__name="nt_xent")))
    assert run.chance == chance_loss("nt_xent", 128) == pytest.approx(math.log(255))
    run = read_run(str(write_run(tmp_path / "other", monitor=False, loss__name="of_my_own")))
    assert run.chance is None
    assert "stays at" not in " ".join(finding(run).reasons)


def test_a_warning_that_was_given_once_stays_the_advice(tmp_path):
    folder = write_run(tmp_path / "run", looks=2)
    rows = [{"step": 40, "monitor": {}, "verdict": {"z": "none"}, "warnings": {"chance": "Try a lower rate"}}]
    rows += [{"step": 50, "monitor": {}, "verdict": {"z": "none"}, "warnings": {}}]
    write_lines(folder / METRICS_FILE, [{"step": 50, "loss": 4.0}, *rows])
    found = finding(read_run(str(folder)))
    assert found.short == "z: no collapse"
    assert found.next == ("Warning at step 40: Try a lower rate",)


def test_a_loss_at_its_chance_line_is_said(tmp_path):
    folder = write_run(tmp_path / "run")
    assert not any("hardly" in reason for reason in finding(read_run(str(folder))).reasons)
    append(folder / METRICS_FILE, '{"step": 301, "loss": 4.85}\n')
    assert any("hardly" in reason for reason in finding(read_run(str(folder))).reasons)


@pytest.mark.parametrize("name", ["metrics.jsonl", "spectra.jsonl"])
def test_a_torn_last_line_is_ignored_and_said(tmp_path, name):
    folder = write_run(tmp_path / "run")
    append(folder / name, '{"step": 325, "loss": 2.')
    run = read_run(str(folder))
    assert run.last_step == 300
    assert run.notes == [f"The last line of {name} is cut short and was ignored."]


def test_damaged_lines_and_values_are_left_out_and_said(tmp_path):
    folder = write_run(tmp_path / "run")
    bad = [
        "{not json}",
        "[1, 2]",
        '{"loss": 1}',
        '{"step": -1}',
        '{"step": true}',
        "\0",
        "[" * 100_000,
        '{"step": 1e999}',
    ]
    text = "\n".join(bad) + "\n" + (folder / METRICS_FILE).read_text()
    (folder / METRICS_FILE).write_text(text)
    values = {"loss": math.nan, "learning_rate": "fast", "gradient_norm": 10**400, "online_accuracy": None}
    append(folder / METRICS_FILE, json.dumps({"step": 310, "parameter_norm": 3.5, **values}) + "\n")
    append(folder / METRICS_FILE, json.dumps({"step": 320, "monitor": [1], "verdict": 3, "warnings": "x"}) + "\n")
    append(folder / METRICS_FILE, json.dumps({"step": 330, "monitor": {"r/rankme": {}}, "warnings": [4, ""]}) + "\n")
    run = read_run(str(folder))
    assert run.training["parameter_norm"].last == 3.5
    assert run.training["loss"].steps[-1] == 300
    assert run.kinds == {"r": "none", "z": "none"}
    notes = "\n".join(run.notes)
    assert "lines 1, 2, 3, 4, 5 and 3 more are no JSON object with a step" in notes
    assert "gradient_norm, learning_rate, loss, online_accuracy; 1 lines, step 310" in notes
    assert "r/rankme" in notes
    assert "1 monitor lines are not objects" in notes


@pytest.mark.parametrize("values", ['"x"', "[]", "[1, null]", '["1"]', "[1e999]", "[true, 1]", "{}", f"[1{'0' * 400}]"])
def test_spectra_that_are_none(tmp_path, values):
    folder = write_run(tmp_path / "run", end=False)
    append(folder / "spectra.jsonl", f'{{"step": 350, "r": {values}, "z": [2, 1]}}\n')
    run = read_run(str(folder))
    assert set(run.looks[-1].spectra) == {"z"}
    assert "1 line(s) hold values that are no finite eigenvalues" in run.notes[0]


def test_a_heat_map_needs_looks_of_one_width(tmp_path):
    run = read_run(str(write_run(tmp_path / "run", looks=2)))
    assert len(mappable(run.looks, "r")) == 3  # and one at the first step
    other = [record.Look(500, {"r": np.ones(7)})]
    assert mappable(run.looks + other, "r") == []
    assert len(mappable(run.looks + other, "z")) == 3


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nonsense", b"\x93NUMPY"])
def test_a_damaged_spectrum_is_left_out(tmp_path, content):
    folder = write_run(tmp_path / "run")
    (folder / "spectrum.npz").write_bytes(content)
    run = read_run(str(folder))
    assert not run.ended
    assert run.final is run.looks[-1].spectra
    assert "spectrum.npz cannot be read" in run.notes[0]


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_nothing_in_a_folder_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_run(tmp_path / "run")
    np.savez(folder / "spectrum.npz", r_unit=np.array([Harmful()], object))
    assert "spectrum.npz cannot be read" in read_run(str(folder)).notes[0]
    assert not (tmp_path / "executed").exists()


def test_damaged_optional_files_are_left_out(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "probe.json").write_text("[")
    (folder / "command.json").write_text("[]")
    run = read_run(str(folder))
    assert run.probe is None
    assert run.command is None
    assert len(run.notes) == 2
    (folder / "probe.json").write_text('{"step": "x", "scores": {"r": {"top1": "high", "knn": 0.5}, "z": 3}}')
    (folder / "command.json").write_text('{"command": "dcjax main", "changes": {"seed": 3, "batch_size": [1, 2]}}')
    run = read_run(str(folder))
    assert run.probe is not None
    assert run.probe.scores == {"r": {"knn": 0.5}}
    assert run.differences == {"batch_size": (1, 2)}


def test_folders_that_are_no_run(tmp_path, monkeypatch):
    assert "is no folder" in message(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "is no run: it has no config.json" in message(tmp_path / "empty")
    folder = write_run(tmp_path / "run")
    (folder / METRICS_FILE).write_text("")
    assert "no line with a loss yet" in message(folder)
    write_lines(folder / METRICS_FILE, [{"step": 1, "monitor": {"r/rankme": 1.0}}])
    assert "no line with a loss yet" in message(folder)
    (folder / METRICS_FILE).unlink()
    assert "has no metrics.jsonl" in message(folder)
    os.mkfifo(folder / METRICS_FILE)
    assert "is not a regular file" in message(folder)
    for damage in ("{", "[]", "{}", "[" * 100_000):
        (folder / "config.json").write_text(damage)
        assert "config.json" in message(folder)


def test_files_are_read_within_a_bound(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run")
    monkeypatch.setattr(lines, "MAX_BYTES", 5000)
    assert "at most 5,000 are read" in message(folder)


def test_runs_that_cannot_be_compared(tmp_path):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", batch_size=64, loss__temperature=0.5)
    assert len(read_runs([str(one), str(two)])) == 2
    assert "are the same run" in message(one, tmp_path / "two" / ".." / "one")
    (tmp_path / "link").symlink_to(one)
    assert "are the same run" in message(one, tmp_path / "link")
    found = message(one, write_run(tmp_path / "three", data__name="tfds"))
    assert "three trains on data.name=tfds data.dataset=imagenet2012" in found
    assert "one on data.name=digits" in found
    assert "a report for each" in found


def test_thinning_keeps_ends_and_peaks():
    values = np.zeros(10_000)
    values[1234], values[-1] = 5, -3
    kept = thin(values, 100)
    assert len(kept) <= 100
    assert {0, 1234, 9999} <= set(kept)
    assert list(thin(values[:7], 100)) == list(range(7))
