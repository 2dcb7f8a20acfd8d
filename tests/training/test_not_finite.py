"""A step that meets NaN or inf is repeated, and the error names the first place and the remedy."""

import dataclasses
import re
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_identical, tiny_config

from dcjax.data import Augmentation
from dcjax.models import Network
from dcjax.pretrain import pretrain
from dcjax.runtime import cli
from dcjax.runtime.mesh import make_mesh, replicated, to_devices
from dcjax.training import metrics, not_finite, repeat
from dcjax.training.checkpoint import Checkpointer
from dcjax.training.metrics import NotFiniteError, read_metrics
from dcjax.training.not_finite import INPUT, OUTPUT, WatchedStep, cause_after, diagnose, measure
from dcjax.training.signals import StopRequest
from dcjax.training.state import init_state

PLAIN = dataclasses.replace(
    Augmentation.imagenet(),
    flip=0.0,
    jitter=0.0,
    grayscale=0.0,
    blur=(0.0, 0.0),
    solarize=(0.0, 0.0),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


class Exponential(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.exp(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(4, use_bias=False, name="inside")(nn.BatchNorm(use_running_average=not train, name="bn")(x))


class Encoder(nn.Module):
    """Overflows in its exponential where an image is bright, if the kernel before it is large."""

    @nn.compact
    def __call__(self, images, train):
        h = nn.Dense(4, use_bias=False, name="linear")(images.mean(axis=(1, 2)))
        return nn.remat(Block, static_argnums=(2,))(name="block")(Exponential(name="exponential")(h), train)


class Projector(nn.Module):
    @nn.compact
    def __call__(self, r, train):
        return nn.Dense(2, use_bias=False, name="linear")(r)


def distance(z, z_prime):
    """Overflows where z is large; its gradient is NaN where the views are equal, as the root has none at 0."""
    return jnp.sqrt(jnp.sum((z - z_prime) ** 2)) + jnp.exp(jnp.max(z))


NETWORK: Any = Network(Encoder(), Projector(), classes=3)
OPTIONS: Any = {"loss": distance, "augmentation": PLAIN, "image_size": 4, "seed": 0}
STATE: Any = jax.device_get(init_state(NETWORK, optax.identity(), seed=0, image_size=4))


def images(view, view_prime):
    """A batch of 8 images, of which the views have one colour each, but for a few grey levels between images."""
    shades = np.stack([np.clip(np.arange(8) + shade, 0, 255) for shade in (view, view_prime)], axis=1)
    crops = np.broadcast_to(shades[:, :, None, None, None], (8, 2, 4, 4, 3)).astype(np.uint8)
    return {"image": crops, "label": np.arange(8, dtype=np.int32) % 3, "position": np.arange(8, dtype=np.uint32)}


def planted(path, value):
    """The state with another value in the entries that an index selects, or in the whole parameter."""
    names, index = path if isinstance(path, tuple) else (path, ...)
    params = jax.tree.map(np.array, STATE.params)
    *parents, last = names.split("/")
    leaf = params
    for name in parents:
        leaf = leaf[name]
    leaf[last][index] = value
    return dataclasses.replace(STATE, params=params)


class Watched:
    """A watched step, compiled once for all tests of a number of devices."""

    def __init__(self, devices):
        self.mesh = make_mesh(devices)
        batch = to_devices(images(0, 200), self.mesh)
        self.step = WatchedStep(NETWORK, **OPTIONS, mesh=self.mesh, state=STATE, batch=batch)

    def found(self, state, batch):
        return self.step(jax.device_put(state, replicated(self.mesh)), to_devices(batch, self.mesh))

    def causes(self, state, batch):
        return list(self.step.causes(self.found(state, batch)))


@pytest.fixture(scope="module")
def watched():
    return Watched(1)


@pytest.fixture(scope="module")
def watched_by_eight():
    return Watched(8)


DARK_AND_BRIGHT, EQUAL = images(0, 200), images(100, 100)
CASES = {
    "weights of a module inside of a rematerialised one": (
        planted(("encoder/block/inside/kernel", (0, 1)), np.inf),
        DARK_AND_BRIGHT,
        "module",
        r"in the output of encoder/block/inside, view 1: .* of 32 entries, .*, the largest entry of its input is \d",
    ),
    "a module that overflows on the second view": (
        planted(("encoder/linear/kernel", (slice(None), 2)), 300.0),
        DARK_AND_BRIGHT,
        "module",
        r"in the output of encoder/exponential, view 2: 8 inf of 32 entries, the largest finite entry is [\d.]+, "
        r"the largest entry of its input is [\d.e+]+$",
    ),
    "batch statistics that overflow": (  # exp(60) is finite, its square is not, and BatchNorm divides it to zero
        planted(("encoder/linear/kernel", (slice(None), 2)), 33.0),
        DARK_AND_BRIGHT,
        "module",
        r"in the batch statistics of encoder/block/bn, view 2: 1 (inf|nan) of 8 entries",
    ),
    "the loss": (
        planted("projector/linear/kernel", 1e4),
        DARK_AND_BRIGHT,
        "loss",
        r"every output of the network is finite, but loss is not: the largest entry of z is [\d.]+e\+0[345]$",
    ),
    "the gradient alone": (
        STATE,
        EQUAL,
        "loss",
        r"in the gradient by the output of projector, view 2: 16 nan of 16 entries$",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_first_place_is_named(name, watched):
    state, batch, kind, pattern = CASES[name]
    cause = watched.causes(state, batch)[0]
    assert cause.kind == kind
    assert re.search(pattern, cause.text), cause.text


def test_modules_are_watched_in_their_order_and_once(watched):
    found = watched.found(STATE, DARK_AND_BRIGHT)
    block = ["encoder/block/bn", "encoder/block/inside", "encoder/block"]
    expected = ["encoder/linear", "encoder/exponential", *block, "encoder", "projector/linear", "projector"]
    assert watched.step.modules == [*expected, "classifier"]
    assert not watched.causes(STATE, DARK_AND_BRIGHT)
    # n rows of so many features, though the block is traced again for the backward pass.
    assert found["modules"][0, :, OUTPUT, 0].tolist() == [8 * width for width in (4, 4, 4, 4, 4, 4, 2, 2, 3)]
    z = found["modules"][0, watched.step.modules.index("projector/linear")]
    kernel = np.abs(STATE.params["projector"]["linear"]["kernel"]).sum(axis=0).max()
    assert 0 < z[OUTPUT, 3] <= z[INPUT, 3] * kernel * 1.01


@pytest.mark.parametrize("name", ["a module that overflows on the second view", "the gradient alone"])
def test_eight_devices_find_the_same(name, watched, watched_by_eight):
    state, batch = CASES[name][:2]
    assert watched_by_eight.causes(state, batch)[0] == watched.causes(state, batch)[0]


def test_views_come_before_modules_and_gradients_from_the_loss_backwards(watched):
    found = watched.found(STATE, DARK_AND_BRIGHT)
    found["views"] = np.array([[384, 0, 0, 1], [384, 3, 0, 1]])
    for name in found["gradient"]:
        found["gradient"][name] = np.array([9, 0, 2, 1])
    causes = list(watched.step.causes(found))
    assert causes[0].kind == "view"
    assert causes[0].text.endswith("view 2 of the images: 3 nan of 384 entries, the largest finite entry is 1")
    assert {cause.kind for cause in causes[1:]} == {"gradient"}
    places = [cause.text.partition(" gradient by ")[2].partition(":")[0] for cause in causes[1:]]
    heads = ["classifier/bias", "classifier/kernel", "projector/linear/kernel"]
    block = [f"encoder/block/{name}" for name in ("inside/kernel", "bn/bias", "bn/scale")]
    assert places == [*heads, *block, "encoder/linear/kernel"]


def test_the_update_and_norms_that_overflow():
    finite, large, wrong = np.array([[4, 0, 0, 1], [4, 0, 0, 1e20], [4, 1, 3, 0]], np.float32)
    gradient = {"a": finite, "b": large}
    cause = cause_after(["gradient_norm"], gradient, {})
    assert cause.kind == "norm"
    assert "every entry of the gradient is finite (the largest, 1e+20, is in b)" in cause.text
    after = {"params/a": wrong, "batch_stats/a": large, "opt_state/0/a": finite}
    cause = cause_after(["parameter_norm"], {"a": finite}, after)
    assert cause.kind == "update"
    assert cause.text.endswith("in params/a: 1 nan and 3 inf of 4 entries")
    assert "batch statistics is finite" in cause_after(["statistics_norm"], {"a": finite}, after).text
    assert cause_after(["loss"], {"a": finite}, after).kind == "unseen"


def test_a_measure_counts():
    x = np.array([[1.0, np.nan, -3.0], [np.inf, -np.inf, 2.0]], np.float32)
    for found in (
        measure({"x": x, "n": np.arange(3), "none": None}, np),
        measure((jnp.asarray(x, jnp.bfloat16), True)),
    ):
        assert np.asarray(found).tolist() == [6, 1, 2, 3]


ERROR = NotFiniteError("loss is nan at step 7; and so on", name="loss", step=7, value=float("nan"))
FINE = dict.fromkeys(metrics.GUARDED, np.float32(1))


def message(watched, monkeypatch, state, batch, scalars, good_step):
    """The line of a diagnosis, in which the compiled step gives these scalars."""
    monkeypatch.setattr(not_finite, "WatchedStep", lambda *_, **__: watched.step)
    mesh = watched.mesh
    state, batch = jax.device_put(state, replicated(mesh)), to_devices(batch, mesh)
    options = {**OPTIONS, "mesh": mesh, "state": state, "batch": batch, "good_step": good_step}
    error = diagnose(ERROR, network=NETWORK, **options, train_step=lambda state, batch: (state, scalars))
    assert (error.name, error.step) == ("loss", 7)
    assert "\n" not in str(error)
    return str(error)


def test_a_message_has_the_place_the_remedy_and_the_checkpoint(watched, monkeypatch):
    nan = FINE | {"loss": np.float32(np.nan)}
    state, batch = CASES["a module that overflows on the second view"][:2]
    text = message(watched, monkeypatch, state, batch, nan, 4)
    assert re.fullmatch(
        r"loss is nan at step 7; the first value that is not finite is in the output of encoder/exponential, view 2: "
        r".*\. The parameters before the step were finite\. Train with a lower optimizer.learning_rate or a longer "
        r"warm-up in a new --workdir; the last good checkpoint is that of step 4",
        text,
    )
    monkeypatch.setattr(watched.step, "half", True)
    assert "longer warm-up, or with model.dtype=float32, in a new" in message(
        watched, monkeypatch, state, batch, nan, None
    )
    text = message(watched, monkeypatch, *CASES["the gradient alone"][:2], nan, None)
    assert text.endswith("larger loss.temperature in a new --workdir; there is no checkpoint yet")


def test_a_damaged_checkpoint_and_a_fault_that_does_not_come_again(watched, monkeypatch):
    nan = FINE | {"loss": np.float32(np.nan)}
    state, batch = CASES["weights of a module inside of a rematerialised one"][:2]
    text = message(watched, monkeypatch, state, batch, nan, 4)
    assert "not finite in params/encoder/block/inside/kernel. Checkpoint 4 may be damaged" in text
    text = message(watched, monkeypatch, STATE, DARK_AND_BRIGHT, FINE, 4)
    assert "loss is nan at step 7; when steps 5 to 7 were repeated, everything was finite" in text
    assert "hardware" in text
    assert text.endswith(
        "the same command resumes from the last checkpoint, and the last good checkpoint is that of step 4"
    )


def test_a_diagnosis_that_fails_keeps_the_message():
    def wait():
        raise OSError("the disk has gone\nand more")

    checkpointer: Any = SimpleNamespace(wait=wait)
    unused = ("initial_state", "train_step", "loader", "network", "loss", "augmentation", "image_size", "seed")
    run: Any = dict.fromkeys(unused) | {"stop": StopRequest()}
    run |= {"state": jax.device_put(STATE), "checkpointer": checkpointer, "mesh": make_mesh(1), "phase": nullcontext}
    error = repeat.explain(ERROR, **run)
    assert str(error) == f"{ERROR} (the search for the cause failed: the disk has gone)"
    assert (error.name, error.step) == ("loss", 7)


def test_the_steps_since_the_checkpoint_are_repeated_exactly(four_steps, tmp_path, monkeypatch, capsys):
    push, seen = metrics.StepMetrics.push, []

    def push_nan(self, step, scalars):
        push(self, step, scalars | ({"loss": np.float32(np.nan)} if step == 4 else {}))

    def observe(error, *, train_step, state, batch, good_step, **_):
        seen.append((train_step(state, batch), good_step))
        return error

    monkeypatch.setattr(metrics.StepMetrics, "push", push_nan)
    monkeypatch.setattr(repeat, "diagnose", observe)
    with pytest.raises(NotFiniteError, match="loss is nan at step 4"):
        pretrain(tiny_config(), tmp_path / "run")
    (((after, scalars), good_step),) = seen
    assert good_step == 2
    assert_identical(after, four_steps[1])
    assert float(scalars["loss"]) == read_metrics(four_steps[0])[-1]["loss"]
    line = "dcjax: loss is nan at step 4; repeating steps 3 to 4 to find the first module that is not finite"
    assert capsys.readouterr().err.count(line) == 1


def test_an_absurd_rate_ends_with_one_line_and_a_good_checkpoint(tmp_path, monkeypatch, capsys):
    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(cli.os, "_exit", leave)
    monkeypatch.setattr(cli, "use_compile_cache", lambda: None)
    config = tiny_config(total_steps=6, checkpoint_every_steps=1, optimizer__learning_rate=1e38)
    with pytest.raises(SystemExit) as end:
        cli.run(lambda _: pretrain(config, tmp_path / "run") and None, [])
    assert end.value.code == 2
    last = capsys.readouterr().err.rstrip("\n").rpartition("\n")[2]
    rows = read_metrics(tmp_path / "run")
    step = rows[-1]["step"]
    assert re.match(rf"dcjax: \w+ is (nan|inf) at step {step + 1}; ", last)
    assert "learning_rate" in last
    assert last.endswith(f"the last good checkpoint is that of step {step}")
    assert all(np.isfinite(row["loss"]) for row in rows)
    checkpointer = Checkpointer(tmp_path / "run")
    assert checkpointer.last_whole_step() == step
    saved = checkpointer.restore_saved(step, replicated(make_mesh(1)))
    checkpointer.close()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved))
