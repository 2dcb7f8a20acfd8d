"""How the singular vectors of two adjacent layers align: the quantities of Theorems 2 and 3 and of appendix A."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dcjax.runtime.errors import SettingError
from dcjax.toy.validation import check_finite, check_layers, check_symmetric

Layer1 = Float[Array | np.ndarray, "h d"]
Layer2 = Float[Array | np.ndarray, "m h"]

_dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def conserved_quantity(w1: Layer1, w2: Layer2) -> Float[Array, "h h"]:
    """C = W1 W1^T - W2^T W2, which the gradient flow of two linear layers leaves as it is, whatever the loss.

    SGD with learning rate h lets it drift by O(h). Layers with C = 0 are called balanced; they are aligned and stay so.

    Args:
      w1: `[h, d]`, the first layer.
      w2: `[m, h]`, the second layer.

    Returns:
      C, `[h, h]`.

    Raises:
      ValueError: shapes that do not fit, or entries that are not finite.

    References:
      Jing et al., ICLR 2022, eq. 10.
    """
    check_layers(w1, w2)
    w1, w2 = jnp.asarray(w1), jnp.asarray(w2)
    return _dot(w1, w1.T) - _dot(w2.T, w2)


def alignment_matrix(w1: Layer1, w2: Layer2) -> Float[Array, "k l"]:
    """A = V2^T U1: how the right singular vectors of the second layer lie to the left ones of the first.

    Args:
      w1: `[h, d]`, the first layer.
      w2: `[m, h]`, the second layer.

    Returns:
      A, `[min(m, h), min(h, d)]`, the pairs in the order of descending singular values. Signs are those that the SVD
      happens to choose, so read |A|; where singular values coincide only the block that they span has a meaning.

    Raises:
      ValueError: shapes that do not fit, or entries that are not finite.

    References:
      Jing et al., ICLR 2022, Theorem 2: A -> I on the directions whose squared singular value dominates the conserved
      C. As printed, for all directions, it does not hold (experiments/theory.md).
    """
    check_layers(w1, w2)
    u1 = jnp.linalg.svd(jnp.asarray(w1), full_matrices=False)[0]
    v2_transposed = jnp.linalg.svd(jnp.asarray(w2), full_matrices=False)[2]
    return _dot(v2_transposed, u1)


def aligned_rates(
    sigma1: Float[Array | np.ndarray, " k"],
    sigma2: Float[Array | np.ndarray, " k"],
    v1: Float[Array | np.ndarray, "d k"],
    x_matrix: Float[Array | np.ndarray, "d d"],
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """The rates of the singular values of two aligned layers: s1_k' = s1_k s2_k^2 m_k and s2_k' = s2_k s1_k^2 m_k.

    m_k = v1_k^T X v1_k. Aligned means V2 = U1 (the paper prints V2 = U1^T). Each rate grows with the value itself: what
    is small stays small, the second cause of collapse.

    Args:
      sigma1: `[k]`, singular values of the first layer.
      sigma2: `[k]`, singular values of the second layer.
      v1: `[d, k]`, right singular vectors of the first layer, as columns.
      x_matrix: `[d, d]`, X; symmetric.

    Returns:
      `(s1', s2')`, both `[k]`.

    Raises:
      ValueError: shapes that do not fit, entries that are not finite, an X that is not symmetric.

    References:
      Jing et al., ICLR 2022, Theorem 3 (eq. 11).
    """
    if v1.ndim != 2 or sigma1.shape != (v1.shape[1],) or sigma2.shape != sigma1.shape:
        raise SettingError(
            f"sigma1, sigma2 and v1 must have the shapes [k], [k] and [d, k], found {sigma1.shape}, {sigma2.shape} and "
            f"{v1.shape}"
        )
    check_finite(sigma1=sigma1, sigma2=sigma2, v1=v1)
    check_symmetric(x_matrix, size=v1.shape[0])
    sigma1, sigma2, v1 = jnp.asarray(sigma1), jnp.asarray(sigma2), jnp.asarray(v1)
    m = jnp.sum(v1 * _dot(x_matrix, v1), axis=0)
    return sigma1 * jnp.square(sigma2) * m, sigma2 * jnp.square(sigma1) * m


def singular_value_velocity(
    w: Float[Array | np.ndarray, "m d"], velocity: Float[Array | np.ndarray, "m d"]
) -> Float[Array, " k"]:
    """The rates of a matrix's singular values along any flow: s_k' = u_k^T W' v_k.

    Args:
      w: `[m, d]`, with distinct singular values.
      velocity: `[m, d]`, W'.

    Returns:
      `[min(m, d)]`, in the order of descending singular values.

    Raises:
      ValueError: shapes that differ, or entries that are not finite.

    References:
      Jing et al., ICLR 2022, Lemma 4 of appendix A.
    """
    if w.ndim != 2 or w.shape != velocity.shape:
        raise SettingError(f"w and velocity must be two matrices of one shape, found {w.shape} and {velocity.shape}")
    check_finite(w=w, velocity=velocity)
    u, _, v_transposed = jnp.linalg.svd(jnp.asarray(w), full_matrices=False)
    return jnp.sum(u * _dot(velocity, v_transposed.T), axis=0)


def alignment_velocity(
    w1: Float[Array | np.ndarray, "d d"],
    w2: Float[Array | np.ndarray, "d d"],
    gradient: Float[Array | np.ndarray, "d d"],
) -> tuple[Float[Array, "d d"], Float[Array, "d d"]]:
    """The alignment matrix of two square layers and its rate along the gradient flow.

    A' = -A (H1 * (A^T F + F^T A)) + (H2 * (A F^T + F A^T)) A, elementwise products, with F = S2 U2^T G V1 S1 and
    H_kl = 1 / (s_l^2 - s_k^2) off the diagonal, 0 on it, of the first and the second layer. (The paper prints H with
    the opposite sign.)

    Args:
      w1: `[d, d]`, the first layer, with distinct singular values.
      w2: `[d, d]`, the second layer, with distinct singular values.
      gradient: `[d, d]`, G = dL/d(W2 W1).

    Returns:
      `(A, A')`, both `[d, d]`; A with the signs of this call's singular vectors, A' belongs to them.

    Raises:
      ValueError: layers that are not square and of one size, or entries that are not finite.

    References:
      Jing et al., ICLR 2022, Lemma 6 of appendix A (sign corrected).
    """
    check_layers(w1, w2)
    if len({*w1.shape, *w2.shape, *gradient.shape}) != 1 or gradient.ndim != 2:
        raise SettingError(
            f"w1, w2 and gradient must be square and of one size, found {w1.shape}, {w2.shape} and {gradient.shape}"
        )
    check_finite(gradient=gradient)
    u1, s1, v1_transposed = jnp.linalg.svd(jnp.asarray(w1))
    u2, s2, v2_transposed = jnp.linalg.svd(jnp.asarray(w2))
    a = _dot(v2_transposed, u1)
    f = s2[:, None] * _dot(_dot(u2.T, gradient), v1_transposed.T) * s1[None, :]
    first = _dot(a.T, f)
    second = _dot(a, f.T)
    turn1 = _inverse_gaps(s1) * (first + first.T)
    turn2 = _inverse_gaps(s2) * (second + second.T)
    return a, _dot(turn2, a) - _dot(a, turn1)


def _inverse_gaps(s: jax.Array) -> jax.Array:
    difference = jnp.square(s)[None, :] - jnp.square(s)[:, None]
    diagonal = jnp.eye(s.shape[0], dtype=bool)
    return jnp.where(diagonal, 0, 1 / jnp.where(diagonal, 1, difference))
