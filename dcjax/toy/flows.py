"""Solutions of the paper's gradient flows with X held fixed, and an adaptive integrator to compare them with.

Time is that of the flow, W' = -dL/dW: n steps of SGD with learning rate h take about the time n h.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import expm
from jaxtyping import Array, Float

from dcjax.runtime.errors import SettingError
from dcjax.toy.validation import check_finite, check_layers, check_symmetric, check_time, concrete

Matrix = Float[Array | np.ndarray, "m d"]
Time = float | int | np.floating | Float[Array | np.ndarray, "..."]

_dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def linear_flow(w0: Matrix, x_matrix: Float[Array | np.ndarray, "d d"], t: Time) -> Float[Array, "*t m d"]:
    """W(t) = W(0) expm(X t), the solution of W' = W X.

    Args:
      w0: `[m, d]`, the weights at time 0.
      x_matrix: `[d, d]`, X; symmetric.
      t: a time, or `[times]`.

    Returns:
      `[m, d]`, or `[times, m, d]`. NaN where exp(X t) overflows, or where |X t| is above a million.

    Raises:
      ValueError: shapes that do not fit, entries that are not finite, an X that is not symmetric, a negative time.

    References:
      Jing et al., ICLR 2022, Theorem 1. "Rank deficient" is to be read relatively: where X has positive eigenvalues
      W(t) grows without bound, and it is the ratio of its singular values that vanishes.
    """
    return _over_times(_linear_step, *_linear(w0, x_matrix, t))


def linear_flow_spectral(w0: Matrix, x_matrix: Float[Array | np.ndarray, "d d"], t: Time) -> Float[Array, "*t m d"]:
    """`linear_flow` by the eigenvalues of X: W(t) = sum_k exp(lambda_k t) W(0) v_k v_k^T.

    This is the form that shows the collapse: W(t) v_k shrinks exactly like exp(lambda_k t) where lambda_k < 0. Its
    gradient with respect to X needs distinct eigenvalues; that of `linear_flow` does not.

    Args:
      w0: `[m, d]`, the weights at time 0.
      x_matrix: `[d, d]`, X; symmetric.
      t: a time, or `[times]`.

    Returns:
      `[m, d]`, or `[times, m, d]`.

    Raises:
      ValueError: as `linear_flow`.

    References:
      Jing et al., ICLR 2022, proof of Theorem 1.
    """
    return _over_times(_spectral_step, *_linear(w0, x_matrix, t))


def two_layer_velocity(
    w1: Float[Array | np.ndarray, "h d"],
    w2: Float[Array | np.ndarray, "m h"],
    x_matrix: Float[Array | np.ndarray, "d d"],
) -> tuple[Float[Array, "h d"], Float[Array, "m h"]]:
    """The flow of two linear layers: W1' = -W2^T G and W2' = -G W1^T with G = -W2 W1 X.

    Args:
      w1: `[h, d]`, the first layer.
      w2: `[m, h]`, the second layer.
      x_matrix: `[d, d]`, X; symmetric.

    Returns:
      `(W1', W2')`.

    Raises:
      ValueError: shapes that do not fit, entries that are not finite, an X that is not symmetric.

    References:
      Jing et al., ICLR 2022, eqs. 8 and 9 (Lemma 3).
    """
    check_layers(w1, w2)
    check_symmetric(x_matrix, size=w1.shape[1])
    descent = _dot(_dot(w2, w1), x_matrix)  # -G
    return _dot(jnp.asarray(w2).T, descent), _dot(descent, jnp.asarray(w1).T)


def two_layer_flow(
    w1: Float[Array | np.ndarray, "h d"],
    w2: Float[Array | np.ndarray, "m h"],
    x_matrix: Float[Array | np.ndarray, "d d"],
    t: Time,
    *,
    steps: int = 1000,
) -> tuple[Float[Array, "h d"], Float[Array, "m h"]]:
    """The flow of two linear layers with X fixed, by exact steps of one layer at a time.

    With W2 frozen the first layer solves a linear equation, W1(h) = Q [(Q^T W1 V) * exp(a_i x_j h)] V^T with
    W2^T W2 = Q a Q^T and X = V x V^T; with W1 frozen, W2(h) = W2 expm(W1 X W1^T h). Half a step of the first, one of
    the second and half a step of the first again are of second order: four times the steps, a sixteenth of the error.

    Args:
      w1: `[h, d]`, the first layer at time 0.
      w2: `[m, h]`, the second layer at time 0.
      x_matrix: `[d, d]`, X; symmetric.
      t: the time to go to.
      steps: how many equal steps to take.

    Returns:
      `(W1(t), W2(t))`. With a positive eigenvalue in X the flow reaches infinity in a finite time (`blow_up_time` tells
      it for aligned layers); past it the result is meaningless, and not finite only where the steps
      are many.

    Raises:
      ValueError: shapes that do not fit, entries that are not finite, an X that is not symmetric, a negative time,
        fewer than one step.

    References:
      Jing et al., ICLR 2022, Lemma 3; the splitting is Strang's (SIAM J. Numer. Anal. 5, 1968).
    """
    check_layers(w1, w2)
    check_symmetric(x_matrix, size=w1.shape[1])
    check_time(t)
    if jnp.ndim(t):
        raise SettingError(f"t must be one number, found the shape {jnp.shape(t)}")
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise SettingError(f"steps must be a whole number of at least 1, found {steps}")
    dtype = jnp.result_type(w1, w2, 0.0)
    return _split_flow(*(jnp.asarray(v, dtype) for v in (w1, w2, x_matrix, t)), steps=int(steps))


@functools.partial(jax.jit, static_argnames="steps")
def _split_flow(w1, w2, x_matrix, t, *, steps: int) -> tuple[jax.Array, jax.Array]:
    h = t / steps
    x_values, x_vectors = jnp.linalg.eigh(x_matrix)

    def move_first(w1, w2, h):
        values, vectors = jnp.linalg.eigh(_dot(w2.T, w2))
        rotated = _dot(_dot(vectors.T, w1), x_vectors)
        return _dot(_dot(vectors, rotated * jnp.exp(h * values[:, None] * x_values[None, :])), x_vectors.T)

    def move_second(w1, w2, h):
        rotated = _dot(w1, x_vectors)
        values, vectors = jnp.linalg.eigh(_dot(rotated * x_values[None, :], rotated.T))
        return _dot(_dot(w2, vectors) * jnp.exp(h * values)[None, :], vectors.T)

    def step(layers, _):
        w1, w2 = layers
        w1 = move_first(w1, w2, 0.5 * h)
        w2 = move_second(w1, w2, h)
        return (move_first(w1, w2, 0.5 * h), w2), None

    return jax.lax.scan(step, (w1, w2), length=steps)[0]


def singular_value_flow(sigma0: Time, gap: Time, rate: Time, t: Time) -> Float[Array, "..."]:
    """The solution of sigma' = sigma (sigma^2 + gap) rate, the flow of a singular value of two aligned layers.

    For the first layer's k-th value the gap is s2_k^2 - s1_k^2, constant in time, for the second's its negative; the
    rate is v1_k^T X v1_k, held fixed. One expression serves every sign of the gap, zero included:
    sigma^2 = sigma0^2 e^{2 g m t} / (1 - 2 m t sigma0^2 (e^{2 g m t} - 1) / (2 g m t)) with gap g and rate m.

    Args:
      sigma0: the value at time 0, not negative; broadcasts with the others.
      gap: the square of the other layer's value less the square of this one's; at least -sigma0^2.
      rate: m; positive grows, negative shrinks.
      t: the time.

    Returns:
      sigma(t), in the common shape and dtype: `inf` at and after the blow-up time.

    Raises:
      ValueError: entries that are not finite, a negative sigma0 or time, a gap below -sigma0^2 (the other layer's value
        squared would be negative).

    References:
      Jing et al., ICLR 2022, Theorem 3 (eq. 11), whose printed "solution" is again a differential equation, with the
      wrong sign of the constant.
    """
    sigma0, gap, rate = _aligned(sigma0, gap, rate)
    check_time(t)
    t = jnp.asarray(t, sigma0.dtype)
    sigma0, gap, rate, t = jnp.broadcast_arrays(sigma0, gap, rate, t)
    exponent = 2 * gap * rate * t
    growing = exponent > 0
    # Where E > 0 both halves of the fraction are divided by e^E, so that nothing overflows. Not -|E|: its derivative
    # at 0 would be 0.
    negative = jnp.where(growing, -exponent, exponent)
    shrink = jnp.exp(negative)
    squared, other = jnp.square(sigma0), jnp.square(sigma0) + gap
    # One denominator in two forms: the first is exact as the gap goes to 0, the second as the other layer's value does.
    far = negative < -1
    near_form = jnp.where(growing, shrink, 1) - squared * 2 * rate * t * _relative_expm1(negative)
    far_form = jnp.where(growing, other * shrink - squared, other - squared * shrink) / jnp.where(far, gap, 1)
    denominator = jnp.where(far, far_form, near_form)
    finite = denominator > 0
    # Outside the root, because e^E underflows long before its root does.
    start = sigma0 * jnp.where(growing, 1, jnp.exp(0.5 * negative))
    return jnp.where(finite, start / jnp.sqrt(jnp.where(finite, denominator, 1)), jnp.inf)


def blow_up_time(sigma0: Time, gap: Time, rate: Time) -> Float[Array, "..."]:
    """When `singular_value_flow` reaches infinity: ln(1 + gap / sigma0^2) / (2 rate gap), and 1 / (2 rate sigma0^2) for
    gap 0.

    Args:
      sigma0: the value at time 0, not negative; broadcasts with the others.
      gap: the square of the other layer's value less the square of this one's; at least -sigma0^2.
      rate: positive grows, negative shrinks.

    Returns:
      The time, in the common shape and dtype; `inf` where it never comes (rate <= 0, a value of 0, or another layer at
      0).

    Raises:
      ValueError: as `singular_value_flow`.

    References:
      Derived from Theorem 3 of Jing et al., ICLR 2022.
    """
    sigma0, gap, rate = jnp.broadcast_arrays(*_aligned(sigma0, gap, rate))
    grows = (rate > 0) & (sigma0 > 0)
    sigma0, rate = jnp.where(grows, sigma0, 1), jnp.where(grows, rate, 1)
    squared = jnp.square(sigma0)
    # ln(1 + u) / u of u = gap / sigma0^2: 1 at u = 0, inf at -1, where the other layer is 0; another form where
    # sigma0^2 would underflow.
    ratio = jnp.where(gap < squared, gap / sigma0 / sigma0, 0)
    small = jnp.abs(ratio) < 1e-6
    safe = jnp.where(small, 1, ratio)
    near = jnp.where(small, 1 - 0.5 * ratio, jnp.log1p(safe) / safe) / (2 * rate * squared)
    positive = jnp.where(gap < squared, 1, gap)
    far = (jnp.log(positive) - 2 * jnp.log(sigma0) + jnp.log1p(squared / positive)) / (2 * rate * positive)
    return jnp.where(grows, jnp.where(gap < squared, near, far), jnp.inf)


def integrate(
    velocity: Callable[[Any], Any],
    state: Any,
    times: Float[Array | np.ndarray, " times"],
    *,
    rtol: float,
    atol: float,
) -> Any:
    """Integrates an autonomous flow with an adaptive Runge-Kutta method of order 8: the reference for every closed
    form.

    Args:
      velocity: `velocity(state)`, the derivative: a pytree like the state.
      state: the pytree of arrays at time 0.
      times: `[times]`, ascending, not negative: when the state is wanted.
      rtol: relative tolerance of a step.
      atol: absolute tolerance of a step.

    Returns:
      The states, every leaf with a leading axis `[times]`.

    Raises:
      ValueError: times that are no ascending list, or negative or not finite.
      equinox.EquinoxRuntimeError: the tolerance was not met within 100,000 steps.
    """
    import diffrax  # takes a second to import, and no closed form needs it

    if jnp.ndim(times) != 1 or jnp.size(times) == 0:
        raise SettingError(f"times must have the shape [times], found {jnp.shape(times)}")
    check_time(times)
    if concrete(times) and (np.diff(np.asarray(times)) < 0).any():
        raise SettingError("times must ascend")
    times = jnp.asarray(times)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: velocity(y)),
        diffrax.Dopri8(),
        t0=jnp.zeros((), times.dtype),
        t1=times[-1],
        dt0=None,
        y0=state,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=100_000,
    )
    return solution.ys


def _matrix_exponential(a: jax.Array) -> jax.Array:
    """`jax.scipy.linalg.expm` with enough squarings.

    That function rounds their number down, which leaves norms of up to twice what its Pade approximant is made for and
    costs up to half of the digits (1e-8 in float64). Scaled down first, it never needs to square.
    """
    limit = 5.37 if a.dtype == jnp.float64 else 3.92
    squarings = jnp.maximum(0, jnp.ceil(jnp.log2(jnp.max(jnp.sum(jnp.abs(a), axis=0)) / limit)))
    with jax.default_matmul_precision("highest"):
        start = expm(a * jnp.exp2(-squarings))

    def square(power, i):
        return jnp.where(i < squarings, _dot(power, power), power), None

    # A fixed number of rounds, because a loop that stops early would have no gradient.
    rounds = 20
    power, _ = jax.lax.scan(square, start, jnp.arange(rounds, dtype=a.dtype))
    return jnp.where(squarings > rounds, jnp.nan, power)


def descend(velocity: Callable[[Any], Any], state: Any, *, rate: float, steps: int) -> Any:
    """Explicit Euler steps along a flow, which for a gradient flow are those of full-batch SGD.

    Args:
      velocity: `velocity(state)`, the derivative: a pytree like the state.
      state: the pytree of arrays to start from.
      rate: the length of a step in time, or learning rate.
      steps: how many.

    Returns:
      The state after them.
    """

    def step(state, _):
        return jax.tree.map(lambda w, v: w + rate * v, state, velocity(state)), None

    return jax.lax.scan(step, state, length=steps)[0]


def _linear(w0, x_matrix, t) -> tuple[jax.Array, jax.Array, jax.Array]:
    if w0.ndim != 2:
        raise SettingError(f"w0 must have the shape [m, d], found {w0.shape}")
    check_finite(w0=w0)
    check_symmetric(x_matrix, size=w0.shape[1])
    check_time(t)
    dtype = jnp.result_type(w0, 0.0)
    return jnp.asarray(w0, dtype), jnp.asarray(x_matrix, dtype), jnp.asarray(t, dtype)


@functools.partial(jax.jit, static_argnums=0)
def _over_times(step, w0: jax.Array, x_matrix: jax.Array, t: jax.Array) -> jax.Array:
    # Not vmap: see `dcjax.toy.statements.ensembles.over_seeds` on batched decompositions.
    found = jax.lax.map(functools.partial(step, w0, x_matrix), t.ravel())
    return found.reshape(*t.shape, *w0.shape)


def _linear_step(w0: jax.Array, x_matrix: jax.Array, t: jax.Array) -> jax.Array:
    return _dot(w0, _matrix_exponential(x_matrix * t))


def _spectral_step(w0: jax.Array, x_matrix: jax.Array, t: jax.Array) -> jax.Array:
    values, vectors = jnp.linalg.eigh(x_matrix)
    return _dot(_dot(w0, vectors) * jnp.exp(values * t)[None, :], vectors.T)


def _aligned(sigma0, gap, rate) -> tuple[jax.Array, jax.Array, jax.Array]:
    check_finite(sigma0=sigma0, gap=gap, rate=rate)
    if concrete(sigma0, gap):
        if (np.asarray(sigma0) < 0).any():
            raise SettingError(f"sigma0 must not be negative, found {np.asarray(sigma0).min():g}")
        squared = np.square(np.asarray(sigma0))
        # A gap that was computed as a difference of squares may miss -sigma0^2 by rounding.
        if (np.asarray(gap) + squared < -1e-6 * squared).any():
            raise SettingError(
                f"gap must be at least -sigma0^2 (the other layer's squared value less this one's), found "
                f"{np.asarray(gap).min():g} with sigma0 = {np.asarray(sigma0).min():g}"
            )
    dtype = jnp.result_type(*(v for v in (sigma0, gap, rate) if not isinstance(v, float | int)), 0.0)
    sigma0, gap, rate = (jnp.asarray(value, dtype) for value in (sigma0, gap, rate))
    # What rounding left below is the fixed point.
    sigma0, gap = jnp.broadcast_arrays(sigma0, gap)
    return sigma0, jnp.maximum(gap, -jnp.square(sigma0)), rate


def _relative_expm1(x: jax.Array) -> jax.Array:
    """(e^x - 1) / x, which is 1 at 0, with accurate derivatives there too."""
    small = jnp.abs(x) < 1e-3
    safe = jnp.where(small, 1, x)
    series = 1 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x / 720))))
    return jnp.where(small, series, jnp.expm1(safe) / safe)
