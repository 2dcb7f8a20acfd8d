"""InfoNCE and NT-Xent against slow references, closed forms and finite differences."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dcjax.losses import LOSSES, info_nce, nt_xent, unit_rows
from dcjax.runtime.mesh import batch_sharding, make_mesh


def slow_info_nce(z, z_prime, temperature):
    z, z_prime = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (z, z_prime))
    total = 0.0
    for a, b in ((z, z_prime), (z_prime, z)):
        for i in range(len(a)):
            logits = [math.fsum(a[i] * b[j]) / temperature for j in range(len(b))]
            total += math.log1p(math.fsum(math.exp(s - logits[i]) for j, s in enumerate(logits) if j != i))
    return total / (2 * len(z))


def slow_nt_xent(z, z_prime, temperature):
    rows = np.concatenate([z, z_prime])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    n, total = len(z), 0.0
    for i in range(2 * n):
        logits = {j: math.fsum(rows[i] * rows[j]) / temperature for j in range(2 * n) if j != i}
        positive = logits.pop((i + n) % (2 * n))
        total += math.log1p(math.fsum(math.exp(s - positive) for s in logits.values()))
    return total / (2 * n)


SLOW = {"info_nce": slow_info_nce, "nt_xent": slow_nt_xent}


def views(n, d, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, d))
    return z.astype(dtype), (0.3 * z + rng.normal(size=(n, d))).astype(dtype)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("n", "d"), [(1, 4), (2, 1), (33, 5)])
def test_value_in_float64(x64, name, n, d):
    z, z_prime = views(n, d)
    loss = jax.jit(LOSSES[name])
    for temperature in (0.05, 0.1, 1.0):
        value = loss(z, z_prime, temperature=temperature)
        assert value.dtype == jnp.float64
        # A float64 identity: only the order of the sums differs.
        np.testing.assert_allclose(value, SLOW[name](z, z_prime, temperature), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_vanishing_loss_keeps_its_digits(x64, name, dtype):
    """1e-9 of the weight is on the negatives: added to the positive's, little of it would be left."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(16, 64)).astype(dtype)
    z_prime = z + (0.05 * rng.normal(size=z.shape)).astype(dtype)
    found = LOSSES[name](z, z_prime, temperature=0.04)
    expected = SLOW[name](np.float64(z), np.float64(z_prime), 0.04)
    assert 1e-10 < expected < 1e-7
    # An error of the logits, up to 1 / temperature, is a relative one of the loss.
    np.testing.assert_allclose(found, expected, rtol=100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_in_float64(x64, name):
    z, z_prime = views(6, 5)
    loss = jax.jit(functools.partial(LOSSES[name], temperature=0.2))
    check_grads(loss, (z, z_prime), order=1, modes=["fwd", "rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_is_close_to_float64(x64, name):
    z, z_prime = views(64, 32)
    value_and_gradient = jax.jit(jax.value_and_grad(functools.partial(LOSSES[name], temperature=0.1), argnums=(0, 1)))
    wide, narrow = value_and_gradient(z, z_prime), value_and_gradient(np.float32(z), np.float32(z_prime))
    assert narrow[0].dtype == jnp.float32
    np.testing.assert_allclose(narrow[0], wide[0], rtol=1e-5)
    for a, b in zip(narrow[1], wide[1], strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


@pytest.mark.parametrize("name", LOSSES)
def test_eight_devices_equal_one(x64, name):
    z, z_prime = views(16, 8)
    value_and_gradient = jax.value_and_grad(functools.partial(LOSSES[name], temperature=0.1))
    expected, gradient = jax.jit(value_and_gradient)(z, z_prime)
    split = batch_sharding(make_mesh(8))
    value, sharded = jax.jit(value_and_gradient, in_shardings=(split, split))(z, z_prime)
    assert value.dtype == jnp.float64
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(sharded, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_strict_dtypes(strict_dtypes, name):
    z, z_prime = views(16, 8, dtype=np.float32)
    value, gradient = jax.jit(jax.value_and_grad(LOSSES[name]))(z, z_prime, temperature=0.1)
    assert value.dtype == gradient.dtype == jnp.float32


def test_bfloat16_rows_are_widened_before_they_are_normalised():
    z, z_prime = (jnp.bfloat16(rows) for rows in views(32, 16))
    expected = info_nce(jnp.float32(z), jnp.float32(z_prime), temperature=0.1)
    value = info_nce(z, z_prime, temperature=0.1)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, expected)


def test_closed_forms(x64):
    n, tau = 5, 0.1
    same = np.ones((n, 3))  # complete collapse: every candidate is as good as the positive
    np.testing.assert_allclose(info_nce(same, same, temperature=tau), math.log(n), rtol=1e-12)
    np.testing.assert_allclose(nt_xent(same, same, temperature=tau), math.log(2 * n - 1), rtol=1e-12)
    basis = np.eye(n)  # perfect: aligned positives, orthogonal negatives
    np.testing.assert_allclose(
        info_nce(basis, basis, temperature=tau), math.log1p((n - 1) * math.exp(-1 / tau)), rtol=1e-12
    )
    np.testing.assert_allclose(
        nt_xent(basis, basis, temperature=tau), math.log1p(2 * (n - 1) * math.exp(-1 / tau)), rtol=1e-12
    )


def test_the_sign_is_right(x64):
    z, _ = views(20, 16)
    aligned, random = info_nce(z, z, temperature=0.1), info_nce(z, z[::-1].copy(), temperature=0.1)
    assert aligned < 1 < random


@pytest.mark.parametrize("name", LOSSES)
def test_one_pair_has_no_loss_and_no_gradient(name):
    z, z_prime = views(1, 4, dtype=np.float32)
    value, gradient = jax.jit(jax.value_and_grad(LOSSES[name]))(z, z_prime, temperature=0.1)
    assert value == 0
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_norms_of_any_size(name):
    z, z_prime = views(8, 4, dtype=np.float32)
    loss = jax.jit(LOSSES[name])
    expected = loss(z, z_prime, temperature=0.1)
    for size in (1e-30, 1e30):
        # A rounding error of a unit row is one of the logits, times 1 / temperature.
        np.testing.assert_allclose(loss(z * np.float32(size), z_prime, temperature=0.1), expected, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_zero_row_stays_zero_with_zero_gradient(name):
    z, z_prime = views(4, 3, dtype=np.float32)
    z[1] = 0
    np.testing.assert_array_equal(unit_rows(z)[1], 0)
    value, gradient = jax.jit(jax.value_and_grad(LOSSES[name]))(z, z_prime, temperature=0.1)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[1], 0)


def test_a_nan_row_gives_a_nan_loss():
    z, z_prime = views(4, 3, dtype=np.float32)
    z[1, 0] = np.nan
    assert np.isnan(info_nce(z, z_prime, temperature=0.1))


@pytest.mark.parametrize("name", LOSSES)
def test_bad_input(unchecked_shapes, name):
    z, z_prime = views(4, 3, dtype=np.float32)
    for temperature in (0, -0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"temperature.*{temperature}"):
            LOSSES[name](z, z_prime, temperature=temperature)
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(3, 3\)"):
        LOSSES[name](z, z_prime[:3], temperature=0.1)
    with pytest.raises(ValueError, match=r"\[n, d\]"):
        LOSSES[name](z[0], z_prime[0], temperature=0.1)
    with pytest.raises(ValueError, match="n >= 1"):
        LOSSES[name](z[:0], z_prime[:0], temperature=0.1)
