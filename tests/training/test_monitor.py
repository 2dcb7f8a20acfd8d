"""The monitor: what it writes, that it changes nothing, and that a resumed run has the same log."""

import concurrent.futures
import json
import os
import shutil

import jax
import numpy as np
import pytest
from helpers import assert_identical, saved_state, tiny_config

from dcjax.collapse import spectrum
from dcjax.components import load_run
from dcjax.losses import LOSSES, chance_loss
from dcjax.pretrain import pretrain
from dcjax.runtime import reading
from dcjax.runtime.errors import SettingError
from dcjax.runtime.mesh import make_mesh, to_devices
from dcjax.training import kept_lines, metrics
from dcjax.training.metrics import SPECTRA_FILE, MetricsWriter, read_lines, read_looks, read_metrics
from dcjax.training.monitor import Monitor, view_batches


def watched(**changes):
    """A run whose looks are at the steps 0, 2 and 4, on two batches of 16 images, with a linear projector."""
    settings = {"monitor__every_steps": 2, "monitor__images": 32, "probe__eval_batch_size": 32}
    return tiny_config(**{**settings, "projector__name": "linear", "log_every_steps": 3, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("monitor") / "run"
    return workdir, pretrain(watched(), workdir)


def test_the_parameters_are_the_same_bit_for_bit_without_a_monitor(run, tmp_path):
    workdir, state = run
    assert_identical(state, pretrain(watched(monitor__every_steps=None), tmp_path / "without"))
    assert not read_looks(tmp_path / "without")
    with_monitor, without = (
        [row["loss"] for row in read_metrics(folder)] for folder in (workdir, tmp_path / "without")
    )
    assert with_monitor == without


def test_a_look_measures_the_views_of_its_step(run):
    """Against the encoder of the saved state, and the measures as users call them."""
    workdir, _ = run
    components, variables, step = load_run(workdir)
    parts = [
        jax.device_get(components.encode_views(variables, to_devices(batch, components.mesh)))
        for batch in components.view_batches(components.test_source, batch_size=16, batches=2)
    ]
    views = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    assert np.abs(views["r"] - views["r_prime"]).max() > 0.01
    last = read_looks(workdir)[-1]
    assert last["step"] == step == 4
    found = last["monitor"]
    # The same program on the same machine, from parameters that were saved exactly; 1e-5 for eigenvalues of float32.
    z, z_prime = views["z"], views["z_prime"]
    assert found["loss"] == pytest.approx(float(LOSSES["info_nce"](z, z_prime, temperature=0.1)), rel=1e-5)
    units, others = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (z, z_prime))
    cosines = units @ others.T
    assert found["z/positive_similarity"] == pytest.approx(np.diag(cosines).mean(), rel=1e-5)
    off = cosines[~np.eye(len(cosines), dtype=bool)]
    assert found["z/negative_similarity"] == pytest.approx(off.mean(), rel=1e-4)
    spectra = read_lines(workdir / SPECTRA_FILE)[-1]
    np.testing.assert_allclose(spectra["r"], spectrum(views["r"], normalize=True), rtol=1e-4, atol=1e-9)
    assert found["r/effective_rank"] == pytest.approx(
        float(np.exp(-sum(p * np.log(p) for p in shares(np.sqrt(spectrum(views["r"])))))), rel=1e-4
    )
    # Theorem 2's matrix, from the saved kernels.
    kernel = np.asarray(variables["params"]["encoder"]["layer1_0"]["conv2"]["kernel"], np.float64).reshape(-1, 32)
    matrix = np.asarray(variables["params"]["projector"]["linear"]["kernel"], np.float64)
    u1, v2 = np.linalg.svd(kernel.T)[0], np.linalg.svd(matrix.T)[2]
    assert found["projector/alignment"] == pytest.approx(np.abs(np.diag(v2[:8] @ u1[:, :8])).mean(), rel=1e-4)


def shares(values):
    return values[values > 0] / values.sum()


def test_the_log_holds_looks_between_the_averages(run):
    workdir, _ = run
    rows = read_lines(workdir / "metrics.jsonl")
    order = [(row["step"], "monitor" in row) for row in rows]
    assert order == [(0, True), (1, False), (2, True), (3, False), (4, False), (4, True)]
    assert [row["step"] for row in read_metrics(workdir)] == [1, 3, 4]
    assert [row["step"] for row in read_looks(workdir)] == [0, 2, 4]
    look = read_looks(workdir)[1]
    assert look.keys() == {"step", "monitor", "verdict", "signs", "warnings"}
    assert look["monitor"]["chance"] == pytest.approx(np.log(16))
    assert look["monitor"]["loss_chance"] == pytest.approx(np.log(32))
    assert {"r/effective_rank", "z/effective_rank", "z/uniformity", "z/alignment", "projector/overlap"} <= set(
        look["monitor"]
    )
    assert [len(row["r"]) for row in read_lines(workdir / SPECTRA_FILE)] == [32, 32, 32]
    parts = [name for name in read_metrics(workdir)[0] if name.startswith("gradient_norm/")]
    squares = [read_metrics(workdir)[0][name] ** 2 for name in parts]
    assert {"gradient_norm/projector", "gradient_norm/encoder/layer1"} <= set(parts)
    # float32 sums of squares, in another order
    assert sum(squares) == pytest.approx(read_metrics(workdir)[0]["gradient_norm"] ** 2, rel=1e-5)


def test_a_resumed_run_has_the_log_of_one_without_a_stop(run, tmp_path):
    """Stopped after step 3: the look at step 2, where it goes on, and the average of step 3 are written again."""
    workdir, _ = run
    stopped = shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(stopped / "checkpoints" / "4")
    lines = (stopped / "metrics.jsonl").read_text().splitlines(keepends=True)
    (stopped / "metrics.jsonl").write_text("".join(lines[:-1]) + '{"step": 4, "mon')  # a line that was cut short
    state = pretrain(watched(), stopped)
    assert_identical(state, saved_state(workdir, 4, state))
    whole, again = (read_lines(folder / "metrics.jsonl") for folder in (workdir, stopped))
    for row in whole + again:
        row.pop("images_per_second", None)
    assert json.dumps(whole) == json.dumps(again)
    assert read_lines(workdir / SPECTRA_FILE) == read_lines(stopped / SPECTRA_FILE)


def test_a_look_that_fails_costs_no_run(tmp_path):
    """Whatever its thread raises ends up as a warning in the log."""

    def broken(z, z_prime):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    rows = {name: np.ones((4, 2), np.float32) for name in ("r", "r_prime", "z", "z_prime")}
    monitor = Monitor(
        lambda variables, batch: rows,
        lambda: [{"image": np.zeros((4, 1), np.uint8)}],
        make_mesh(1),
        loss=broken,
        chances={"chance": 3.0, "loss_chance": None},
        width=2,
        projector=None,
    )
    found = monitor.look(7, {}).result()
    monitor.close()
    assert (found.step, found.values) == (7, {"chance": 3.0})
    assert "could not be measured (RESOURCE_EXHAUSTED: out of memory)" in found.advice["z"]
    writer = MetricsWriter(tmp_path, first_step=0, kept_step=0, total_steps=9, batch_size=1)
    done = concurrent.futures.Future()
    done.set_result(found)
    writer.expect(7, done)
    writer.close()
    (row,) = read_looks(tmp_path)
    assert row["signs"] == ["unmeasured"]
    assert not (tmp_path / SPECTRA_FILE).read_text()


def test_a_slow_look_keeps_its_place(tmp_path):
    """The log does not depend on how long the thread takes."""
    writer = MetricsWriter(tmp_path, first_step=0, kept_step=0, total_steps=9, batch_size=1)
    with concurrent.futures.ThreadPoolExecutor(1) as worker:
        from dcjax.collapse.monitor import Look

        wait = concurrent.futures.Future()

        def slow():
            wait.result()
            return Look(1, {"r/effective_rank": 1.0})

        writer.expect(1, worker.submit(slow))
        writer.write(1, {"loss": 1.0})
        assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == [1]
        wait.set_result(None)
        writer.write(2, {"loss": 2.0})
        writer.close()
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert [(row["step"], "monitor" in row) for row in rows] == [(1, False), (1, True), (2, False)]


@pytest.mark.parametrize(
    ("images", "wanted", "devices", "expected"),
    [
        (10_000, 0, 1, (128, 4)),  # twice the width of 256
        (360, 0, 1, (128, 2)),
        (300, 0, 8, (256, 1)),
        (100, 0, 1, (100, 1)),
        (100, 0, 8, (96, 1)),
        (10_000, 300, 1, (100, 3)),
        (10_000, 2000, 8, (1000, 2)),
    ],
)
def test_how_many_images_a_look_has(images, wanted, devices, expected):
    width = 256 if images > 1000 else 64
    mesh = make_mesh(devices)
    assert view_batches(images, setting=wanted, width=width, largest=128 * devices, mesh=mesh) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"monitor__every_steps": 0}, "monitor.every_steps must be at least 1 or none, found 0"),
        ({"monitor__images": 361}, "monitor.images must be at most the 360 images that there are, found 361"),
        (
            {"monitor__images": 100, "devices": 8, "batch_size": 16},
            r"monitor.images must be a multiple of the 8 device",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_before_a_folder_is_made(tmp_path, changes, message):
    with pytest.raises(SettingError, match=message):
        pretrain(tiny_config(**({"monitor__every_steps": 1} | changes)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_chance_line_is_the_loss_of_equal_embeddings():
    rows = np.ones((5, 3), np.float32)
    for name, loss in LOSSES.items():
        for temperature in (0.1, 10.0):
            # float32 logits of up to 10 have an error of 1e-6
            assert float(loss(rows, rows, temperature=temperature)) == pytest.approx(chance_loss(name, 5), abs=1e-5)
    assert chance_loss("of my own", 5) is None


def resumed(workdir, step):
    """Opens and closes the logs of a run that resumes at a step, and returns the looks that it remembers."""
    writer = MetricsWriter(workdir, first_step=step, kept_step=step, total_steps=9, batch_size=1)
    looks = writer._history
    writer.close()
    return looks


def test_the_compilation_is_not_in_the_time_left(tmp_path):
    writer = MetricsWriter(tmp_path, first_step=0, kept_step=0, total_steps=100, batch_size=10)
    bar, now = writer._bar, 0.0
    bar._time = lambda: now
    bar.start_t = bar.last_print_t = now
    for seconds in (500.0, *[10.0] * 5):  # the first step is compiled
        now += seconds
        writer.advance()
    shown = str(bar)
    writer.close()
    assert "60.0/1.00k [00:50<15:40, 1.00img/s" in shown


def test_a_resumed_run_keeps_raw_lines_without_parsing_spectra(tmp_path, monkeypatch):
    spectra = [f'{{"step": {step}, "r": [1.0, 0.5], "z": [2e-05]}}\n' for step in range(5)]
    look = '{"step":2, "monitor": {"a": 1}, "signs": []}\n'
    (tmp_path / SPECTRA_FILE).write_text("".join(spectra) + '{"step": 5, "r": [1.0')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1,  "loss": 1}\n[1]\n' + look + '{"step": 4, "loss": 1}\n')
    parsed = []
    parse = kept_lines.parse_json
    monkeypatch.setattr(kept_lines, "parse_json", lambda text: parsed.append(text) or parse(text))
    looks = resumed(tmp_path, 3)
    assert not [text for text in parsed if text.startswith('{"step": ') and text.endswith("]}\n")]
    assert [row["step"] for row in looks] == [2]
    assert (tmp_path / SPECTRA_FILE).read_text() == "".join(spectra[:3])
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1,  "loss": 1}\n' + look


def test_a_log_of_any_size_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "MAX_LOG_BYTES", 10)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n' * 3)
    resumed(tmp_path, 1)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_log_of_too_many_looks_is_set_aside(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kept_lines, "MAX_VALUES", 10)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "monitor": {"a": 1}, "signs": []}\n' * 3)
    assert resumed(tmp_path, 3) == []
    assert "metrics.jsonl cannot be read (its looks have more than 10 values)" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl.unreadable").is_file()


def test_a_log_that_cannot_be_read_is_set_aside(tmp_path, capsys):
    (tmp_path / SPECTRA_FILE).mkdir()
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert resumed(tmp_path, 3) == []
    lines = [line for line in capsys.readouterr().err.splitlines() if "dcjax: " in line]
    assert [line.split()[1] for line in lines] == ["metrics.jsonl", SPECTRA_FILE]
    assert "not a regular file" in lines[0]
    assert (tmp_path / "metrics.jsonl.unreadable").is_fifo()
    assert (tmp_path / f"{SPECTRA_FILE}.unreadable").is_dir()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_lines_are_read_one_after_another(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_LINE", 4)
    (tmp_path / "a").write_bytes(b"a\n" + b"b" * 11 + b"\nabc\nd")
    assert list(reading.raw_lines(tmp_path / "a")) == [b"a\n", b"?\n", b"abc\n", b"d\n"]
    (tmp_path / "a").write_bytes(b"a\n" + b"b" * 11)
    assert list(reading.raw_lines(tmp_path / "a")) == [b"a\n", b"?\n"]
