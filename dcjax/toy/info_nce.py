"""The paper's loss and what its analysis makes of it: eqs. 2, 4, 6 and 7, exactly.

Everything here is a pure function of arrays whose rows are samples: no loop over samples, any floating dtype, batched
by `jax.vmap`, differentiable. Distances come from one matrix product of centred rows, so that d_ij is exact to about
the dtype's rounding times max |z_i - mean|^2. Three formulas differ from their printed form: a_ii is divided by Z_i
like every other weight, the first bracket of eq. 6 has a plus sign, and the sum in S0 runs over ordered pairs; each is
checked against automatic differentiation in tests/toy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from dcjax.toy.validation import check_views, check_weights

Rows = Float[Array | np.ndarray, "n d"]
Weights = Float[Array | np.ndarray, "n n"]

# float32 products are TF32 by default on a GPU and bfloat16 on a TPU.
_dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def info_nce(z: Rows, z_prime: Rows) -> Float[Array, ""]:
    """The contrastive loss of the analysis: embeddings as they are, negatives from the first view alone.

    L = sum_i [d_ii' + logsumexp({-d_ij : j != i}, -d_ii')] with d_ij = |z_i - z_j|^2 / 2 and d_ii' = |z_i - z'_i|^2 /
    2. It is the sum over the samples; `dcjax.losses.info_nce` is the normalised cross-view loss of the experiments.

    Args:
      z: `[n, d]`, embeddings of the first views.
      z_prime: `[n, d]`, embeddings of the second views.

    Returns:
      The loss, a scalar in nats.

    Raises:
      ValueError: shapes that differ or are not `[n, d]` with n >= 2, or entries that are not finite.

    References:
      Jing et al., ICLR 2022, eq. 2.
    """
    logits = _logits(z, z_prime)
    return jnp.sum(logsumexp(logits, axis=1) - jnp.diagonal(logits))


def softmax_weights(z: Rows, z_prime: Rows) -> Float[Array, "n n"]:
    """The softmax weights alpha: a_ij of the negatives off the diagonal, a_ii of the positive on it.

    a_ij = exp(-d_ij) / Z_i and a_ii = exp(-d_ii') / Z_i, where Z_i is the sum of the numerators of row i. (The slides
    leave out Z_i in a_ii.) The matrix is not symmetric.

    Args:
      z: `[n, d]`, embeddings of the first views.
      z_prime: `[n, d]`, embeddings of the second views.

    Returns:
      `[n, n]`; every row sums to 1.

    Raises:
      ValueError: as `info_nce`.

    References:
      Jing et al., ICLR 2022, below eq. 4.
    """
    return jax.nn.softmax(_logits(z, z_prime), axis=1)


def embedding_gradients(z: Rows, z_prime: Rows) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
    """The gradients of `info_nce` with respect to the two embeddings, in closed form.

    g_i = sum_{j != i} a_ij (z_j - z'_i) + sum_{j != i} a_ji (z_j - z_i) and g'_i = (1 - a_ii) (z'_i - z_i).

    Args:
      z: `[n, d]`, embeddings of the first views.
      z_prime: `[n, d]`, embeddings of the second views.

    Returns:
      `(g, g')`, both `[n, d]`.

    Raises:
      ValueError: as `info_nce`.

    References:
      Jing et al., ICLR 2022, eq. 4.
    """
    alpha = softmax_weights(z, z_prime)
    z, z_prime = _centred(z, z_prime)
    off, rows, columns = _negatives(alpha)
    gradient = _dot(off, z) + _dot(off.T, z) - columns[:, None] * z - rows[:, None] * z_prime
    return gradient, rows[:, None] * (z_prime - z)


def interaction_matrix(x: Rows, x_prime: Rows, alpha: Weights) -> Float[Array, "d d"]:
    """The matrix X of the gradient flow W' = W X of a linear model z = W x, at the weights alpha of its embeddings.

    X = sum_i [sum_{j != i} a_ij (x'_i - x_j) + sum_{j != i} a_ji (x_i - x_j)] x_i^T - sum_i (1 - a_ii) (x'_i - x_i)
    x'_i^T. The paper prints a minus sign before the first bracket; with it, neither G = -W X (eq. 5) nor eq. 7 holds.

    Args:
      x: `[n, d]`, inputs of the first view.
      x_prime: `[n, d]`, inputs of the second view.
      alpha: `[n, n]`, `softmax_weights` of the embeddings.

    Returns:
      X, `[d, d]`: symmetric up to rounding. For the mean over the samples instead of the sum divide by n.

    Raises:
      ValueError: shapes that do not fit, n < 2, or entries that are not finite.

    References:
      Jing et al., ICLR 2022, eq. 6 (sign corrected).
    """
    check_views(x, x_prime, names=("x", "x_prime"))
    check_weights(x.shape[0], alpha)
    x, x_prime = _centred(x, x_prime)
    off, rows, columns = _negatives(jnp.asarray(alpha))
    bracket = rows[:, None] * x_prime - _dot(off, x) + columns[:, None] * x - _dot(off.T, x)
    return _dot(bracket.T, x) - _dot((rows[:, None] * (x_prime - x)).T, x_prime)


def covariance_split(x: Rows, x_prime: Rows, alpha: Weights) -> tuple[Float[Array, "d d"], Float[Array, "d d"]]:
    """The two positive semi-definite matrices whose difference is X: the data's covariance and the augmentation's.

    S0 = sum over ordered pairs (i, j) of a_ij (x_i - x_j) (x_i - x_j)^T and S1 = sum_i (1 - a_ii) (x'_i - x_i) (x'_i -
    x_i)^T. Where the augmentation is stronger than the data, X = S0 - S1 has negative eigenvalues.

    Args:
      x: `[n, d]`, inputs of the first view.
      x_prime: `[n, d]`, inputs of the second view.
      alpha: `[n, n]`, `softmax_weights` of the embeddings.

    Returns:
      `(S0, S1)`, both `[d, d]` and symmetric.

    Raises:
      ValueError: as `interaction_matrix`.

    References:
      Jing et al., ICLR 2022, eq. 7 (Lemma 2).
    """
    check_views(x, x_prime, names=("x", "x_prime"))
    check_weights(x.shape[0], alpha)
    x, x_prime = _centred(x, x_prime)
    off, rows, columns = _negatives(jnp.asarray(alpha))
    # sum_ij a_ij (x_i - x_j)(x_i - x_j)^T = x^T (diag(r + c) - off - off^T) x, a weighted graph Laplacian.
    laplacian = jnp.diag(rows + columns) - off - off.T
    data = _dot(x.T, _dot(laplacian, x))
    noise = jnp.sqrt(rows)[:, None] * (x_prime - x)
    return 0.5 * (data + data.T), _dot(noise.T, noise)


def _logits(z: Rows, z_prime: Rows) -> jax.Array:
    """-d_ij off the diagonal and -d_ii' on it, `[n, n]`."""
    check_views(z, z_prime, names=("z", "z_prime"))
    z, z_prime = _centred(z, z_prime)
    half = 0.5 * jnp.sum(jnp.square(z), axis=1)
    positive = -0.5 * jnp.sum(jnp.square(z - z_prime), axis=1)
    logits = _dot(z, z.T) - half[:, None] - half[None, :]
    return jnp.where(jnp.eye(z.shape[0], dtype=bool), positive[:, None], logits)


def _centred(x: Rows, x_prime: Rows) -> tuple[jax.Array, jax.Array]:
    """Both views less the mean of the first: nothing here depends on the origin, but rounding does."""
    x, x_prime = jnp.asarray(x), jnp.asarray(x_prime)
    mean = jnp.mean(x, axis=0, keepdims=True)
    return x - mean, x_prime - mean


def _negatives(alpha: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The weights of the negatives `[n, n]`, their row sums (1 - a_ii without its rounding) and their column sums."""
    off = jnp.where(jnp.eye(alpha.shape[0], dtype=bool), 0, alpha)
    return off, jnp.sum(off, axis=1), jnp.sum(off, axis=0)
