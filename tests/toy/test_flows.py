"""Closed forms of the flows against SciPy's solver, automatic differentiation and values computed elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.integrate import solve_ivp

from dcjax.toy import (
    blow_up_time,
    conserved_quantity,
    info_nce,
    integrate,
    interaction_matrix,
    linear_flow,
    linear_flow_spectral,
    singular_value_flow,
    softmax_weights,
    two_layer_flow,
    two_layer_velocity,
)
from dcjax.toy.flows import _over_times, _split_flow

# Compiled to one program per shape; otherwise every operation would be a program of its own.
value_flow = jax.jit(singular_value_flow)
blow_up = jax.jit(blow_up_time)
conserved = jax.jit(conserved_quantity)


def symmetric(d, seed=0, definite=False):
    root = np.random.default_rng(seed).normal(size=(d, d)) / np.sqrt(d)
    return root @ root.T if definite else root + root.T


def layers(d, seed=0, scale=0.5):
    return tuple(scale * np.random.default_rng(seed).normal(size=(2, d, d)) / np.sqrt(d))


def error(found, expected):
    return np.max(np.abs(np.asarray(found) - expected)) / np.max(np.abs(expected))


def solve(velocity, state, times):
    """The states at the times, by SciPy's Runge-Kutta method of order 8. Each time ends a run, because between the
    steps of a run SciPy interpolates at order 7 only."""
    shape, y, now, states = np.shape(state), np.ravel(state), 0.0, []

    def flat(_, y):
        return np.asarray(velocity(y.reshape(shape))).ravel()

    for time in times:
        if time > now:
            found = solve_ivp(flat, (now, time), y, method="DOP853", rtol=1e-13, atol=1e-15)
            assert found.success, found.message
            y, now = found.y[:, -1], time
        states.append(y.reshape(shape))
    return np.stack(states)


def test_linear_flow_against_the_ode(x64):
    w0, x_matrix, times = np.random.default_rng(1).normal(size=(4, 6)), symmetric(6), np.linspace(0, 3, 7)
    assert np.linalg.eigvalsh(x_matrix)[0] < 0 < np.linalg.eigvalsh(x_matrix)[-1]
    solved = solve(lambda w: w @ x_matrix, w0, times)
    for flow in (linear_flow, linear_flow_spectral):
        closed = flow(w0, x_matrix, times)
        assert closed.shape == (7, 4, 6)
        assert max(error(a, b) for a, b in zip(closed, solved, strict=True)) <= 1e-10
        np.testing.assert_allclose(closed[0], w0, rtol=1e-12)
    # Along the k-th eigenvector the flow is a scalar exponential; the directions of negative eigenvalues collapse.
    values, vectors = np.linalg.eigh(x_matrix)
    lengths = np.linalg.norm(np.asarray(closed) @ vectors, axis=1)
    expected = np.linalg.norm(w0 @ vectors, axis=0) * np.exp(np.outer(times, values))
    np.testing.assert_allclose(lengths, expected, rtol=1e-10)


def test_integrate_a_tree_of_states(x64):
    rate, times = np.array([-1.0, 0.5, 2.0]), np.array([0.0, 0.5, 0.5, 2.0])
    flow = functools.partial(
        integrate, lambda s: {"a": s["a"] * rate, "b": -jnp.square(s["b"])}, rtol=1e-12, atol=1e-14
    )
    found = jax.jit(flow)({"a": jnp.ones(3), "b": jnp.asarray(2.0)}, times)
    np.testing.assert_allclose(found["a"], np.exp(np.outer(times, rate)), rtol=1e-10)
    np.testing.assert_allclose(found["b"], 1 / (0.5 + times), rtol=1e-10)


def test_linear_flow_is_exact_at_every_norm(x64):
    """For norms between 5.4 and 10.8, 10.8 and 21.5, ... jax.scipy.linalg.expm loses up to half of the digits."""
    for norm in (1.0, 5.3, 6.0, 10.7, 11.0, 40.0, 300.0):
        for seed in range(5):
            x_matrix = symmetric(4, seed)
            x_matrix *= norm / np.abs(x_matrix).sum(0).max()
            values, vectors = np.linalg.eigh(x_matrix)
            expected = (vectors * np.exp(values)) @ vectors.T
            # Rounding x by eps multiplies exp(x) by 1 + eps |x|: at |x| = 300 that is 7e-14, times a few sums.
            assert error(linear_flow(np.eye(4), x_matrix, 1.0), expected) <= 1e-12, (norm, seed)


def test_linear_flow_gradient(x64):
    def flow(w, t):
        return linear_flow(w, symmetric(3), t)

    check_grads(flow, (np.random.default_rng(1).normal(size=(3, 3)), 0.5), order=1, modes=["rev"], rtol=1e-6, atol=1e-8)


def test_linear_flow_is_batched_and_strict(strict_dtypes):
    w0, x_matrix = np.float32(np.random.default_rng(1).normal(size=(3, 3))), np.float32(symmetric(3))
    many = jax.jit(jax.vmap(linear_flow, in_axes=(0, None, None)))(
        np.stack([w0, 2 * w0]), x_matrix, np.float32([0.5, 1])
    )
    assert many.dtype == jnp.float32
    # Doubling is exact in binary; 1e-5 leaves 100 roundings of float32 for batches that are summed in another order.
    np.testing.assert_allclose(many[1], 2 * many[0], rtol=1e-5, atol=1e-5)


def test_two_layer_velocity_against_autodiff(x64):
    """Layers that are not square: a transposed product would not even fit."""
    rng = np.random.default_rng(0)
    w1, w2, (x, x_prime) = rng.normal(size=(5, 8)), rng.normal(size=(3, 5)) / 5, rng.normal(size=(2, 20, 8))

    def loss(w1, w2):
        return info_nce(x @ (w2 @ w1).T, x_prime @ (w2 @ w1).T)

    @jax.jit
    def both(w1, w2):
        alpha = softmax_weights(x @ (w2 @ w1).T, x_prime @ (w2 @ w1).T)
        return two_layer_velocity(w1, w2, interaction_matrix(x, x_prime, alpha)), jax.grad(loss, (0, 1))(w1, w2)

    for found, gradient in zip(*both(w1, w2), strict=True):
        assert error(found, -gradient) <= 1e-10


def test_two_layer_flow_is_of_second_order(x64):
    w1, w2, x_matrix = *layers(5), symmetric(5)
    (solved,) = solve(lambda s: np.stack([s[1].T @ s[1] @ s[0] @ x_matrix, s[1] @ s[0] @ x_matrix @ s[0].T]),
                      [w1, w2], [0.5])  # fmt: skip
    errors = []
    for steps in (40, 80, 160):
        found = two_layer_flow(w1, w2, x_matrix, 0.5, steps=steps)
        errors.append(max(error(a, b) for a, b in zip(found, solved, strict=True)))
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 2, atol=0.05)
    assert errors[-1] < 1e-5
    np.testing.assert_allclose(conserved(*solved), conserved(w1, w2), atol=1e-11)
    for a, b in zip(two_layer_flow(w1, w2, x_matrix, 0.0, steps=40), (w1, w2), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)  # 40 rotations there and back


def test_two_layer_flow_of_layers_that_are_not_square():
    rng = np.random.default_rng(0)
    w1, w2 = np.float32(rng.normal(size=(3, 5))), np.float32(rng.normal(size=(2, 3)))
    end1, end2 = two_layer_flow(w1, w2, np.float32(0.1 * symmetric(5)), 0.1, steps=4)
    assert (end1.shape, end2.shape, end1.dtype) == ((3, 5), (2, 3), jnp.float32)


def test_conserved_along_the_real_flow(x64):
    rng = np.random.default_rng(0)
    x, x_prime = rng.normal(size=(2, 12, 4))
    start = np.stack(layers(4, scale=1.0))
    velocity = jax.jit(jax.grad(lambda s: -info_nce(x @ (s[1] @ s[0]).T, x_prime @ (s[1] @ s[0]).T) / 12))
    (end,) = solve(velocity, start, [5.0])
    assert np.abs(end - start).max() > 0.1
    assert error(conserved(*end), conserved(*start)) <= 1e-10


def test_singular_value_flow_against_known_values(x64):
    # (rate, sigma0, gap, t, sigma): at 0.95 of the blow-up time, or at t = 4, from DOP853 with rtol 1e-12.
    *arguments, expected = np.transpose([
        (0.8, 0.5, 0.0, 0.95 * 2.5, 2.23606798),
        (0.8, 0.5, 0.75, 0.95 * 1.15524530, 3.23257554),
        (0.8, 1.1, -1.0, 0.95 * 1.09454257, 3.45363460),
        (-0.8, 1.1, -1.0, 4.0, 1.00014421),
        (-0.8, 0.5, 0.75, 4.0, 0.0393224987),
        (-0.8, 0.5, 0.0, 4.0, 0.310086837),
    ])  # fmt: skip
    rate, sigma0, gap, t = arguments
    np.testing.assert_allclose(value_flow(sigma0, gap, rate, t), expected, rtol=3e-8)  # the digits printed


def test_singular_value_flow_against_the_ode(x64):
    cases = [
        (sigma0, gap, rate)
        for sigma0, gap in ((0.5, 0.75), (0.5, 0.0), (1.1, -1.0), (0.5, 1e-9), (0.5, -1e-9))
        for rate in (0.8, -0.8)
    ]
    sigma0, gap, rate = np.transpose(cases)[:, :, None]
    times = np.where(rate > 0, 0.999 * np.asarray(blow_up_time(sigma0, gap, abs(rate))), 6.0) * np.linspace(0, 1, 12)
    closed = np.asarray(value_flow(sigma0, gap, rate, times))
    for (s, g, r), when, found in zip(cases, times, closed, strict=True):
        np.testing.assert_allclose(found, solve(lambda s, g=g, r=r: s * (s**2 + g) * r, s, when), rtol=1e-9)
        assert found[0] == pytest.approx(s, rel=1e-15)


def test_blow_up_time(x64):
    # The time is continuous at gap = 0, where the formula with the logarithm is 0/0.
    gaps = np.array([-1e-4, -1e-8, -1e-13, 0, 1e-13, 1e-8, 1e-4])
    np.testing.assert_allclose(blow_up(0.5, gaps, 0.8), 2.5 * (1 - 2 * gaps), rtol=1e-7)
    # The last five never do: they shrink, are 0, or the other layer is 0, exactly or up to rounding.
    sigma0, gap, rate, expected = np.transpose([
        (0.5, 0.0, 0.8, 2.5),
        (0.5, 0.75, 0.8, 1.15524530),
        (1.1, -1.0, 0.8, 1.09454257),
        # ln(1 + 1e400) / 2, though neither 1e400 nor 1e-400 is a number.
        (1e-200, 1.0, 1.0, 200 * np.log(10)),
        (0.5, 0.1, -1.0, np.inf),
        (0.0, 1.0, 1.0, np.inf),
        (0.5, -0.25, 1.0, np.inf),
        (0.5, -0.25 * (1 + 1e-8), 0.8, np.inf),
    ])  # fmt: skip
    found = np.asarray(blow_up_time(sigma0, gap, rate))
    np.testing.assert_allclose(found, expected, rtol=5e-9)  # the digits printed
    np.testing.assert_allclose(found[[0, 3]], expected[[0, 3]], rtol=1e-14)
    at = found[1] * np.array([1 - 1e-9, 1 + 1e-9, 1.5, 100])
    around = value_flow(0.5, 0.75, 0.8, at)
    assert 1e4 < around[0] < np.inf
    np.testing.assert_array_equal(around[1:], np.inf)


def test_singular_value_flow_at_its_fixed_points_and_limits(x64):
    sigma0, gap, rate, t, expected = np.transpose([
        (0.5, -0.25, 0.8, 50.0, 0.5),  # the other layer's value is 0, or this one's: nothing moves
        (0.0, 1.0, 0.8, 3.0, 0.0),
        (1.1, -1.0, -0.8, 1e4, 1.0),  # shrinking: the smaller value dies out, the larger one stalls at sqrt(-gap)
        (0.5, 0.75, -0.8, 1e4, 0.0),
        (0.5, -0.25 * (1 + 1e-8), 0.8, 100.0, 0.5),  # a gap that misses -sigma0^2 by rounding is the fixed point
    ])  # fmt: skip
    np.testing.assert_allclose(singular_value_flow(sigma0, gap, rate, t), expected, rtol=1e-12)


def test_singular_value_flow_differentiates_batches_and_keeps_float32(strict_dtypes):
    gaps = jnp.asarray([-0.5, 0.0, 0.5], jnp.float32)
    flow = jax.jit(jax.vmap(singular_value_flow, in_axes=(None, 0, None, None)))
    values = flow(jnp.float32(1.0), gaps, jnp.float32(0.3), jnp.float32(0.5))
    assert values.dtype == jnp.float32
    # A dozen operations in float32, which compiled together may be fused and rounded in another way.
    np.testing.assert_allclose(values, value_flow(1.0, gaps, 0.3, 0.5), rtol=1e-5)


def test_singular_value_flow_gradient(x64):
    gaps = np.array([-0.3, 0.0, 0.4])
    flow = jax.jit(lambda s, m, t, g: singular_value_flow(s, g, m, t))
    check_grads(flow, (0.9, 0.5, 0.6, gaps), order=1, modes=["rev"], rtol=1e-5, atol=1e-8)


def test_bad_input(unchecked_shapes):
    w, x_matrix = np.ones((3, 3)), np.eye(3)
    skew = x_matrix + np.array([[0, 1e-4, 0], [0, 0, 0], [0, 0, 0]])
    for flow in (linear_flow, linear_flow_spectral):
        with pytest.raises(ValueError, match="t must not be negative, found -1"):
            flow(w, x_matrix, -1.0)
        with pytest.raises(ValueError, match=r"symmetric.*0\.0001"):
            flow(w, skew, 1.0)
        with pytest.raises(ValueError, match=r"x_matrix must have the shape \(3, 3\), found \(2, 2\)"):
            flow(w, np.eye(2), 1.0)
        with pytest.raises(ValueError, match=r"w0 must have the shape \[m, d\], found \(3,\)"):
            flow(w[0], x_matrix, 1.0)
        with pytest.raises(ValueError, match="w0 must be finite"):
            flow(w * np.nan, x_matrix, 1.0)
        with pytest.raises(ValueError, match="t must be finite"):
            flow(w, x_matrix, np.inf)
    for function in (two_layer_velocity, functools.partial(two_layer_flow, t=1.0)):
        with pytest.raises(ValueError, match="symmetric"):
            function(w, w, x_matrix=skew)
        with pytest.raises(ValueError, match=r"\[h, d\] and \[m, h\], found \(3, 3\) and \(3, 2\)"):
            function(w, w[:, :2], x_matrix=x_matrix)
    for steps in (0, 2.5):
        with pytest.raises(ValueError, match=f"steps must be a whole number of at least 1, found {steps}"):
            two_layer_flow(w, w, x_matrix, 1.0, steps=steps)
    with pytest.raises(ValueError, match=r"times must have the shape \[times\], found \(0,\)"):
        integrate(lambda w: w, np.ones(2), np.array([]), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="t must not be negative"):
        two_layer_flow(w, w, x_matrix, -1.0)
    with pytest.raises(ValueError, match="t must be one number"):
        two_layer_flow(w, w, x_matrix, np.ones(2))
    with pytest.raises(ValueError, match="sigma0 must not be negative"):
        singular_value_flow(-0.5, 0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="gap must be at least"):
        singular_value_flow(0.5, -0.3, 1.0, 1.0)
    with pytest.raises(ValueError, match="rate must be finite"):
        blow_up_time(0.5, 0.3, np.nan)
    with pytest.raises(ValueError, match="times must ascend"):
        integrate(lambda w: w, np.ones(2), np.array([1.0, 0.5]), rtol=1e-3, atol=1e-3)


def test_whole_numbers_and_long_times(unchecked_shapes):
    np.testing.assert_allclose(linear_flow(np.eye(2, dtype=int), np.zeros((2, 2)), 1), np.eye(2))
    found = linear_flow(np.eye(2, dtype=int), np.float32([[0.5, 0.2], [0.2, 0.3]]), np.float32(0.5))
    assert found[0, 1] > 0.1
    assert np.isnan(linear_flow(np.eye(2), np.diag([-1e8, -0.1]), 1.0)).all()  # rather than silently wrong


def test_one_compilation_serves_repeated_calls():
    w, x_matrix = np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)
    for flow in (linear_flow, functools.partial(two_layer_flow, w, steps=2)):
        flow(w, x_matrix, np.float32(0.1))
        before = _over_times._cache_size(), _split_flow._cache_size()
        flow(w, x_matrix, np.float32(0.2))
        assert before == (_over_times._cache_size(), _split_flow._cache_size())


def test_singular_value_flow_long_after_its_exponential_has_underflowed(x64):
    t = 300.0
    before, after = value_flow(0.5, 0.75, -0.8, np.array([t, 2 * t]))
    # The exponential has underflowed, but its root has not.
    np.testing.assert_allclose(after, before * np.exp(-0.6 * t))
    assert np.isfinite(jax.jit(jax.grad(singular_value_flow))(0.5, 0.75, -0.8, 1e4))


def test_symmetry_is_judged_by_the_dtype(x64):
    almost = np.eye(3) + 1e-8 * np.triu(np.ones((3, 3)))
    with pytest.raises(ValueError, match="symmetric"):
        linear_flow(np.eye(3), almost, 1.0)
    # Tracing is enough: values are checked before anything is computed.
    jax.eval_shape(lambda: linear_flow(np.eye(3, dtype=np.float32), almost.astype(np.float32), 1.0))
