"""Weighted nearest neighbours on frozen features: an accuracy that needs no training."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from dcjax.evaluation.features import NO_IMAGE
from dcjax.evaluation.rows import Rows
from dcjax.losses import unit_rows
from dcjax.runtime.errors import SettingError
from dcjax.runtime.mesh import BATCH_AXIS

SIMILARITIES = 2**26  # of test rows to training rows, in a device's memory at once: 256 MB


class Neighbours(NamedTuple):
    """The nearest training rows of test rows, nearest first; of equally near ones the lower index comes first.

    Attributes:
      similarity: `[m, k]` cosines.
      index: `[m, k]` the training images.
      label: `[m, k]` their labels.
    """

    similarity: Array
    index: Array
    label: Array


def knn_accuracy(train: Rows, test: Rows, *, mesh: Mesh, classes: int, neighbors: int, temperature: float) -> float:
    """Top-1 accuracy of a vote of the nearest training rows, each weighted by exp(cosine / temperature).

    Args:
      train: the rows that vote.
      test: the rows that are classified.
      mesh: the devices that both are on.
      classes: number of classes.
      neighbors: how many neighbours vote; at most the training images.
      temperature: of the weights.

    Returns:
      The share of test rows that are right.

    Raises:
      SettingError: `neighbors` outside 1..n.

    References:
      Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4.
    """
    found = nearest(train, test, mesh=mesh, neighbors=neighbors)
    return float(_accuracy(found, test.labels, classes, temperature))


def nearest(train: Rows, test: Rows, *, mesh: Mesh, neighbors: int) -> Neighbours:
    """The nearest training rows of each test row, exactly, while every device holds its own training rows alone.

    Blocks of test rows visit all devices; each finds the nearest among its rows, and the device that a test row belongs
    to merges what they found.

    Args:
      train: the rows to search.
      test: the rows `[m]` whose neighbours are wanted.
      mesh: the devices that both are on.
      neighbors: k, at most the training images.

    Returns:
      Arrays `[m, k]`, split as the test rows are; of padding without meaning.

    Raises:
      SettingError: `neighbors` outside 1..n.
    """
    if not 1 <= neighbors <= train.images:
        raise SettingError(f"probe.neighbors must be from 1 to the {train.images} training images, found {neighbors}")
    return _nearest(train.r, train.index, train.labels, test.r, mesh=mesh, neighbors=neighbors)


@functools.partial(jax.jit, static_argnames=("mesh", "neighbors"))
def _nearest(train: Array, index: Array, labels: Array, test: Array, *, mesh: Mesh, neighbors: int) -> Neighbours:
    held, own = len(train) // mesh.size, len(test) // mesh.size  # rows of a device
    blocks = -(-own // max(SIMILARITIES // (held * mesh.size), 1))
    rows = -(-own // blocks)  # of each device's test rows in a block

    def search(train: Array, index: Array, labels: Array, test: Array) -> Neighbours:
        # The lengths of the training rows divide the similarities, since unit copies of all rows would double the
        # memory.
        squared = jnp.sum(jnp.square(train), axis=1)
        shrink = jnp.where(squared > 0, jax.lax.rsqrt(jnp.where(squared > 0, squared, 1)), 0)

        def find(block: Array) -> Neighbours:
            visitors = jax.lax.all_gather(unit_rows(block), BATCH_AXIS, tiled=True)  # [devices * rows, d]
            cosines = jnp.matmul(visitors, train.T, precision=jax.lax.Precision.HIGHEST) * shrink
            # `top_k` puts -0 below 0, though they are the same cosine.
            cosines = jnp.where(index == NO_IMAGE, -jnp.inf, jnp.where(cosines == 0, 0, cosines))
            similarity, place = jax.vmap(functools.partial(largest, k=min(neighbors, held)))(cosines)
            mine = Neighbours(similarity, index[place], labels[place])
            # Each device takes what all of them found for its own test rows: [rows, devices * k].
            swap = functools.partial(jax.lax.all_to_all, axis_name=BATCH_AXIS, split_axis=0, concat_axis=1, tiled=True)
            found = Neighbours(*map(swap, mine))
            # By index first: `top_k` then takes the lower of two that are equally near, on any number of devices.
            by_index, similarity, label = jax.lax.sort((found.index, found.similarity, found.label), num_keys=1)
            similarity, place = jax.lax.top_k(similarity, neighbors)
            pick = functools.partial(jnp.take_along_axis, indices=place, axis=1)
            return Neighbours(similarity, pick(by_index), pick(label))

        padded = jnp.pad(test, ((0, blocks * rows - own), (0, 0))).reshape(blocks, rows, -1)
        found = jax.lax.map(find, padded)
        return jax.tree.map(lambda x: x.reshape(-1, neighbors)[:own], found)

    split = PartitionSpec(BATCH_AXIS)
    spread = jax.shard_map(search, mesh=mesh, in_specs=(split,) * 4, out_specs=split)
    return spread(train, index, labels, test)


@functools.partial(jax.jit, static_argnames=("classes",))
def _accuracy(found: Neighbours, labels: Array, classes: int, temperature: float) -> Array:
    # The largest weight is 1: exp(1 / temperature) itself would be near float32's limit for small temperatures.
    weights = jnp.exp((found.similarity - found.similarity[:, :1]) / temperature)

    def is_right(weights: Array, label: Array, expected: Array) -> Array:
        return jnp.argmax(jnp.zeros(classes, weights.dtype).at[label].add(weights)) == expected

    right = jax.vmap(is_right)(weights, found.label, labels) & jnp.isfinite(found.similarity).all(axis=1)
    return jnp.mean(right.astype(jnp.float32), where=labels >= 0)


def largest(values: Float[Array, " n"], k: int) -> tuple[Float[Array, " k"], Int[Array, " k"]]:
    """The k largest values, in order, and where they are: `jax.lax.top_k` without sorting all of them.

    The k largest lie in the k groups with the largest maxima, so two short sorts do: many times faster on CPU. Of equal
    values the first come first, as in `top_k`: the groups are searched in their order.
    """
    n = len(values)
    size = max(math.isqrt(n // k), 1)  # sqrt(n k) groups and as many candidates
    groups = jnp.pad(values, (0, -n % size), constant_values=-jnp.inf).reshape(-1, size)
    _, chosen = jax.lax.top_k(jnp.max(groups, axis=1), k)
    chosen = jnp.sort(chosen)
    found, place = jax.lax.top_k(groups[chosen].reshape(-1), k)
    return found, chosen[place // size] * size + place % size
