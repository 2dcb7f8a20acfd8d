"""Weighted nearest neighbours on frozen features: an accuracy that needs no training."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dcjax.errors import SettingError
from dcjax.losses import unit_rows

SIMILARITIES = 2**26  # of test rows to training rows, in memory at once: 256 MB


def knn_accuracy(
    train: Float[Array, "n d"],
    train_labels: Int[Array, " n"],
    test: Float[Array, "m d"],
    test_labels: Int[Array, " m"],
    *,
    classes: int,
    neighbors: int,
    temperature: float,
) -> float:
    """Top-1 accuracy of a vote of the nearest training rows, each weighted by exp(cosine / temperature).

    Args:
      train: `[n, d]` features with labels `[n]`.
      test: `[m, d]` features with labels `[m]`.
      classes: number of classes.
      neighbors: how many neighbours vote; at most n.
      temperature: of the weights.

    Returns:
      The share of test rows that are right.

    Raises:
      ValueError: `neighbors` outside 1..n.

    References:
      Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4.
    """
    if not 1 <= neighbors <= len(train):
        raise SettingError(f"probe.neighbors must be from 1 to the {len(train)} training images, found {neighbors}")
    return float(_accuracy(train, train_labels, test, test_labels, classes, neighbors, temperature))


@functools.partial(jax.jit, static_argnums=(4, 5))
def _accuracy(train, train_labels, test, test_labels, classes, neighbors, temperature):
    # The lengths of the training rows divide the similarities, since unit copies of all rows would double the memory.
    squared = jnp.sum(jnp.square(train), axis=1)
    shrink = jnp.where(squared > 0, jax.lax.rsqrt(jnp.where(squared > 0, squared, 1)), 0)

    def is_right(row: Array, label: Array) -> Array:
        cosines = jnp.matmul(train, row, precision=jax.lax.Precision.HIGHEST) * shrink
        similarity, nearest = largest(cosines, neighbors)
        # The largest weight is 1: exp(1 / temperature) itself would be near float32's limit for small temperatures.
        weights = jnp.exp((similarity - similarity[0]) / temperature)
        votes = jnp.zeros(classes).at[train_labels[nearest]].add(weights)
        return (jnp.argmax(votes) == label) & jnp.isfinite(similarity).all()

    rows = max(SIMILARITIES // len(train), 1)
    right = jax.lax.map(lambda pair: is_right(*pair), (unit_rows(test), test_labels), batch_size=rows)
    return jnp.mean(right.astype(jnp.float32))


def largest(values: Float[Array, " n"], k: int) -> tuple[Float[Array, " k"], Int[Array, " k"]]:
    """The k largest values, in order, and where they are: `jax.lax.top_k` without sorting all of them.

    The k largest lie in the k groups with the largest maxima, so two short sorts do: many times faster on CPU.
    """
    n = len(values)
    size = max(math.isqrt(n // k), 1)  # sqrt(n k) groups and as many candidates
    groups = jnp.pad(values, (0, -n % size), constant_values=-jnp.inf).reshape(-1, size)
    _, chosen = jax.lax.top_k(jnp.max(groups, axis=1), k)
    found, place = jax.lax.top_k(groups[chosen].reshape(-1), k)
    return found, chosen[place // size] * size + place % size
