"""InfoNCE and NT-Xent of unit rows, tile by tile, with a custom backward pass.

The forward pass keeps the rows and the 2n log-sums of their negatives; the backward pass computes the tiles again.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dcjax.losses.ring import Pair, visit_all
from dcjax.losses.tile_sums import EMPTY, MAX_SPREAD, Side, Tiling, gradients, log_sums

# Tiles that stay in a core's cache, and tiles that keep an accelerator busy.
CPU_BLOCK, ACCELERATOR_BLOCK = 512, 4096


def mean_loss(log_u: jax.Array, log_v: jax.Array, positive: jax.Array) -> jax.Array:
    """The mean loss from the log-sums of the negatives.

    Args:
      log_u: `[n]`, for each row of the first view the logarithm of the sum of exp(logit) over its negatives.
      log_v: `[n]`, the same of the second view.
      positive: `[n]`, the logits of the positives, which both views share.

    Returns:
      The mean over the 2n rows of log(1 + exp(log - positive)).
    """
    return 0.5 * jnp.mean(jax.nn.softplus(log_u - positive) + jax.nn.softplus(log_v - positive))


def tiled_loss(
    kind: str,
    u: jax.Array,
    v: jax.Array,
    *,
    temperature: float | jax.Array,
    block_size: int | None,
    mesh: Mesh | None,
    axis: str | None,
) -> jax.Array:
    """Computes a loss of unit rows tile by tile.

    Args:
      kind: `info_nce` or `nt_xent`.
      u: `[n, d]`, unit rows of the first views.
      v: `[n, d]`, unit rows of the second views.
      temperature: the divisor of the similarities.
      block_size: the most rows and columns of a tile; None for a number that suits the device.
      mesh: the devices that share the rows; None for one device.
      axis: the mesh axis to split over; None for the mesh's only one.

    Returns:
      The loss, a scalar.

    Raises:
      ValueError: the block size is below 1, or the axis has no mesh, is not in it, is None where the mesh has several,
        or does not divide the rows.
    """
    axis = _checked_axis(mesh, axis, u.shape[0])
    if block_size is None:
        platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
        block_size = CPU_BLOCK if platform == "cpu" else ACCELERATOR_BLOCK
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, found {block_size}")
    rows = u.shape[0] // _size(mesh, axis)
    block = -(-rows // -(-rows // block_size))  # blocks of equal size need less padding
    # Cosines lie in [-1, 1], so logits are within 2 / temperature of their bound; a traced temperature has no value.
    bounded = not isinstance(temperature, jax.Array) and 2 / temperature <= MAX_SPREAD
    tiling = Tiling(block, 1 / float(temperature) if bounded else None)
    return _placed_loss(kind, tiling, mesh, axis, u, v, jnp.asarray(1 / temperature, u.dtype))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _placed_loss(kind, tiling, mesh, axis, u, v, scale):
    if mesh is not None:
        u, v = (_split_rows(x, mesh, axis) for x in (u, v))
    return _loss(kind, tiling, mesh, axis, u, v, scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _loss(kind, tiling, mesh, axis, u, v, scale):
    return _forward(kind, tiling, mesh, axis, u, v, scale)[0]


def _forward(kind, tiling, mesh, axis, u, v, scale):
    def local(u, v, scale):
        samples = _samples(u, axis)
        own = Pair(Side(u, samples), Side(v, samples))
        compute = functools.partial(log_sums, tiling, scale)
        logs = visit_all(kind, compute, own, join=jnp.logaddexp, nothing=EMPTY, axis=axis, size=_size(mesh, axis))
        return logs.u, logs.v, scale * jnp.sum(u * v, axis=1)

    log_u, log_v, positive = _spread(local, mesh, axis, 2)(u, v, scale)
    return mean_loss(log_u, log_v, positive), (u, v, scale, log_u, log_v, positive)


def _backward(kind, tiling, mesh, axis, residuals, cotangent):
    u, v, scale, log_u, log_v, positive = residuals

    def local(u, v, log_u, log_v, positive, scale):
        samples = _samples(u, axis)
        own = Pair(
            Side(u, samples, jnp.logaddexp(log_u, positive)),
            Side(v, samples, jnp.logaddexp(log_v, positive)),
        )
        compute = functools.partial(gradients, tiling, scale)
        found = visit_all(kind, compute, own, join=jnp.add, nothing=0.0, axis=axis, size=_size(mesh, axis))
        # The weight of the positive minus 1 is minus the weight of all negatives.
        negatives = (jax.nn.sigmoid(log_u - positive) + jax.nn.sigmoid(log_v - positive))[:, None]
        return found.u - negatives * v, found.v - negatives * u

    du, dv = _spread(local, mesh, axis, 5)(u, v, log_u, log_v, positive, scale)
    factor = cotangent / (2 * u.shape[0])
    # Both sums count every logit, once for each of its rows.
    return factor * scale * du, factor * scale * dv, 0.5 * factor * (jnp.sum(u * du) + jnp.sum(v * dv))


_loss.defvjp(_forward, _backward)


def _checked_axis(mesh: Mesh | None, axis: str | None, rows: int) -> str | None:
    """The mesh axis to split the rows over, named and checked."""
    if mesh is None:
        if axis is not None:
            raise ValueError(f"axis '{axis}' needs the mesh that it belongs to, found mesh=None")
        return None
    if axis is None:
        if len(mesh.axis_names) != 1:
            raise ValueError(f"axis must name one of the mesh's axes {mesh.axis_names}, found None")
        (axis,) = mesh.axis_names
    if axis not in mesh.axis_names:
        raise ValueError(f"axis must be one of the mesh's axes {mesh.axis_names}, found '{axis}'")
    if rows % mesh.shape[axis]:
        raise ValueError(f"axis '{axis}' must divide the batch, found {mesh.shape[axis]} devices and {rows} rows")
    return axis


def _samples(rows: jax.Array, axis: str | None) -> jax.Array:
    """The indices of this device's samples in the global batch."""
    count = rows.shape[0]
    first = 0 if axis is None else jax.lax.axis_index(axis).astype(jnp.int32) * count
    return first + jnp.arange(count, dtype=jnp.int32)


def _size(mesh: Mesh | None, axis: str | None) -> int:
    return 1 if mesh is None or axis is None else mesh.shape[axis]


def _spread(function: Callable, mesh: Mesh | None, axis: str | None, rows: int) -> Callable:
    """Runs a function on every device's share of its first `rows` arguments; the scale, the last, goes to all."""
    if mesh is None:
        return function
    split = PartitionSpec(axis)
    return jax.shard_map(function, mesh=mesh, in_specs=(*(split,) * rows, PartitionSpec()), out_specs=split)


def _split_rows(x: jax.Array, mesh: Mesh, axis: str | None) -> jax.Array:
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    if dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[axis] == AxisType.Explicit:
        return jax.sharding.reshard(x, sharding)
    return jax.lax.with_sharding_constraint(x, sharding)
