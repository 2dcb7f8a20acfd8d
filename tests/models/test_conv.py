"""The CPU weight gradient against the one that XLA derives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from dcjax.models import conv

# image height and width, channels in and out, kernel, strides, padding
CASES = {
    "3x3": (9, 8, 4, 5, (3, 3), (1, 1), ((1, 1), (1, 1))),
    "3x3 no padding": (9, 7, 4, 5, (3, 3), (1, 1), ((0, 0), (0, 0))),
    "3x3 uneven padding": (7, 8, 4, 5, (3, 3), (1, 1), ((0, 2), (2, 1))),
    "3x3 stride 2": (9, 10, 4, 5, (3, 3), (2, 2), ((1, 1), (1, 1))),
    "3x3 stride 2, odd": (11, 13, 4, 5, (3, 3), (2, 2), ((1, 1), (1, 1))),
    "3x3 stride 1 and 2": (6, 11, 4, 5, (3, 3), (1, 2), ((1, 1), (1, 1))),
    "2x5": (8, 9, 4, 5, (2, 5), (1, 1), ((1, 0), (2, 2))),
    "1x1": (5, 6, 4, 5, (1, 1), (1, 1), ((0, 0), (0, 0))),
    "1x1 stride 2": (9, 10, 4, 5, (1, 1), (2, 2), ((0, 0), (0, 0))),
    "stem 7x7": (15, 14, 3, 5, (7, 7), (2, 2), ((3, 3), (3, 3))),
    "stem 3x3": (8, 8, 3, 5, (3, 3), (1, 1), ((1, 1), (1, 1))),
    "few positions": (4, 4, 4, 5, (3, 3), (1, 1), ((1, 1), (1, 1))),
}


def _arrays(case, n, dtype=jnp.float32):
    height, width, c, d, size, strides, padding = case
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (n, height, width, c), dtype)
    kernel = jax.random.normal(keys[1], (*size, c, d), dtype)
    settings = {"strides": strides, "padding": padding}
    shape = jax.eval_shape(lambda: conv.xla_conv2d(x, kernel, **settings)).shape
    return x, kernel, jax.random.normal(keys[2], shape, dtype), settings


def _value_and_gradients(function, x, kernel, g, settings):
    value, pull = jax.vjp(lambda x, kernel: function(x, kernel, **settings), x, kernel)
    return value, *pull(g)


def _both(x, kernel, g, settings):
    """What `conv2d` and XLA's own differentiation make of the same arrays, compiled as one program."""
    functions = (conv.conv2d, conv.xla_conv2d)
    return jax.jit(lambda *arrays: tuple(_value_and_gradients(f, *arrays, settings) for f in functions))(x, kernel, g)


def _assert_close(actual, expected, tolerance):
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * float(jnp.abs(e).max()))


@pytest.mark.parametrize("chunk_elements", [10**6, 2000], ids=["one chunk", "some chunks"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradients_equal_xlas(case, chunk_elements, monkeypatch, strict_dtypes, x64):
    # An identity, so in double precision; no chunk of two or four divides seven images.
    monkeypatch.setattr(conv, "CHUNK_ELEMENTS", chunk_elements)
    arrays = _arrays(case, 7, jnp.float64)
    _assert_close(*_both(*arrays), 1e-10)


@pytest.mark.parametrize("name", ["3x3", "3x3 stride 2", "1x1"])
def test_an_image_per_chunk_in_float32(name, monkeypatch, strict_dtypes):
    # Only the order of float32 sums differs.
    monkeypatch.setattr(conv, "CHUNK_ELEMENTS", 1)
    _assert_close(*_both(*_arrays(CASES[name], 7)), 1e-5)


@pytest.mark.parametrize("name", ["3x3", "stem 7x7"])
def test_batch_of_one(name, strict_dtypes):
    _assert_close(*_both(*_arrays(CASES[name], 1)), 1e-5)


def test_numerical_gradient(x64):
    x, kernel, _, settings = _arrays(CASES["3x3"], 2, jnp.float64)
    check_grads(lambda x, k: conv.conv2d(x, k, **settings), (x, kernel), order=1, modes=["rev"])


def test_closed_form():
    # All ones, no padding: every tap of every pair of channels counts the output positions of the batch.
    x, kernel = jnp.ones((3, 8, 9, 4)), jnp.ones((3, 3, 4, 5))
    value, _, dkernel = _value_and_gradients(
        conv.conv2d, x, kernel, jnp.ones((3, 6, 7, 5)), {"strides": (1, 1), "padding": ((0, 0), (0, 0))}
    )
    np.testing.assert_array_equal(value, 36.0)
    np.testing.assert_array_equal(dkernel, 3.0 * 6 * 7)


@pytest.mark.parametrize("name", ["3x3", "3x3 stride 2"])
def test_bfloat16_accumulates_in_float32(name, monkeypatch, strict_dtypes):
    monkeypatch.setattr(conv, "CHUNK_ELEMENTS", 2000)
    x, kernel, g, settings = _arrays(CASES[name], 7, jnp.bfloat16)
    _, _, dkernel = _value_and_gradients(conv.conv2d, x, kernel, g, settings)
    exact = _value_and_gradients(conv.xla_conv2d, *(a.astype(jnp.float32) for a in (x, kernel, g)), settings)[2]
    assert dkernel.dtype == jnp.bfloat16
    # The inputs are exact in float32, so the one rounding is that of the result: 2^-9 relative, plus float32 noise.
    np.testing.assert_allclose(dkernel.astype(jnp.float32), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("chunk_elements", [10**6, 10_000])
@pytest.mark.parametrize("name", ["3x3", "3x3 stride 2", "1x1"])
def test_eight_devices_equal_one(name, chunk_elements, monkeypatch):
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    monkeypatch.setattr(conv, "CHUNK_ELEMENTS", chunk_elements)
    x, kernel, g, settings = _arrays(CASES[name], 32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    run = jax.jit(lambda x, kernel, g: _value_and_gradients(conv.conv2d, x, kernel, g, settings))
    eight = run(jax.device_put(x, rows), jax.device_put(kernel, whole), jax.device_put(g, rows))
    _assert_close(eight, run(x, kernel, g), 1e-5)


def test_one_trace_serves_every_platform():
    x, kernel, g, settings = _arrays(CASES["3x3"], 4)
    run = jax.jit(lambda x, k, g: jax.vjp(lambda k: conv.conv2d(x, k, **settings), k)[1](g))
    traced = run.trace(x, kernel, g)
    assert "dot_general" in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "dot_general" not in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "dot_general" not in traced.lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize(
    ("x", "kernel"),
    [((8, 8, 3), (3, 3, 3, 4)), ((1, 8, 8, 3), (3, 3, 4, 4)), ((1, 8, 8, 3), (3, 3, 3))],
)
def test_shapes_that_do_not_fit(x, kernel):
    with pytest.raises(ValueError, match="conv2d: expected x"):
        conv.conv2d(jnp.zeros(x), jnp.zeros(kernel), strides=(1, 1), padding=((0, 0), (0, 0)))


def test_dtypes_that_do_not_fit():
    with pytest.raises(ValueError, match="bfloat16"):
        conv.conv2d(
            jnp.zeros((1, 4, 4, 2)), jnp.zeros((1, 1, 2, 2), jnp.bfloat16), strides=(1, 1), padding=((0, 0), (0, 0))
        )
