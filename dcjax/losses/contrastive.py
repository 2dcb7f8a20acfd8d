"""InfoNCE and NT-Xent: with all the logits in memory, tile by tile, or split over a mesh, to the same value and
gradient.

All work in the dtype of the embeddings, but never below float32: bfloat16 rows are widened before they are normalised.
The similarity products name their precision, because a float32 product is TF32 by default on a GPU and bfloat16 on a
TPU.

With O the sum of exp(logit) over the negatives of a row and s its positive's logit, both losses are the mean over the
2n rows of softplus(log O - s). The positive is never added to O: where it dominates, what is left of 1 after rounding
would not tell how small the loss and its gradient are.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import logsumexp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from dcjax.losses.logits import EMPTY
from dcjax.losses.tiled import check_mesh, mean_loss, tiled_loss
from dcjax.runtime.errors import SettingError

Rows = Float[Array | np.ndarray, "n d"]
Scalar = Float[Array, ""]


def unit_rows(z: Rows) -> Float[Array, "n d"]:
    """Divides every row by its Euclidean norm; a zero row stays zero and has a zero gradient.

    Args:
      z: `[n, d]`, any floating dtype.

    Returns:
      `[n, d]` in float32, or float64 where `z` is.
    """
    z = jnp.asarray(z, jnp.promote_types(z.dtype, jnp.float32))
    # Scaling by the largest entry first keeps the squares of very large and very small rows in range. The result does
    # not depend on the scale, so no gradient needs to pass through it.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(z), axis=1, keepdims=True))
    zero = largest == 0
    scaled = z / jnp.where(zero, 1, largest)
    squared = jnp.sum(jnp.square(scaled), axis=1, keepdims=True)
    return jnp.where(zero, 0, scaled * jax.lax.rsqrt(jnp.where(zero, 1, squared)))


def info_nce(
    z: Rows,
    z_prime: Rows,
    *,
    temperature: float | Scalar,
    block_size: int | None = None,
    mesh: Mesh | None = None,
    axis: str | None = None,
) -> Scalar:
    """Cross-view InfoNCE on L2-normalised rows, the mean of both directions.

    Row i of `z` has its positive in row i of `z_prime` and its negatives in the other rows of `z_prime`, and the
    other way round: 1/2 mean_i [CE(s_i., i) + CE(s_.i, i)] with s_ij = cos(z_i, z'_j) / temperature.

    Args:
      z: `[n, d]` embeddings of the first views.
      z_prime: `[n, d]` embeddings of the second views.
      temperature: divides the cosine similarities; positive, no unit.
      block_size: rows and columns of a tile; the logits are then never held as a whole, and memory is linear in n. None
        for all of them at once, or with a mesh for a size that suits the device.
      mesh: splits the rows over the devices of a mesh, which pass them around: no device holds all of them. The result
        is that of one device. Works inside and outside `jax.jit` with Auto axes, and with Explicit ones inside
        `jax.jit` or under `jax.set_mesh`.
      axis: the mesh axis to split over; None for the mesh's only one.

    Returns:
      The loss, a scalar in nats; 0 for n = 1.

    Raises:
      ValueError: shapes that differ or are not `[n, d]`, a temperature that is not positive, a block size below 1, a
        mesh whose axis is not named, not there, or does not divide n.

    References:
      Jing et al., ICLR 2022, section 6 (the DirectCLR loss, with the sign mended and the temperature of its
      experiments).
    """
    u, v, temperature = _checked(z, z_prime, temperature)
    if block_size is not None or mesh is not None or axis is not None:
        return _tiled("info_nce", u, v, temperature, block_size, mesh, axis)
    samples = jnp.arange(z.shape[0])
    negatives = _negatives(u, v, samples, temperature)  # [n, n]
    return mean_loss(logsumexp(negatives, axis=1), logsumexp(negatives, axis=0), jnp.sum(u * v, axis=1) / temperature)


def nt_xent(
    z: Rows,
    z_prime: Rows,
    *,
    temperature: float | Scalar,
    block_size: int | None = None,
    mesh: Mesh | None = None,
    axis: str | None = None,
) -> Scalar:
    """NT-Xent: cross-entropy among the 2n-1 other rows of both views, L2-normalised.

    Args:
      z: `[n, d]` embeddings of the first views.
      z_prime: `[n, d]` embeddings of the second views.
      temperature: divides the cosine similarities; positive, no unit.
      block_size: rows and columns of a tile; the logits are then never held as a whole, and memory is linear in n. None
        for all of them at once, or with a mesh for a size that suits the device.
      mesh: splits the rows over the devices of a mesh, which pass them around: no device holds all of them. The result
        is that of one device. Works inside and outside `jax.jit` with Auto axes, and with Explicit ones inside
        `jax.jit` or under `jax.set_mesh`.
      axis: the mesh axis to split over; None for the mesh's only one.

    Returns:
      The loss, the mean over the 2n rows, a scalar in nats; 0 for n = 1.

    Raises:
      ValueError: shapes that differ or are not `[n, d]`, a temperature that is not positive, a block size below 1, a
        mesh whose axis is not named, not there, or does not divide n.

    References:
      Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, eq. 1.
    """
    u, v, temperature = _checked(z, z_prime, temperature)
    if block_size is not None or mesh is not None or axis is not None:
        return _tiled("nt_xent", u, v, temperature, block_size, mesh, axis)
    rows = jnp.concatenate([u, v])  # [2n, d]
    samples = jnp.tile(jnp.arange(z.shape[0]), 2)
    log_u, log_v = jnp.split(logsumexp(_negatives(rows, rows, samples, temperature), axis=1), 2)
    return mean_loss(log_u, log_v, jnp.sum(u * v, axis=1) / temperature)


LOSSES: dict[str, Callable[..., jax.Array]] = {"info_nce": info_nce, "nt_xent": nt_xent}


def _tiled(
    kind: str,
    u: Float[Array, "n d"],
    v: Float[Array, "n d"],
    temperature: float | Scalar,
    block_size: int | None,
    mesh: Mesh | None,
    axis: str | None,
) -> Scalar:
    axis = check_mesh(mesh, axis, rows=u.shape[0])
    return tiled_loss(kind, u, v, temperature=temperature, block_size=block_size, mesh=mesh, axis=axis)


def _negatives(
    a: Float[Array, "n d"], b: Float[Array, "n d"], samples: Int[Array, " n"], temperature: float | Scalar
) -> Float[Array, "n n"]:
    """The logits of all rows against all, but for those of one sample, which weigh nothing."""
    logits = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST) / temperature
    return jnp.where(samples[:, None] == samples[None, :], EMPTY, logits)


def _checked(
    z: Rows, z_prime: Rows, temperature: float | Scalar
) -> tuple[Float[Array, "n d"], Float[Array, "n d"], float | Scalar]:
    """The unit rows of both views in one dtype, and the temperature, as a number unless it is traced."""
    if z.ndim != 2 or z.shape != z_prime.shape or z.shape[0] < 1:
        raise SettingError(
            f"the two views must be two arrays of one shape [n, d] with n >= 1, found {z.shape} and {z_prime.shape}"
        )
    # A temperature that is being learned has no value to check.
    if not isinstance(temperature, Tracer):
        temperature = float(temperature)
        if not (temperature > 0 and math.isfinite(temperature)):
            raise SettingError(f"loss.temperature must be positive and finite, found {temperature:g}")
    dtype = jnp.promote_types(z.dtype, z_prime.dtype)
    return unit_rows(jnp.asarray(z, dtype)), unit_rows(jnp.asarray(z_prime, dtype)), temperature
