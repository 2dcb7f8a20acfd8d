"""Features on the devices: the rows of a split, each on one device of the mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from dcjax.evaluation.features import Features
from dcjax.runtime.mesh import BATCH_AXIS, to_devices


@dataclasses.dataclass(frozen=True)
class Rows:
    """Features whose rows are split over a mesh. Every device has as many; padding fills up the last ones.

    Attributes:
      r: `[rows, d]` float32.
      labels: `[rows]` int32; -1 for padding.
      index: `[rows]` int32, the image that a row belongs to, ascending on each device; `NO_IMAGE` for padding.
      images: how many of the rows belong to an image.
    """

    r: jax.Array
    labels: jax.Array
    index: jax.Array
    images: int


def place_rows(features: Features, mesh: Mesh, *, columns: slice = slice(None)) -> Rows:
    """Puts features on the devices; each process contributes the rows that it holds.

    Args:
      features: from `extract` with the same mesh.
      mesh: the devices.
      columns: the part of r that is wanted.
    """
    labels = np.full(len(features.index), -1, np.int32)
    labels[: features.own] = features.labels[features.index[: features.own]]
    placed = to_devices({"r": features.r[:, columns], "labels": labels, "index": features.index}, mesh)
    return Rows(placed["r"].astype(jnp.float32), placed["labels"], placed["index"], images=len(features.labels))


@functools.partial(jax.jit, static_argnames=("mesh",))
def take_rows(values: jax.Array, index: jax.Array, images: jax.Array, *, mesh: Mesh) -> jax.Array:
    """Rows of some images, on every device.

    Args:
      values: `[rows, d]` over the mesh.
      index: `[rows]` over the mesh, as in `Rows`.
      images: `[...]` the images that are wanted, in any order.
      mesh: the devices.

    Returns:
      `[..., d]`.
    """

    def take(values: jax.Array, index: jax.Array, images: jax.Array) -> jax.Array:
        # By sorting: with jax 0.7 the default search does not pass the check of what varies over the mesh.
        place = jnp.minimum(jnp.searchsorted(index, images, method="sort"), len(index) - 1)
        here = index[place] == images
        # One device has each row, and the others add zeros to it.
        return jax.lax.psum(jnp.where(here[..., None], values[place], 0), BATCH_AXIS)

    split, whole = PartitionSpec(BATCH_AXIS), PartitionSpec()
    return jax.shard_map(take, mesh=mesh, in_specs=(split, split, whole), out_specs=whole)(values, index, images)
