"""InfoNCE and NT-Xent with all the logits in memory.

Both work in the dtype of the embeddings, but never below float32: bfloat16 rows are widened before they are normalised.
The similarity product names its precision, because a float32 product is TF32 by default on a GPU and bfloat16 on a TPU.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from dcjax.errors import SettingError

Rows = Float[Array | np.ndarray, "n d"]


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


def info_nce(z: Rows, z_prime: Rows, *, temperature: float) -> Float[Array, ""]:
    """Cross-view InfoNCE on L2-normalised rows, the mean of both directions.

    Row i of `z` has its positive in row i of `z_prime` and its negatives in the other rows of `z_prime`, and the
    other way round: 1/2 mean_i [CE(s_i., i) + CE(s_.i, i)] with s_ij = cos(z_i, z'_j) / temperature.

    Args:
      z: `[n, d]` embeddings of the first views.
      z_prime: `[n, d]` embeddings of the second views.
      temperature: divides the cosine similarities; positive, no unit.

    Returns:
      The loss, a scalar in nats; 0 for n = 1.

    Raises:
      ValueError: shapes that differ or are not `[n, d]`, or a temperature that is not positive.

    References:
      Jing et al., ICLR 2022, section 6 (the DirectCLR loss, with the sign mended and the temperature of its
      experiments).
    """
    _check(z, z_prime, temperature)
    logits = _similarity(unit_rows(z), unit_rows(z_prime)) / temperature  # [n, n]
    positive = jnp.diagonal(logits)
    return 0.5 * jnp.mean(logsumexp(logits, axis=1) + logsumexp(logits, axis=0) - 2 * positive)


def nt_xent(z: Rows, z_prime: Rows, *, temperature: float) -> Float[Array, ""]:
    """NT-Xent: cross-entropy among the 2n-1 other rows of both views, L2-normalised.

    Args:
      z: `[n, d]` embeddings of the first views.
      z_prime: `[n, d]` embeddings of the second views.
      temperature: divides the cosine similarities; positive, no unit.

    Returns:
      The loss, the mean over the 2n rows, a scalar in nats; 0 for n = 1.

    Raises:
      ValueError: shapes that differ or are not `[n, d]`, or a temperature that is not positive.

    References:
      Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, eq. 1.
    """
    _check(z, z_prime, temperature)
    n = z.shape[0]
    rows = unit_rows(jnp.concatenate([z, z_prime]))  # [2n, d]
    logits = _similarity(rows, rows) / temperature  # [2n, 2n]
    others = jnp.where(jnp.eye(2 * n, dtype=bool), -jnp.inf, logits)
    positive = jnp.diagonal(logits, offset=n)  # the matrix is symmetric: these serve both halves
    return jnp.mean(logsumexp(others, axis=1) - jnp.concatenate([positive, positive]))


LOSSES: dict[str, Callable[..., jax.Array]] = {"info_nce": info_nce, "nt_xent": nt_xent}


def _similarity(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _check(z: Rows, z_prime: Rows, temperature: float) -> None:
    if z.ndim != 2 or z.shape != z_prime.shape or z.shape[0] < 1:
        raise SettingError(
            f"the two views must be two arrays of one shape [n, d] with n >= 1, found {z.shape} and {z_prime.shape}"
        )
    # A learnable temperature is an array, and traced: it has no value to check.
    if not isinstance(temperature, jax.Array) and not (temperature > 0 and math.isfinite(temperature)):
        raise SettingError(f"loss.temperature must be positive and finite, found {temperature}")
