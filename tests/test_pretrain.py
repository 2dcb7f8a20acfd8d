"""The training loop, end to end on tiny networks."""

import dataclasses
import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_identical, saved_state, tiny_config, write_images

from dcjax import pretrain as loop
from dcjax.data.order import epoch_order
from dcjax.losses import LOSSES
from dcjax.models import Network, make_encoder, make_projector
from dcjax.pretrain import pretrain
from dcjax.program import make_loss, make_schedule
from dcjax.runtime.errors import SettingError
from dcjax.runtime.mesh import batch_sharding, make_mesh, replicated
from dcjax.runtime.randomness import Stream, host_seed
from dcjax.training import metrics, signals
from dcjax.training.checkpoint import Checkpointer
from dcjax.training.metrics import MetricsWriter, read_metrics
from dcjax.training.state import init_state
from dcjax.training.step import make_objective


def test_a_run_leaves_what_the_readme_promises(four_steps):
    workdir, state = four_steps
    assert int(state.step) == 4
    assert json.loads((workdir / "config.json").read_text())["batch_size"] == 16
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()) == ["2", "4"]
    assert list((workdir / "tensorboard").glob("events*"))
    rows = read_metrics(workdir)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    parts = {"classifier", "encoder/bn1", "encoder/conv1", "encoder/layer1"}
    assert rows[0].keys() == {f"gradient_norm/{part}" for part in parts} | {
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
        objective = make_objective(network, make_loss(config, mesh), seed=0)
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

    objective = make_objective(network, watch, seed=0)
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
    assert checkpointer.last_whole_step() == 3
    checkpointer.close()
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3]


def test_the_host_stays_close_to_the_device(tmp_path):
    """A step's scalars are read when STEPS_IN_FLIGHT later ones were dispatched, not before and not much after."""
    writer = MetricsWriter(tmp_path, first_step=0, kept_step=0, total_steps=9, batch_size=1)
    watch = metrics.StepMetrics(writer, every=3, batch_size=1, sums={})
    for step in range(1, 8):
        watch.push(step, {"loss": np.float32(step)} | dict.fromkeys(metrics.GUARDED[1:], np.float32(1)))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3]
    watch.drain()
    watch.flush()
    writer.close()
    rows = read_metrics(tmp_path)
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (3, 2.5), (6, 5.0), (7, 7.0)]


def test_signals_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with signals.StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reached()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_rate_is_that_of_the_config_for_every_batch_size():
    for batch_size in (8, 64):
        schedule = make_schedule(tiny_config(batch_size=batch_size, total_steps=10), images=1437)
        assert float(schedule(1)) == 1.5  # the peak, after one step of warm-up, is not rescaled


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
    chosen = make_loss(tiny_config(loss__name=loss, loss__block_size=block_size, batch_size=batch_size), mesh)
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
