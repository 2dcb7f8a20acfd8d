"""The paper's probe against a NumPy loop."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax.evaluation import sgd_probe
from dcjax.evaluation.sgd import initial_classifiers
from dcjax.runtime.errors import SettingError

IMAGES, BATCH, EPOCHS, CLASSES, WIDTH = 25, 8, 3, 3, 5  # an epoch is 3.125 batches
COLUMNS = {"all": slice(None), "rest": slice(2, None)}
SETTINGS = {"learning_rate": 0.5, "schedule": "constant", "momentum": 0.9, "weight_decay": 1e-2}


def stream(seed=0, rows=BATCH):
    rng = np.random.default_rng(seed)
    while True:
        r = rng.normal(size=(rows, WIDTH)).astype(np.float32)
        yield {"r": r, "label": (r[:, 3] > 0) + (r[:, 4] > 0.5).astype(np.int32)}


def represent(batch):
    return jnp.asarray(batch["r"]), jnp.asarray(batch["label"])


def slow_probe(w, b, part, batches, test, schedule):
    """SGD with momentum and decay at a constant rate or by a cosine per epoch; accuracy after every epoch."""
    w, b = np.float64(w), np.float64(b)
    mu_w, mu_b, accuracies, done = np.zeros_like(w), np.zeros_like(b), [], 0
    for epoch in range(1, EPOCHS + 1):
        while done * BATCH < epoch * IMAGES:
            batch = next(batches)
            r, onehot = np.float64(batch["r"])[:, part], np.eye(CLASSES)[batch["label"]]
            p = np.exp(r @ w + b)
            error = (p / p.sum(1, keepdims=True) - onehot) / BATCH
            epoch_of_batch = done * BATCH // IMAGES
            rate = 0.5
            if schedule == "cosine":
                rate *= 0.5 * (1 + math.cos(math.pi * epoch_of_batch / EPOCHS))
            mu_w = 0.9 * mu_w + r.T @ error + 1e-2 * w
            mu_b = 0.9 * mu_b + error.sum(0) + 1e-2 * b
            w, b = w - rate * mu_w, b - rate * mu_b
            done += 1
        accuracies.append(np.mean(np.argmax(test["r"][:, part] @ w + b, 1) == test["label"]))
    return accuracies


def run(batches, test, of=represent, **settings):
    return sgd_probe(
        of,
        batches,
        test["r"],
        test["label"],
        columns=COLUMNS,
        classes=CLASSES,
        images=IMAGES,
        batch_size=BATCH,
        epochs=EPOCHS,
        key=jax.random.key(1),
        **(SETTINGS | settings),
    )


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_recipe(x64, schedule):
    test = next(stream(1, rows=500))
    starts, buffers = initial_classifiers(COLUMNS, width=WIDTH, classes=CLASSES, key=jax.random.key(1))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(buffers))
    found = run(stream(), test, schedule=schedule)
    for name, part in COLUMNS.items():
        expected, other = (
            slow_probe(*starts[name], part, stream(), test, of)
            for of in (schedule, *{"constant", "cosine"} - {schedule})
        )
        # In float64 rounding moves no image over a boundary.
        assert found[name]["top1"] == pytest.approx(expected[-1], abs=1e-6)
        assert found[name]["best_top1"] == pytest.approx(max(expected), abs=1e-6)
        assert found[name]["top5"] == 1
        assert abs(expected[-1] - other[-1]) > 1e-3  # the test can tell the schedules apart
    assert 0.5 < found["all"]["top1"] < 1


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match=r"^schedule 'cosin' .*'cosine'"):
        run(stream(), next(stream(1)), schedule="cosin")


def test_kernels_start_small_and_biases_at_zero():
    classifiers, _ = initial_classifiers({"all": slice(None)}, width=400, classes=100, key=jax.random.key(0))
    kernel, bias = classifiers["all"]
    assert float(kernel.std()) == pytest.approx(0.01, rel=0.02)
    assert (bias == 0).all()


def test_an_epoch_is_every_image_once():
    taken = []

    def counting(batch):
        taken.append(batch)
        return represent(batch)

    run(stream(), next(stream(1)), counting)
    assert len(taken) == math.ceil(EPOCHS * IMAGES / BATCH)


def test_a_classifier_that_diverges_is_named():
    with pytest.raises(SettingError, match=r"'all' diverged in epoch [123]; lower learning_rate, now 1e\+38"):
        run(stream(), next(stream(1)), learning_rate=1e38)
