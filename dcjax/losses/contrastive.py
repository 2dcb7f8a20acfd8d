"""InfoNCE and NT-Xent, with all logits in memory, tile by tile, or split over a mesh: value and gradient are the same.

Both compute in the dtype of the embeddings, but never below float32: bfloat16 rows are widened before they are
normalised. The similarity products name their precision, because a float32 product is TF32 by default on a GPU and
bfloat16 on a TPU.

With O the sum of exp(logit) over the negatives of a row and s its positive's logit, both losses are the mean over the
2n rows of softplus(log O - s). The positive is never added to O: where it dominates, rounding would erase the digits of
a small loss and gradient.
"""

import inspect
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import logsumexp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from dcjax.losses.tile_sums import EMPTY
from dcjax.losses.tiled import mean_loss, tiled_loss

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
      temperature: the divisor of the cosine similarities; positive, no unit.
      block_size: rows and columns of a tile; the logits are then never held as a whole, and memory is linear in n. None
        computes all of them at once, or with a mesh chooses a size that suits the device.
      mesh: the devices that share the rows. They pass the rows around, and none holds all of them; the loss equals that
        of one device. Works inside and outside `jax.jit` with Auto axes, and with Explicit ones inside `jax.jit` or
        under `jax.set_mesh`.
      axis: the mesh axis to split over; None for the mesh's only one.

    Returns:
      The loss, a scalar in nats; 0 for n = 1.

    Raises:
      ValueError: the shapes differ or are not `[n, d]`, the temperature is not positive and finite, the block size is
        below 1, or the axis is ambiguous, not in the mesh, or does not divide n.

    References:
      Jing et al., ICLR 2022, section 6 (the DirectCLR loss, with the sign mended and the temperature of its
      experiments).
    """
    u, v, temperature = _checked(z, z_prime, temperature)
    if block_size is not None or mesh is not None or axis is not None:
        return tiled_loss("info_nce", u, v, temperature=temperature, block_size=block_size, mesh=mesh, axis=axis)
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
      temperature: the divisor of the cosine similarities; positive, no unit.
      block_size: rows and columns of a tile; the logits are then never held as a whole, and memory is linear in n. None
        computes all of them at once, or with a mesh chooses a size that suits the device.
      mesh: the devices that share the rows. They pass the rows around, and none holds all of them; the loss equals that
        of one device. Works inside and outside `jax.jit` with Auto axes, and with Explicit ones inside `jax.jit` or
        under `jax.set_mesh`.
      axis: the mesh axis to split over; None for the mesh's only one.

    Returns:
      The loss, the mean over the 2n rows, a scalar in nats; 0 for n = 1.

    Raises:
      ValueError: the shapes differ or are not `[n, d]`, the temperature is not positive and finite, the block size is
        below 1, or the axis is ambiguous, not in the mesh, or does not divide n.

    References:
      Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, eq. 1.
    """
    u, v, temperature = _checked(z, z_prime, temperature)
    if block_size is not None or mesh is not None or axis is not None:
        return tiled_loss("nt_xent", u, v, temperature=temperature, block_size=block_size, mesh=mesh, axis=axis)
    rows = jnp.concatenate([u, v])  # [2n, d]
    samples = jnp.tile(jnp.arange(z.shape[0]), 2)
    log_u, log_v = jnp.split(logsumexp(_negatives(rows, rows, samples, temperature), axis=1), 2)
    return mean_loss(log_u, log_v, jnp.sum(u * v, axis=1) / temperature)


# A loss is a function of `(z, z_prime, *, temperature)`. One that can be computed by tiles also has `block_size` and
# `mesh`.
LOSSES: dict[str, Callable[..., jax.Array]] = {"info_nce": info_nce, "nt_xent": nt_xent}
# The number of candidates among which a loss looks for the positive, by the number of pairs; absent for a loss that has
# no such number.
CANDIDATES: dict[str, Callable[[int], int]] = {"info_nce": lambda pairs: pairs, "nt_xent": lambda pairs: 2 * pairs - 1}


def chance_loss(name: str, pairs: int) -> float | None:
    """The loss of embeddings that tell nothing apart: the logarithm of the number of candidates, in nats.

    Every similarity is then the same, whatever the temperature. A run whose loss stays there learns nothing.

    Args:
      name: a key of `LOSSES`.
      pairs: n, the pairs of views in the batch.

    Returns:
      ln n for `info_nce` and ln (2n - 1) for `nt_xent`; None for a loss without candidates.
    """
    return math.log(CANDIDATES[name](pairs)) if name in CANDIDATES else None


def takes_blocks(loss: Callable[..., jax.Array]) -> bool:
    """Whether a loss has the parameters `block_size` and `mesh`, which bound its memory."""
    return {"block_size", "mesh"} <= inspect.signature(loss).parameters.keys()


def _negatives(
    a: Float[Array, "n d"], b: Float[Array, "n d"], samples: Int[Array, " n"], temperature: float | Scalar
) -> Float[Array, "n n"]:
    """The logits of all rows against all; `EMPTY`, of weight 0, between rows of the same sample."""
    logits = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST) / temperature
    return jnp.where(samples[:, None] == samples[None, :], EMPTY, logits)


def _checked(
    z: Rows, z_prime: Rows, temperature: float | Scalar
) -> tuple[Float[Array, "n d"], Float[Array, "n d"], float | Scalar]:
    """Returns the unit rows of both views in one dtype, and the temperature, as a float unless it is traced."""
    if z.ndim != 2 or z.shape != z_prime.shape or z.shape[0] < 1:
        raise ValueError(
            f"z and z_prime must be two arrays of one shape [n, d] with n >= 1, found {z.shape} and {z_prime.shape}"
        )
    # A learned temperature is traced and has no value to check.
    if not isinstance(temperature, Tracer):
        temperature = float(temperature)
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature must be positive and finite, found {temperature:g}")
    dtype = jnp.promote_types(z.dtype, z_prime.dtype)
    return unit_rows(jnp.asarray(z, dtype)), unit_rows(jnp.asarray(z_prime, dtype)), temperature
