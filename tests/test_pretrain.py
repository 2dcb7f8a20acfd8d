"""The training loop, end to end on tiny networks."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import as_flags, tiny_config, write_images

from dcjax import monitor
from dcjax import pretrain as loop
from dcjax.checkpoint import Checkpointer
from dcjax.data.loader import epoch_order
from dcjax.errors import SettingError
from dcjax.experiment import build
from dcjax.losses import LOSSES
from dcjax.mesh import make_mesh, replicated
from dcjax.metrics_writer import MetricsWriter, read_metrics
from dcjax.pretrain import pretrain
from dcjax.streams import Stream, host_seed

pytestmark = pytest.mark.usefixtures("quick_compiles")

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory):
    """A finished run of 4 steps: its folder and its state."""
    workdir = tmp_path_factory.mktemp("runs") / "four"
    return workdir, pretrain(tiny_config(), workdir)


def saved_state(workdir, step, like):
    checkpointer = Checkpointer(workdir)
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like)
    state = checkpointer.restore_state(step, template)
    checkpointer.close()
    return state


def assert_identical(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(np.testing.assert_array_equal, one, two)


def run(workdir, config, *, program="from dcjax.main import main; cli.run(main)"):
    """Runs `dcjax.main` in a new process with one device."""
    argv = [*as_flags(config), f"--workdir={workdir}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    code = f"import sys; sys.argv = ['dcjax', *{argv!r}]\nfrom dcjax import cli\n{program}"
    return subprocess.run([sys.executable, "-c", code], env=env, cwd=workdir.parent, capture_output=True, text=True)


def test_a_run_leaves_what_the_readme_promises(four_steps):
    workdir, state = four_steps
    assert int(state.step) == 4
    assert json.loads((workdir / "config.json").read_text())["batch_size"] == 16
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()) == ["2", "4"]
    assert list((workdir / "tensorboard").glob("events*"))
    rows = read_metrics(workdir)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0].keys() == {
        "step", "loss", "online_loss", "online_accuracy", "gradient_norm", "parameter_norm", "statistics_norm",
        "learning_rate", "images_per_second",
    }  # fmt: skip
    assert rows[0]["learning_rate"] == 0
    assert rows[1]["learning_rate"] == 1.5
    spectra = np.load(workdir / "spectrum.npz")
    shapes = {"r": (32,), "r_unit": (32,), "z": (8,), "z_unit": (8,)}
    assert {name: spectra[name].shape for name in spectra} == shapes | {f"ln_{k}": v for k, v in shapes.items()}
    assert (np.diff(spectra["r"]) <= 0).all()
    np.testing.assert_allclose(np.exp(spectra["ln_r"]), spectra["r"])
    assert (workdir / "spectrum.png").stat().st_size > 10_000
    assert not list(workdir.glob("*.partial"))


def test_a_stopped_run_goes_on_bit_for_bit_in_a_new_process(four_steps, tmp_path):
    """SIGTERM after 2 of 4 steps, then the same command: the same parameters, optimiser, losses and next batch."""
    workdir, expected = tmp_path / "stopped", four_steps[1]
    stop_at_2 = """
import os, signal
from dcjax.monitor import Monitor
push = Monitor.push
def push_and_stop(self, step, metrics):
    push(self, step, metrics)
    if step == 2:
        os.kill(os.getpid(), signal.SIGTERM)
Monitor.push = push_and_stop
from dcjax.main import main
cli.run(main)
"""
    config = tiny_config(checkpoint_every_steps=100)
    first = run(workdir, config, program=stop_at_2)
    assert first.returncode == 1, first.stderr
    assert "stopped at step 2 of 4; the same command goes on" in first.stderr
    second = run(workdir, config)
    assert second.returncode == 0, second.stderr
    assert "resumed at step 2" in second.stdout

    # The checkpoint of step 2 of the run that was not stopped was written while its steps 3 and 4 were computed.
    assert_identical(saved_state(workdir, 2, expected), saved_state(four_steps[0], 2, expected))
    resumed = saved_state(workdir, 4, expected)
    assert_identical(resumed, saved_state(four_steps[0], 4, expected))
    assert_identical(resumed, expected)
    losses = [[row["loss"] for row in read_metrics(folder)] for folder in (workdir, four_steps[0])]
    assert losses[0] == losses[1]

    checkpointer = Checkpointer(workdir)
    position, _ = checkpointer.restore_record(4)
    checkpointer.close()
    experiment = build(config)
    assert position == {"step": 4, "batch_size": 16, "seed": 0, "data": experiment.train_source.fingerprint}
    batches = [
        experiment.train_batches(experiment.train_source, batch_size=16, views=2, stream=Stream.ORDER) for _ in range(2)
    ]
    batches[0].seek(position["step"])
    for _ in range(4):
        next(batches[1])
    assert_identical(next(batches[0]), next(batches[1]))
    for loader in batches:
        loader.close()


def test_one_and_eight_devices_give_the_same_losses(tmp_path):
    """The global batch, its BatchNorm statistics and its augmentations do not know how many devices hold them.

    At 16 px and a moderate rate a run is well conditioned: rounding errors stay of their size. (At 8 px with the MLP
    head one unit in the last place of the parameters grows to 0.03 in five steps, on a single device.)
    """
    settings = {"total_steps": 5, "batch_size": 64, "data__image_size": 16, "projector__d0": 16}
    settings |= {"optimizer__learning_rate": 0.5, "optimizer__warmup_steps": 4}
    losses = {}
    for devices in (1, 8):
        workdir = tmp_path / str(devices)
        pretrain(tiny_config(devices=devices, **settings), workdir)
        losses[devices] = [row["loss"] for row in read_metrics(workdir)]
    np.testing.assert_allclose(losses[1], losses[8], atol=1e-5, rtol=0)
    assert len(set(losses[1])) == 5


def test_bfloat16_compute_is_close_to_float32_and_keeps_float32_state(four_steps, tmp_path):
    state = pretrain(tiny_config(total_steps=1, optimizer__warmup_steps=0, model__dtype="bfloat16"), tmp_path / "run")
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.batch_stats))} == {np.dtype("float32")}
    wide, narrow = read_metrics(four_steps[0])[0], read_metrics(tmp_path / "run")[0]
    # bfloat16 has 8 bits: 0.4 % a rounding, some tens of layers deep
    assert narrow["loss"] == pytest.approx(wide["loss"], rel=0.05)
    assert narrow["gradient_norm"] == pytest.approx(wide["gradient_norm"], rel=0.2)


def test_images_without_labels_train_without_a_classifier(tmp_path):
    write_images(tmp_path / "flat", 20)
    config = tiny_config(total_steps=1, data__name="folder", data__dir=str(tmp_path / "flat"))
    state = pretrain(config, tmp_path / "run")
    assert "classifier" not in state.params
    assert "online_loss" not in read_metrics(tmp_path / "run")[0]
    assert "r" in np.load(tmp_path / "run" / "spectrum.npz")


def test_fixed_matrices_are_saved_and_never_trained(tmp_path):
    config = tiny_config(total_steps=2, projector__name="low_rank")
    trained = pretrain(config, tmp_path / "run")
    untrained = pretrain(tiny_config(total_steps=1, projector__name="low_rank"), tmp_path / "other")
    assert_identical(trained.constants, untrained.constants)
    assert_identical(saved_state(tmp_path / "run", 2, trained).constants, trained.constants)


def test_a_loss_that_is_not_finite_stops_with_its_step_and_keeps_the_last_checkpoint(tmp_path):
    config = tiny_config(total_steps=6, checkpoint_every_steps=1, optimizer__learning_rate=1e38)
    with pytest.raises(SettingError, match=r"\w+ is (nan|inf) at step [2-6]; .*learning_rate"):
        pretrain(config, tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert all(np.isfinite(row["loss"]) for row in rows)
    checkpointer = Checkpointer(tmp_path / "run")
    step = checkpointer.latest_step()
    assert step == rows[-1]["step"]
    saved = checkpointer.restore_saved(step, replicated(make_mesh(1)))
    checkpointer.close()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved))


def test_the_same_command_on_a_finished_run_changes_nothing(four_steps):
    workdir, state = four_steps
    before = (workdir / "metrics.jsonl").read_text()
    assert_identical(pretrain(tiny_config(), workdir), state)
    assert (workdir / "metrics.jsonl").read_text() == before


def test_another_config_is_refused_with_the_differing_keys(four_steps):
    workdir, _ = four_steps
    with pytest.raises(SettingError, match=r"seed \(0 in the checkpoint, 1 now\)"):
        pretrain(tiny_config(seed=1), workdir)
    assert json.loads((workdir / "config.json").read_text())["seed"] == 0


def test_other_images_are_refused(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        for label in "xy":
            write_images(tmp_path / name / label / ("more" if seed else ""), 12)
    settings = {"data__name": "folder", "data__test_split": "", "total_steps": 1, "batch_size": 8}
    pretrain(tiny_config(**settings, data__dir=str(tmp_path / "a")), tmp_path / "run")
    with pytest.raises(SettingError, match=r"data.dir .* holds other images"):
        pretrain(tiny_config(**settings, data__dir=str(tmp_path / "b")), tmp_path / "run")


def test_an_interrupted_write_is_not_mistaken_for_a_checkpoint(four_steps, tmp_path):
    workdir = tmp_path / "run"
    pretrain(tiny_config(total_steps=2), workdir)
    unfinished = workdir / "checkpoints" / "3.orbax-checkpoint-tmp"
    (unfinished / "state").mkdir(parents=True)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # a line that was cut short
    pretrain(tiny_config(total_steps=3), workdir)
    assert not unfinished.exists()
    assert [row["step"] for row in read_metrics(workdir)] == [1, 2, 3]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(tmp_path):
    """SIGKILL, which nothing can prepare for, at four moments; images of many sizes, so that the host crops them."""
    for k, label in enumerate("xy"):
        for size in (9, 12, 17, 24):
            write_images(tmp_path / "data" / label / str(size), 7, size=size, seed=k + size)
    settings = {"data__name": "folder", "data__dir": str(tmp_path / "data"), "data__test_split": ""}
    config = tiny_config(**settings, data__stored_size=0, batch_size=8, total_steps=60, checkpoint_every_steps=1)
    expected = pretrain(config, tmp_path / "whole")
    killed = """
import os, signal, threading
from dcjax.monitor import Monitor
push = Monitor.push
def push_and_wait(self, step, metrics):
    push(self, step, metrics)
    Monitor.push = push
    threading.Timer({delay}, os.kill, (os.getpid(), signal.SIGKILL)).start()
Monitor.push = push_and_wait
from dcjax.main import main
cli.run(main)
"""
    workdir, reached = tmp_path / "killed", []
    for delay in (0.0, 0.1, 0.23, 0.4):
        process = run(workdir, config, program=killed.format(delay=delay))
        assert process.returncode == -signal.SIGKILL, process.stderr
        reached.append(len(read_metrics(workdir)) if workdir.joinpath("metrics.jsonl").exists() else 0)
    assert 0 < reached[-1] < 60
    process = run(workdir, config)
    assert process.returncode == 0, process.stderr
    assert_identical(saved_state(workdir, 60, expected), expected)
    losses = [[row["loss"] for row in read_metrics(folder)] for folder in (workdir, tmp_path / "whole")]
    assert losses[0] == losses[1]


def test_a_damaged_checkpoint_is_named(tmp_path):
    workdir = tmp_path / "run"
    pretrain(tiny_config(total_steps=2, checkpoint_every_steps=1), workdir)
    for file in (workdir / "checkpoints" / "2" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(SettingError, match=r"checkpoints/2 cannot be read .*; .* move it away to resume from step 1"):
        pretrain(tiny_config(total_steps=3), workdir)
    assert (workdir / "checkpoints" / "1").is_dir()


def test_an_image_that_does_not_decode_stops_the_run_and_loses_no_step(tmp_path):
    for label in "xy":
        write_images(tmp_path / "data" / label, 20)
    # Of the 40 images the one that stands in the fourth batch of 8.
    label, number = divmod(int(epoch_order(40, host_seed(0, Stream.ORDER), 0)[3 * 8 + 5]), 20)
    bad = tmp_path / "data" / "xy"[label] / f"{number:03d}.png"
    bad.write_bytes(b"not an image")
    data = {"data__name": "folder", "data__dir": str(tmp_path / "data"), "data__test_split": ""}
    config = tiny_config(**data, total_steps=5, batch_size=8, checkpoint_every_steps=100)
    with pytest.raises(SettingError, match=rf"{'xy'[label]}/{number:03d}.png.*decode"):
        pretrain(config, tmp_path / "run")
    checkpointer = Checkpointer(tmp_path / "run")
    assert checkpointer.latest_step() == 3
    checkpointer.close()
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3]


def test_the_host_stays_close_to_the_device(tmp_path):
    """A step's scalars are read when STEPS_IN_FLIGHT later ones were dispatched, not before and not much after."""
    writer = MetricsWriter(tmp_path, first_step=0, total_steps=9, batch_size=1)
    watch = monitor.Monitor(writer, every=3, batch_size=1, first_step=0)
    for step in range(1, 8):
        watch.push(step, {"loss": np.float32(step)} | dict.fromkeys(monitor.GUARDED[1:], np.float32(1)))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3]
    watch.drain()
    watch.flush()
    writer.close()
    rows = read_metrics(tmp_path)
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (3, 2.5), (6, 5.0), (7, 7.0)]


def test_signals_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with monitor.StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reached(0)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_learning_rate_rule_is_what_the_config_says():
    _, schedule = loop.make_optimizer(tiny_config(batch_size=8), total_steps=10, warmup_steps=2)
    assert float(schedule(2)) == tiny_config().optimizer.learning_rate  # whatever the batch size


@pytest.mark.parametrize("devices", [1, 8])
def test_a_tiled_loss_trains_alike(four_steps, tmp_path, devices):
    pretrain(tiny_config(loss__block_size="5", devices=devices, total_steps=2), tmp_path / "run")
    # The gradient's norm tells about the backward pass; parameters move from the second step on.
    for scalar in ("loss", "gradient_norm"):
        found, expected = (
            [row[scalar] for row in read_metrics(folder)][:2] for folder in (tmp_path / "run", four_steps[0])
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("block_size", "batch_size", "expected"),
    [("none", 4096, None), ("auto", 1024, None), ("auto", 1032, {"block_size": None}), ("64", 16, {"block_size": 64})],
)
def test_the_config_chooses_the_tiles(block_size, batch_size, expected):
    mesh = make_mesh(8)
    loss = loop.make_loss(tiny_config(loss__block_size=block_size, batch_size=batch_size), mesh)
    assert loss.func is LOSSES["info_nce"]
    assert loss.keywords == {"temperature": 0.1} | ({} if expected is None else expected | {"mesh": mesh})


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_of_16384_on_eight_devices(tmp_path, name):
    write_images(tmp_path / "images", 16_384)
    data = {
        "data__name": "folder",
        "data__dir": str(tmp_path / "images"),
        "data__test_split": "",
        "data__stored_size": 8,
    }
    settings = {"devices": 8, "batch_size": 16_384, "total_steps": 2, "loss__name": name, **data}
    pretrain(tiny_config(**settings), tmp_path / "run")
    losses = [row["loss"] for row in read_metrics(tmp_path / "run")]
    # The same by other tiles on one device.
    pretrain(tiny_config(**(settings | {"devices": 1, "loss__block_size": "1000"})), tmp_path / "one")
    np.testing.assert_allclose(losses, [row["loss"] for row in read_metrics(tmp_path / "one")], rtol=1e-5)
    assert len(losses) == 2
