"""The running covariance: exact for small singular values, mergeable, the same in NumPy, JAX and on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec
from test_spectrum import embedding

from dcjax.collapse import Covariance

DIM, ROWS = 25, 3000
DECADES = 10.0 ** -np.linspace(0, 12, DIM)


@functools.cache
def case(dtype, mean):
    """Rows whose eigenvalues run from 1 down to 1e-12, stored in a dtype, and the exact eigenvalues of those rows.

    The mean is so many times the largest standard deviation. The reference is the SVD in float64 of rows centred in
    longer arithmetic.
    """
    direction = np.ones(DIM) / np.sqrt(DIM)
    z = (embedding(DECADES, n=ROWS) - 3.0 + mean * direction).astype(dtype)
    exact = z.astype(np.longdouble)
    centred = (exact - exact.mean(axis=0)).astype(np.float64)
    return z, np.linalg.svd(centred, compute_uv=False) ** 2 / ROWS


def streamed(z, rows, dtype):
    state = Covariance.init(DIM, dtype)
    for start in range(0, len(z), rows):
        state = state.update(z[start : start + rows])
    return state


@pytest.mark.parametrize("rows", [64, 500, ROWS])
@pytest.mark.parametrize("mean", [0.0, 10.0])
@pytest.mark.parametrize("library", [np, jnp])
def test_float32_in_blocks(library, mean, rows):
    """1 % down to 1e-11 of the largest: float32 has 6e-8, and the roots that R holds have 3e-6 there."""
    z, exact = case("float32", mean)
    found = streamed(library.asarray(z), rows, np.float32).singular_values()
    resolved = exact > 1e-11 * exact[0]
    np.testing.assert_allclose(found[resolved], exact[resolved], rtol=1e-2)


@pytest.mark.parametrize("rows", [64, ROWS])
def test_float64_with_a_large_mean(rows):
    z, exact = case("float64", 1e4)
    found = streamed(z, rows, np.float64).singular_values()
    resolved = exact > 1e-12 * exact[0]
    np.testing.assert_allclose(found[resolved], exact[resolved], rtol=1e-7)


def test_a_float32_gram_matrix_would_not_do():
    """The reason for R: the same rows through a float32 covariance matrix, with the mean subtracted exactly."""
    z, exact = case("float32", 0.0)
    centred = (z - z.astype(np.float64).mean(axis=0)).astype(np.float32)
    found = np.linalg.eigvalsh(centred.T @ centred / np.float32(ROWS))[::-1]
    small = exact < 1e-8 * exact[0]
    assert (np.abs(found / exact - 1)[small] > 0.1).mean() > 0.8


@settings(max_examples=25, deadline=None, database=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, ROWS), max_size=6), order=st.randoms(use_true_random=False), wide=st.booleans())
def test_merging_in_any_split_and_order(cuts, order, wide):
    """Float64: 1e-6 of each value. Float32: 1e-6 of the largest for each merge and update, and 1 % of each value."""
    dtype = np.float64 if wide else np.float32
    z, exact = case(dtype.__name__, 1e4 if wide else 10.0)
    parts = np.split(z, sorted(cuts))
    states = [Covariance.init(DIM, dtype).update(part) for part in parts]
    while len(states) > 1:
        one = states.pop(order.randrange(len(states)))
        other = states.pop(order.randrange(len(states)))
        states.append(one.merge(other))
    found = states[0].singular_values()
    assert states[0].count == ROWS
    mean = z.mean(axis=0, dtype=np.longdouble).astype(np.float64)
    np.testing.assert_allclose(states[0].mean, mean, rtol=4 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).eps)
    resolved = exact > (1e-12 if wide else 1e-11) * exact[0]
    np.testing.assert_allclose(found[resolved], exact[resolved], rtol=1e-6 if wide else 1e-2)
    np.testing.assert_allclose(found, exact, atol=1e-6 * exact[0], rtol=0)


def test_transformations_of_jax_agree_with_numpy(x64):
    z = embedding(2.0 ** -np.arange(6), n=96)
    expected = Covariance.init(6, np.float64).update(z).singular_values()
    blocks = jnp.asarray(z).reshape(8, 12, 6)

    scanned, _ = jax.lax.scan(lambda state, block: (state.update(block), None), start := _on_device(6), blocks)
    each = jax.vmap(lambda block: start.update(block))(blocks)
    merged = functools.reduce(Covariance.merge, [jax.tree.map(lambda leaf, i=i: leaf[i], each) for i in range(8)])
    inside = jax.jit(lambda rows: start.update(rows).singular_values())(jnp.asarray(z))
    for found in (scanned.singular_values(), merged.singular_values(), inside):
        np.testing.assert_allclose(found, expected, rtol=1e-12)  # float64, values down to 1/32
    assert each.singular_values().shape == (8, 6)


@pytest.mark.parametrize("devices", [1, 8])
def test_any_number_of_devices(x64, devices):
    z = embedding(2.0 ** -np.arange(6), n=96)
    mesh = Mesh(np.array(jax.devices()[:devices]), "data")
    rows = PartitionSpec("data")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=rows, out_specs=rows)
    def shares(part):
        state = jax.tree.map(lambda leaf: leaf + 0 * part.sum(), _on_device(6))  # differs between devices
        return jax.tree.map(lambda leaf: leaf[None], state.update(part))

    found = jax.tree.map(np.asarray, jax.jit(shares)(jnp.asarray(z)))
    states = [jax.tree.map(lambda leaf, i=i: leaf[i], found) for i in range(devices)]
    expected = Covariance.init(6, np.float64).update(z).singular_values()
    np.testing.assert_allclose(functools.reduce(Covariance.merge, states).singular_values(), expected, rtol=1e-12)


def _on_device(dim):
    return jax.tree.map(jnp.asarray, Covariance.init(dim, np.float64))


def test_weights_are_repetitions():
    z = embedding(2.0 ** -np.arange(4), n=30)
    weights = np.arange(30) % 3
    z[0] = np.nan  # of weight 0, as padding
    found = Covariance.init(4, np.float64).update(z, weights)
    repeated = Covariance.init(4, np.float64).update(np.repeat(z[1:], weights[1:], axis=0))
    assert found.count == repeated.count == weights.sum()
    np.testing.assert_allclose(found.mean, repeated.mean, rtol=1e-13)
    np.testing.assert_allclose(found.singular_values(), repeated.singular_values(), rtol=1e-11)


def test_no_rows_change_nothing():
    z = embedding(2.0 ** -np.arange(4), n=30)
    empty, state = Covariance.init(4, np.float64), Covariance.init(4, np.float64).update(z)
    for found in (empty.merge(state), state.merge(empty), state.update(z[:0]), state.update(z[:3], np.zeros(3))):
        np.testing.assert_allclose(found.singular_values(), state.singular_values(), rtol=1e-12)
        np.testing.assert_allclose(found.mean, state.mean, rtol=1e-14)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda c: Covariance.init(0), "^dim must be a whole number of at least 1, found 0"),
        (lambda c: Covariance.init(2, np.float16), "^dtype must be float32 or float64, found float16"),
        (lambda c: c.update(np.zeros(3)), r"^z must have the shape \[n, 3\], found \(3,\)"),
        (lambda c: c.update(np.zeros((2, 4))), r"^z must have .*found \(2, 4\)"),
        (lambda c: c.update(np.zeros((2, 3)), np.ones(3)), r"^weights must have the shape \[2\], found \(3,\)"),
        (lambda c: c.update(np.zeros((2, 3)), -np.ones(2)), "^weights must not be negative, found -1"),
        (lambda c: c.merge(Covariance.init(4)), r"^only covariances of the same.*3 \(float32\) and 4"),
        (lambda c: c.merge(Covariance.init(3, np.float64)), "^only covariances of the same"),
        (lambda c: c.update(np.zeros((1, 3))).singular_values(), "^a spectrum needs two rows or more, found 1"),
        (lambda c: Covariance.init(3, np.float64).update(jnp.zeros((2, 3))), "jax_enable_x64"),
    ],
)
def test_bad_input(action, message):
    with pytest.raises(ValueError, match=message):
        action(Covariance.init(3))
