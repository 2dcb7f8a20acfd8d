"""The paper's linear probe: a linear classifier trained by SGD on augmented images behind the frozen encoder."""

import collections
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from dcjax.evaluation.linear import Classifier, top_k_accuracy
from dcjax.runtime.errors import SettingError, not_known

BATCHES_IN_FLIGHT = 2  # batches whose representations may be computed ahead

Classifiers = dict[str, tuple[jax.Array, jax.Array]]

# By name, a function from the epoch (from 0) and the number of epochs to the factor of the learning rate.
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda epoch, epochs: 1.0,
    "cosine": lambda epoch, epochs: 0.5 * (1 + math.cos(math.pi * epoch / epochs)),
}


def sgd_probe(
    represent: Callable[[dict[str, np.ndarray]], tuple[jax.Array, jax.Array]],
    batches: Iterator[dict[str, np.ndarray]],
    test_r: jax.Array | np.ndarray,
    test_labels: jax.Array | np.ndarray,
    *,
    columns: Mapping[str, slice],
    classes: int,
    images: int,
    batch_size: int,
    epochs: int,
    learning_rate: float,
    schedule: str,
    momentum: float,
    weight_decay: float,
    key: jax.Array,
) -> dict[str, dict[str, float]]:
    """Trains linear classifiers on parts of the representation, all in one pass over the images.

    SGD with momentum, g = gradient + wd w, mu = m mu + g, w = w - lr mu; kernels start from N(0, 0.01^2), biases from
    0. The learning rate is constant or follows a cosine to zero that is stepped once per epoch. The paper's numbers
    come from a constant one: its published script creates the cosine and never steps it. The classifiers share nothing:
    each is trained as if it were alone. The test features depend on none of them, so the caller computes these once.

    Args:
      represent: maps a host batch to r `[b, d]` and labels `[b]` on the devices, by augmentation and frozen encoder.
      batches: training batches in a stream without end.
      test_r: `[n, d]` of the test split; the rows may be split over a mesh.
      test_labels: `[n]`; a row with the label -1 does not count.
      columns: the part of r that each classifier sees, by name, e.g. `{"all": slice(None), "selected": slice(0, 360)}`.
      classes: number of classes.
      images: number of training images, the length of an epoch.
      batch_size, epochs, learning_rate, momentum, weight_decay: settings of SGD.
      schedule: of the learning rate, a key of `SCHEDULES`.
      key: the random key of the kernels.

    Returns:
      For each classifier `top1` and `top5` after the last epoch, and `best_top1`, the best after any epoch.

    Raises:
      ValueError: the schedule is unknown.
      SettingError: a classifier diverged.

    References:
      Jing et al., ICLR 2022, section 6 (linear probe); the recipe of its published runs.
    """
    if schedule not in SCHEDULES:
        raise ValueError(not_known("schedule", schedule, SCHEDULES))
    classifiers, buffers = initial_classifiers(columns, width=test_r.shape[1], classes=classes, key=key)
    step = make_step(dict(columns), momentum=momentum, weight_decay=weight_decay)
    test_x, targets = jnp.asarray(test_r), jnp.asarray(test_labels)
    results: dict[str, dict[str, float]] = {name: {"best_top1": 0.0} for name in columns}
    in_flight: collections.deque[jax.Array] = collections.deque()
    done = 0
    bar = tqdm(range(1, epochs + 1), unit="epoch", disable=jax.process_index() != 0)
    for epoch in bar:
        while done < math.ceil(epoch * images / batch_size):
            r, labels = represent(next(batches))
            # The epoch of a batch is that of its first image.
            rate = learning_rate * SCHEDULES[schedule](done * batch_size // images, epochs)
            classifiers, buffers = step(classifiers, buffers, r, labels, rate)
            in_flight.append(r)
            if len(in_flight) > BATCHES_IN_FLIGHT:
                in_flight.popleft().block_until_ready()
            done += 1
        for name, part in columns.items():
            classifier = Classifier(*classifiers[name])
            if not bool(jnp.isfinite(classifier.w).all()):
                raise SettingError(
                    f"the linear probe of '{name}' diverged in epoch {epoch}; lower learning_rate, now {learning_rate}"
                )
            top1, top5 = (float(top_k_accuracy(classifier, test_x[:, part], targets, k=k)) for k in (1, 5))
            results[name] |= {"top1": top1, "top5": top5, "best_top1": max(top1, results[name]["best_top1"])}
        bar.set_postfix({name: f"{result['top1']:.3f}" for name, result in results.items()})
    return results


def initial_classifiers(
    columns: Mapping[str, slice], *, width: int, classes: int, key: jax.Array
) -> tuple[Classifiers, Classifiers]:
    """The classifiers before the first step, and their momentum buffers of zero."""
    classifiers = {}
    for i, (name, part) in enumerate(columns.items()):
        size = len(range(width)[part])
        kernel = 0.01 * jax.random.normal(jax.random.fold_in(key, i), (size, classes))
        classifiers[name] = (kernel, jnp.zeros(classes))
    return classifiers, jax.tree.map(jnp.zeros_like, classifiers)


def make_step(columns: dict[str, slice], *, momentum: float, weight_decay: float) -> Callable[..., Any]:
    """The jitted SGD step of all classifiers: (classifiers, buffers, r, labels, rate) to the next two."""

    def loss(classifiers: Classifiers, r: jax.Array, labels: jax.Array) -> jax.Array:
        total = jnp.zeros(())
        for name, parameters in classifiers.items():
            logits = Classifier(*parameters).logits(r[:, columns[name]])
            total += jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))
        return total

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(
        classifiers: Classifiers, buffers: Classifiers, r: jax.Array, labels: jax.Array, rate: float
    ) -> tuple[Classifiers, Classifiers]:
        gradient = jax.grad(loss)(classifiers, r, labels)
        buffers = jax.tree.map(lambda mu, g, w: momentum * mu + g + weight_decay * w, buffers, gradient, classifiers)
        return jax.tree.map(lambda w, mu: w - rate * mu, classifiers, buffers), buffers

    return step
