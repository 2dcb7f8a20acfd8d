"""Eqs. 2, 4, 6 and 7 against loops over samples, automatic differentiation and closed forms, in float64."""

import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dcjax.toy import covariance_split, embedding_gradients, info_nce, interaction_matrix, softmax_weights


@jax.jit
def everything(x, x_prime):
    """Every function of two views, as one program."""
    alpha = softmax_weights(x, x_prime)
    matrices = interaction_matrix(x, x_prime, alpha), covariance_split(x, x_prime, alpha)
    return info_nce(x, x_prime), alpha, embedding_gradients(x, x_prime), matrices


def views(n, d, seed=0, dtype=np.float64):
    """Two views whose squared distances are near 1, so that no weight is negligible."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, d)) / math.sqrt(d)
    return z.astype(dtype), (z + 0.5 * rng.normal(size=(n, d)) / math.sqrt(d)).astype(dtype)


def slow(z, z_prime):
    """The loss, alpha and the gradients of eqs. 2 and 4 as they are written, sample by sample."""
    n = len(z)
    alpha, loss = np.zeros((n, n)), 0.0
    for i in range(n):
        d = {j: math.fsum((z[i] - (z_prime[i] if j == i else z[j])) ** 2) / 2 for j in range(n)}
        total = math.fsum(math.exp(-d[j]) for j in range(n))
        alpha[i] = [math.exp(-d[j]) / total for j in range(n)]
        loss += d[i] + math.log(total)
    g, g_prime = np.zeros_like(z), np.zeros_like(z)
    for i in range(n):
        for j in set(range(n)) - {i}:
            g[i] += alpha[i, j] * (z[j] - z_prime[i]) + alpha[j, i] * (z[j] - z[i])
        g_prime[i] = (1 - alpha[i, i]) * (z_prime[i] - z[i])
    return loss, alpha, g, g_prime


def slow_matrices(x, x_prime, alpha):
    """X of eq. 6 (corrected sign), S0 and S1 of eq. 7, sample by sample."""
    n, d = x.shape
    x_matrix, s0, s1 = np.zeros((3, d, d))
    for i in range(n):
        bracket = np.zeros(d)
        for j in set(range(n)) - {i}:
            bracket += alpha[i, j] * (x_prime[i] - x[j]) + alpha[j, i] * (x[i] - x[j])
            s0 += alpha[i, j] * np.outer(x[i] - x[j], x[i] - x[j])
        moved = (1 - alpha[i, i]) * (x_prime[i] - x[i])
        x_matrix += np.outer(bracket, x[i]) - np.outer(moved, x_prime[i])
        s1 += np.outer(moved, x_prime[i] - x[i])
    return x_matrix, s0, s1


@pytest.mark.parametrize(("n", "d"), [(2, 1), (3, 5), (16, 4), pytest.param(64, 16, marks=pytest.mark.slow)])
def test_against_loops(x64, n, d):
    for seed in (0, 1):
        z, z_prime = views(n, d, seed)
        loss, alpha, g, g_prime = slow(z, z_prime)
        found = everything(z, z_prime)
        np.testing.assert_allclose(found[0], loss, rtol=1e-12)
        assert found[1].dtype == jnp.float64
        np.testing.assert_allclose(found[1], alpha, rtol=1e-11)
        for a, b in zip(found[2], (g, g_prime), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)
        x_matrix, s0, s1 = slow_matrices(z, z_prime, alpha)
        for a, b in zip((found[3][0], *found[3][1]), (x_matrix, s0, s1), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-11 * np.abs(s0).max())


def identities(w, x, x_prime):
    """The largest relative errors of eqs. 4 to 7 against automatic differentiation, and the eigenvalue bounds."""
    z, z_prime = x @ w.T, x_prime @ w.T
    alpha = softmax_weights(z, z_prime)
    x_matrix, (s0, s1) = interaction_matrix(x, x_prime, alpha), covariance_split(x, x_prime, alpha)
    derived = jax.grad(info_nce, argnums=(0, 1))(z, z_prime)
    through = jax.grad(lambda w: info_nce(x @ w.T, x_prime @ w.T))(w)

    def error(a, b):
        return jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))

    eq4 = [error(a, b) for a, b in zip(embedding_gradients(z, z_prime), derived, strict=True)]
    least = jnp.minimum(jnp.linalg.eigvalsh(s0)[0], jnp.linalg.eigvalsh(s1)[0]) / jnp.max(jnp.abs(s0))
    return (
        jnp.maximum(*eq4),
        error(-w @ x_matrix, through),
        error(s0 - s1, x_matrix),
        error(x_matrix.T, x_matrix),
        least,
    )


@pytest.mark.parametrize(
    ("n", "d"),
    [(9, 8), *(pytest.param(n, d, marks=pytest.mark.slow) for n in (2, 9, 64) for d in (1, 8, 32) if (n, d) != (9, 8))],
)
def test_identities_of_the_flow(x64, n, d):
    """The slow tests cover few samples in many dimensions and the reverse, as do the lemmas in small."""
    rng = np.random.default_rng(n * d)
    seeds = 5
    w = rng.normal(size=(seeds, d, d)) / d
    x = rng.normal(size=(seeds, n, d))
    eq4, flow, split, symmetry, least = jax.jit(jax.vmap(identities))(w, x, x + 1.5 * rng.normal(size=x.shape))
    assert eq4.max() <= 1e-10
    assert flow.max() <= 1e-10
    assert split.max() <= 1e-12
    assert symmetry.max() <= 1e-12
    assert least.min() >= -1e-12


def test_what_is_printed_does_not_hold(x64):
    x, x_prime = views(16, 4)
    _, alpha, _, (_, (s0, s1)) = jax.tree.map(np.asarray, everything(x, x_prime))
    off = alpha - np.diag(np.diag(alpha))
    moved = off.sum(1)[:, None] * (x_prime - x)
    bracket = off.sum(1)[:, None] * x_prime - off @ x + off.sum(0)[:, None] * x - off.T @ x
    assert np.abs(bracket.T @ x - moved.T @ x_prime - (s0 - s1)).max() < 1e-12
    assert np.abs(-bracket.T @ x - moved.T @ x_prime - (s0 - s1)).max() > 0.1
    assert np.abs(0.5 * s0 - s1 - (s0 - s1)).max() > 0.1  # unordered pairs
    unscaled = np.exp(-0.5 * np.square(x - x_prime).sum(1))  # a_ii without / Z_i
    assert np.abs(off.sum(1) + unscaled - 1).max() > 0.1


def test_second_derivatives(x64):
    check_grads(jax.jit(info_nce), views(5, 3), order=2, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_closed_forms(x64):
    n = 7
    same = np.ones((n, n))
    loss, alpha, *_ = everything(same, same)
    np.testing.assert_allclose(loss, n * math.log(n), rtol=1e-13)
    np.testing.assert_allclose(alpha, 1 / n, rtol=1e-13)
    basis = 3.0 * np.eye(n)  # d_ij = 9, d_ii' = 0
    np.testing.assert_allclose(everything(basis, basis)[0], n * math.log(1 + (n - 1) * math.exp(-9)), rtol=1e-11)
    far = 40.0 * np.eye(n)  # exp(-1600) underflows: the positive has all the weight, and there is no NaN
    _, alpha, gradients, _ = everything(far, far)
    np.testing.assert_array_equal(alpha, np.eye(n))
    np.testing.assert_array_equal(np.stack(gradients), 0)
    apart = everything(far, far[::-1].copy())[1]  # the positive is as far as the negatives
    np.testing.assert_allclose(apart.sum(1), 1)


def test_the_origin_does_not_matter_in_float32():
    x, x_prime = views(6, 3, dtype=np.float32)
    near, far = (everything(x + np.float32(shift), x_prime + np.float32(shift))[1] for shift in (0, 500))
    # The shift itself rounds the inputs to 3e-5.
    np.testing.assert_allclose(far, near, rtol=1e-3)
    assert far.dtype == jnp.float32


def test_batched_and_strict(strict_dtypes):
    x, x_prime = (np.stack(rows) for rows in zip(*(views(6, 3, s, np.float32) for s in range(3)), strict=True))
    batched = jax.jit(jax.vmap(everything))(x, x_prime)
    for i in range(3):
        row = jax.tree.map(operator.itemgetter(i), batched)
        # Sums of 6 to 36 terms near 1 in float32, which a batch may add up in another order.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), row, everything(x[i], x_prime[i])
        )


@pytest.mark.parametrize("function", [info_nce, softmax_weights, embedding_gradients])
def test_bad_embeddings(unchecked_shapes, function):
    z, z_prime = views(4, 3)
    with pytest.raises(ValueError, match=r"n >= 2 .*\(1, 3\) and \(1, 3\)"):
        function(z[:1], z_prime[:1])
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(3, 3\)"):
        function(z, z_prime[:3])
    with pytest.raises(ValueError, match=r"found \(3,\)"):
        function(z[0], z_prime[0])
    z_prime[2, 1] = np.nan
    with pytest.raises(ValueError, match="z_prime must be finite"):
        function(z, z_prime)


@pytest.mark.parametrize("function", [interaction_matrix, covariance_split])
def test_bad_inputs_and_weights(unchecked_shapes, function):
    x, x_prime = views(4, 3)
    alpha = np.full((4, 4), 0.25)
    with pytest.raises(ValueError, match=r"x and x_prime .*\(4, 3\) and \(4, 2\)"):
        function(x, x_prime[:, :2], alpha)
    with pytest.raises(ValueError, match=r"alpha must have the shape \(4, 4\).*\(3, 3\)"):
        function(x, x_prime, alpha[:3, :3])
    with pytest.raises(ValueError, match="alpha must be finite"):
        function(x, x_prime, alpha * np.inf)
    with pytest.raises(ValueError, match="x must be finite"):
        function(x * np.nan, x_prime, alpha)
