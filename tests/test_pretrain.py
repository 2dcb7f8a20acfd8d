"""The training loop, end to end on tiny networks."""

import dataclasses
import functools
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import as_flags, run_main, tiny_config, write_images

from dcjax import pretrain as loop
from dcjax.components import build
from dcjax.data.loader import epoch_order
from dcjax.losses import LOSSES
from dcjax.models import Network, make_encoder, make_projector
from dcjax.pretrain import pretrain
from dcjax.runtime.errors import SettingError
from dcjax.runtime.mesh import batch_sharding, make_mesh, replicated
from dcjax.runtime.randomness import Stream, host_seed
from dcjax.training import monitor
from dcjax.training.checkpoint import Checkpointer
from dcjax.training.metrics import MetricsWriter, read_metrics
from dcjax.training.state import init_state


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
    shapes = {"r": (32,), "r_unit": (32,), "z": (16,), "z_unit": (16,)}
    assert {name: spectra[name].shape for name in spectra} == shapes | {f"ln_{k}": v for k, v in shapes.items()}
    assert (np.diff(spectra["r"]) <= 0).all()
    np.testing.assert_allclose(np.exp(spectra["ln_r"]), spectra["r"])
    assert (workdir / "spectrum.png").stat().st_size > 10_000
    assert not list(workdir.glob("*.partial"))


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Two runs of 4 steps in new processes of one device: one uninterrupted, one stopped by SIGTERM at step 2.

    The process that is stopped makes the uninterrupted run first, which saves one start.
    """
    folder, config = tmp_path_factory.mktemp("processes"), tiny_config(checkpoint_every_steps=100, log_every_steps=3)
    stop_at_2 = f"""
import os, signal
from dcjax.main import main as uninterrupted
uninterrupted({[*as_flags(config), f"--workdir={folder / 'whole'}"]})
from dcjax.training.monitor import Monitor
push = Monitor.push
def push_and_stop(self, step, metrics):
    push(self, step, metrics)
    if step == 2:
        os.kill(os.getpid(), signal.SIGTERM)
Monitor.push = push_and_stop
"""
    first = run_main(folder / "stopped", config, before=stop_at_2)
    assert first.returncode == 1, first.stderr
    assert "stopped at step 2 of 4; the same command goes on" in first.stderr
    second = run_main(folder / "stopped", config)
    assert second.returncode == 0, second.stderr
    assert "resumed at step 2" in second.stdout
    return folder / "whole", folder / "stopped"


def test_a_stopped_run_goes_on_bit_for_bit_in_a_new_process(processes, four_steps):
    """The same parameters, optimiser state and log, between processes of the same devices and threads."""
    whole, stopped = processes
    states = [saved_state(workdir, 4, four_steps[1]) for workdir in (whole, stopped)]
    assert_identical(*states)
    assert int(states[0].step) == 4
    assert_same_lines(stopped, whole)
    assert [row["step"] for row in read_metrics(whole)] == [1, 3, 4]


def test_the_position_gives_the_next_batch(processes):
    _, workdir = processes
    checkpointer = Checkpointer(workdir)
    (position, _), (at_the_end, _) = (checkpointer.restore_record(step) for step in (2, 4))
    checkpointer.close()
    experiment = build(tiny_config())
    source = experiment.train_source
    assert position.pop("unlogged")["steps"] == 1  # the first step has a line of its own, lines are of 3 steps
    assert position == {"step": 2, "batch_size": 16, "seed": 0, "data": source.fingerprint}
    assert at_the_end["step"] == 4
    crops = {"views": 2, "interpolation": "bicubic"}
    loaders = [experiment.train_batches(source, batch_size=16, stream=Stream.ORDER, **crops) for _ in range(2)]
    loaders[0].seek(position["step"])
    for _ in range(2):
        next(loaders[1])
    assert_identical(next(loaders[0]), next(loaders[1]))
    for loader in loaders:
        loader.close()


def test_one_and_eight_devices_give_the_same_objective_and_gradient(x64):
    """The global batch, its BatchNorm statistics and its loss do not know how many devices hold them.

    An identity, so in double precision and from the same views: between device counts XLA splits sums differently.
    """
    config = tiny_config(projector__name="mlp")
    encoder = make_encoder("one_block", width=0.5, stem="small", dtype=jnp.float64)
    network = Network(encoder, make_projector(width=32, dtype=jnp.float64, **config.projector), classes=10)
    rng = np.random.default_rng(0)
    x, x_prime = rng.normal(size=(2, 16, 8, 8, 3))
    state = init_state(network, optax.identity(), seed=0, image_size=8)
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float64)), state)
    found = {}
    for devices, block_size in ((1, "none"), (8, "none"), (8, "3")):
        mesh, config.loss.block_size = make_mesh(devices), block_size
        objective = loop.make_objective(network, loop.make_loss(config, mesh), seed=0)
        rows = batch_sharding(mesh)
        differentiate = jax.jit(
            jax.value_and_grad(objective, has_aux=True),
            in_shardings=(replicated(mesh), replicated(mesh), rows, rows, rows),
            out_shardings=replicated(mesh),
        )
        labels = np.arange(16, dtype=np.int32) % 10
        found[devices, block_size] = jax.device_get(differentiate(state.params, state, x, x_prime, labels))
    expected = found.pop((1, "none"))
    assert float(expected[0][0]) > 0
    for other in found.values():
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-10), other, expected)


def test_both_views_of_a_step_take_the_same_random_entries():
    config = tiny_config(projector__name="random_subset")
    encoder = make_encoder("one_block", width=0.5, stem="small")
    network = Network(encoder, make_projector(width=32, **config.projector), classes=0)
    state = init_state(network, optax.identity(), seed=0, image_size=8)
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    seen = []

    def watch(z, z_prime):
        seen.append(z)
        return jnp.abs(z - z_prime).max()

    objective = loop.make_objective(network, watch, seed=0)
    for step in (0, 0, 1):
        at_step = dataclasses.replace(state, step=jnp.int32(step))
        assert float(objective(state.params, at_step, x, x, None)[0]) == 0
    np.testing.assert_array_equal(seen[0], seen[1])
    assert np.abs(seen[0] - seen[2]).max() > 1e-3


def test_one_and_eight_devices_train_alike(four_steps, tmp_path):
    """Over some steps eight devices differ from one by what rounding does.

    How far a rounding error of the first step has grown at each later step is measured: by runs on one device whose
    initial parameters are off by one unit in the last place, up or down at random.
    """

    def losses(name, devices, off=None):
        with pytest.MonkeyPatch.context() as patch:
            if off is not None:
                patch.setattr(loop, "init_state", functools.partial(perturbed_state, off))
            pretrain(tiny_config(devices=devices), tmp_path / name)
        return np.array([row["loss"] for row in read_metrics(tmp_path / name)])

    one, eight = np.array([row["loss"] for row in read_metrics(four_steps[0])]), losses("eight", 8)
    assert len(set(one)) == 4
    growth = np.max([np.abs(losses(f"off{seed}", 1, seed) - one) for seed in range(3)], axis=0)
    # A step has some hundred layers of roundings, not one, which add up like a random walk: a factor of ten. The loss
    # itself is rounded to 24 bits.
    tolerance = 10 * np.maximum.accumulate(growth) + 4 * 2.0**-24 * one
    assert (np.abs(eight - one) <= tolerance).all(), (one, eight, growth)
    assert tolerance.max() < 1e-2  # the test can tell other draws or statistics from roundings


def perturbed_state(off_seed, *args, **kwargs):
    """The initial state with parameters that are off by one unit in the last place."""
    state = init_state(*args, **kwargs)
    leaves, structure = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(off_seed), len(leaves))
    off = [
        leaf * (1 + 2.0**-23 * jax.random.rademacher(key, leaf.shape)) for leaf, key in zip(leaves, keys, strict=True)
    ]
    return dataclasses.replace(state, params=jax.tree.unflatten(structure, off))


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
    config = tiny_config(total_steps=2, projector__name="low_rank", checkpoint_every_steps=1)
    trained = pretrain(config, tmp_path / "run")
    first, second = (saved_state(tmp_path / "run", step, trained) for step in (1, 2))
    assert set(trained.constants["projector"]) == {"left", "right"}
    assert_identical(first.constants, trained.constants)
    assert_identical(second, trained)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), first.params, second.params)
    assert max(jax.tree.leaves(moved)) > 0


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
    settings = {"data__name": "folder", "data__test_split": "", "total_steps": 5, "batch_size": 8}
    pretrain(tiny_config(**settings, data__dir=str(tmp_path / "a")), tmp_path / "run")
    with pytest.raises(SettingError, match=r"data.dir .* holds other images"):
        pretrain(tiny_config(**settings, data__dir=str(tmp_path / "b")), tmp_path / "run")


def test_an_interrupted_write_is_not_mistaken_for_a_checkpoint(four_steps, tmp_path):
    workdir = shutil.copytree(four_steps[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "4")
    unfinished = workdir / "checkpoints" / "4.orbax-checkpoint-tmp"
    (unfinished / "state").mkdir(parents=True)
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[:3]) + '{"step": 4, "lo')  # a line that was cut short
    assert int(pretrain(tiny_config(), workdir).step) == 4
    assert not unfinished.exists()
    assert_same_lines(workdir, four_steps[0])


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(tmp_path):
    """SIGKILL, which nothing can prepare for, at four moments; images of many sizes, so that the host crops them."""
    for k, label in enumerate("xy"):
        for size in (9, 12, 17, 24):
            write_images(tmp_path / "data" / label / str(size), 7, size=size, seed=k + size)
    settings = {"data__name": "folder", "data__dir": str(tmp_path / "data"), "data__test_split": ""}
    config = tiny_config(**settings, data__stored_size=0, batch_size=8, total_steps=60, checkpoint_every_steps=1)
    whole = run_main(tmp_path / "whole", config)
    assert whole.returncode == 0, whole.stderr
    killed = """
import os, signal, threading
from dcjax.training.monitor import Monitor
push = Monitor.push
def push_and_wait(self, step, metrics):
    push(self, step, metrics)
    Monitor.push = push
    threading.Timer({delay}, os.kill, (os.getpid(), signal.SIGKILL)).start()
Monitor.push = push_and_wait
"""
    workdir, reached = tmp_path / "killed", []
    for delay in (0.0, 0.1, 0.23, 0.4):
        process = run_main(workdir, config, before=killed.format(delay=delay))
        assert process.returncode == -signal.SIGKILL, process.stderr
        reached.append(len(read_metrics(workdir)) if workdir.joinpath("metrics.jsonl").exists() else 0)
    assert 0 < reached[-1] < 60
    process = run_main(workdir, config)
    assert process.returncode == 0, process.stderr
    sharding = replicated(make_mesh(1))
    states = []
    for folder in (workdir, tmp_path / "whole"):
        checkpointer = Checkpointer(folder)
        states.append(checkpointer.restore_saved(60, sharding))
        checkpointer.close()
    assert_identical(*states)
    assert_same_lines(workdir, tmp_path / "whole")


def test_a_damaged_checkpoint_is_named(four_steps, tmp_path):
    workdir = shutil.copytree(four_steps[0], tmp_path / "run")
    for file in (workdir / "checkpoints" / "4" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(SettingError, match=r"checkpoints/4 .* step 2"):
        pretrain(tiny_config(), workdir)
    assert (workdir / "checkpoints" / "2").is_dir()


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
    writer = MetricsWriter(tmp_path, first_step=0, kept_step=0, total_steps=9, batch_size=1)
    watch = monitor.Monitor(writer, every=3, batch_size=1, sums={})
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


def test_the_rate_is_that_of_the_config_for_every_batch_size():
    for batch_size in (8, 64):
        schedule = loop.make_schedule(tiny_config(batch_size=batch_size, total_steps=10), images=1437)
        assert float(schedule(1)) == 1.5  # the peak, after one step of warm-up, is not rescaled


def rate_of(step, total_steps):
    """The learning rate of a step, counted from 0, after a warm-up of one step: the recipe's cosine, to 4 digits."""
    share = (step - 1) / (total_steps - 1)
    return f"{1.5 * (0.001 + 0.999 * 0.5 * (1 + np.cos(np.pi * share))):.4g}"


@pytest.mark.parametrize("change", [{"total_steps": 6}, {"total_steps": None, "total_epochs": 6 * 16 / 1437}])
def test_another_length_is_refused_where_the_rate_would_jump(four_steps, change):
    config = tiny_config()
    config.update(change)
    setting = "total_steps" if "total_epochs" not in change else "total_epochs"
    with pytest.raises(SettingError, match=setting) as error:
        pretrain(config, four_steps[0])
    for words in ("(4 steps before, 6 now)", "of step 5", "from 0.0015 to " + rate_of(4, 6), "--extend"):
        assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert json.loads((four_steps[0] / "config.json").read_text())["total_steps"] == 4


def test_a_run_is_extended_on_request_and_then_goes_on_as_it_is(four_steps, tmp_path, capsys):
    workdir = shutil.copytree(four_steps[0], tmp_path / "run")
    state = pretrain(tiny_config(total_steps=6), workdir, extend=True)
    assert int(state.step) == 6
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "another length" in line)
    assert "from 0.0015 to " + rate_of(4, 6) in line
    rows = read_metrics(workdir)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert f"{rows[4]['learning_rate']:.4g}" == rate_of(4, 6)
    # The same command resumes, with the flag and without it.
    for extend in (True, False):
        assert_identical(pretrain(tiny_config(total_steps=6), workdir, extend=extend), state)
    assert "another length" not in capsys.readouterr().out
    with pytest.raises(SettingError, match=r"total_steps gives 4 steps.* has taken 6"):
        pretrain(tiny_config(), workdir, extend=True)


def test_during_the_warm_up_another_length_moves_nothing():
    old, new = (tiny_config(total_steps=total, optimizer__warmup_steps=3) for total in (5, 9))
    schedule = loop.make_schedule(new, images=1437)
    for step in range(4):
        loop.check_length(loop.Saved(step, old.to_dict(), {}), build(new), schedule, extend=False)
    with pytest.raises(SettingError, match="of step 5"):
        loop.check_length(loop.Saved(4, old.to_dict(), {}), build(new), schedule, extend=False)


def test_a_run_that_is_not_there_cannot_be_extended(tmp_path):
    with pytest.raises(SettingError, match="--extend"):
        pretrain(tiny_config(), tmp_path / "run", extend=True)
    assert not (tmp_path / "run").exists()


def test_the_log_of_a_stopped_run_is_that_of_the_uninterrupted_one(tmp_path, monkeypatch):
    """Lines of 3 steps. Stopped after 2 of 4 steps, within a line, or after 3, at a line, it logs the same averages."""
    config = tiny_config(log_every_steps=3, checkpoint_every_steps=100)
    pretrain(config, tmp_path / "whole")
    assert [row["step"] for row in read_metrics(tmp_path / "whole")] == [1, 3, 4]
    for stop in (2, 3):
        workdir = tmp_path / str(stop)
        with monkeypatch.context() as patch:
            patch.setattr(monitor.StopRequest, "reached", lambda self, step, stop=stop: step == stop)
            with pytest.raises(SystemExit, match=f"stopped at step {stop} of 4"):
                pretrain(config, workdir)
        assert read_metrics(workdir)[-1]["step"] == stop  # the steps before it are not lost
        pretrain(config, workdir)
        assert_same_lines(workdir, tmp_path / "whole")


def assert_same_lines(one, two):
    """The same lines in both folders' metrics.jsonl, but for the timing."""
    rows = [read_metrics(folder) for folder in (one, two)]
    for row in (*rows[0], *rows[1]):
        assert row.pop("images_per_second") > 0
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("loss", "block_size", "batch_size", "devices", "tiles"),
    [
        ("info_nce", "none", 4096, 1, None),
        ("info_nce", "64", 16, 8, {"block_size": 64}),
        # What counts is a device's share of the logits: 4 MB at most.
        ("info_nce", "auto", 1024, 1, None),
        ("info_nce", "auto", 1025, 1, {"block_size": None}),
        ("info_nce", "auto", 2048, 8, None),
        ("info_nce", "auto", 4096, 8, {"block_size": None}),
        ("nt_xent", "auto", 512, 1, None),
        ("nt_xent", "auto", 1024, 1, {"block_size": None}),
    ],
)
def test_the_config_chooses_the_tiles(loss, block_size, batch_size, devices, tiles):
    mesh = make_mesh(devices)
    chosen = loop.make_loss(tiny_config(loss__name=loss, loss__block_size=block_size, batch_size=batch_size), mesh)
    assert chosen.func is LOSSES[loss]
    assert chosen.keywords == {"temperature": 0.1} | ({} if tiles is None else tiles | {"mesh": mesh})


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
    # At the same parameters, since the first rate is 0: only float32 sums of thousands of terms in another order.
    np.testing.assert_allclose(losses, [row["loss"] for row in read_metrics(tmp_path / "one")], rtol=1e-4)
    assert len(losses) == 2
