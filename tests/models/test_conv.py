"""The convolution's own rules against those that XLA derives: identities, so in double precision."""

import re

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
    "3x3 cropped": (9, 8, 4, 5, (3, 3), (1, 1), ((-1, 1), (1, -2))),
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
# One case for each rule and each kind of stride and padding; the others take the same paths.
QUICK = ("3x3 uneven padding", "3x3 stride 1 and 2", "1x1 stride 2", "few positions")
SOME_CHUNKS, ONE_CHUNK, AN_IMAGE_PER_CHUNK = 2000, 10**6, 1


def _arrays(case, n, dtype=jnp.float64):
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


def _assert_equals_xlas(compute, settings, *arrays):
    """Compares what `compute(convolution, *arrays)` makes of `conv2d` and of XLA's own rules, in one program."""

    def both(*arrays):
        return tuple(
            compute(lambda x, kernel, f=f: f(x, kernel, **settings), *arrays) for f in (conv.conv2d, conv.xla_conv2d)
        )

    _assert_close(*jax.jit(both)(*arrays))


def _assert_close(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype == jnp.float64
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-10 * max(1.0, float(jnp.abs(e).max())))


def _gradients(f, x, kernel, g):
    value, pull = jax.vjp(f, x, kernel)
    return value, *pull(g)


@pytest.mark.parametrize(
    ("name", "chunk_elements"),
    [
        *((name, SOME_CHUNKS) for name in QUICK),
        *(pytest.param(name, SOME_CHUNKS, marks=pytest.mark.slow) for name in CASES if name not in QUICK),
        *(pytest.param(name, ONE_CHUNK, marks=pytest.mark.slow) for name in CASES),
        *(pytest.param(name, AN_IMAGE_PER_CHUNK, marks=pytest.mark.slow) for name in ("3x3", "3x3 stride 2", "1x1")),
    ],
)
def test_gradients_equal_xlas(name, chunk_elements, monkeypatch, strict_dtypes, x64):
    # No chunk of two or four divides seven images.
    monkeypatch.setattr(conv, "CHUNK_ELEMENTS", chunk_elements)
    *arrays, settings = _arrays(CASES[name], 7)
    _assert_equals_xlas(_gradients, settings, *arrays)


@pytest.mark.parametrize("name", ["3x3", pytest.param("stem 7x7", marks=pytest.mark.slow)])
def test_batch_of_one(name, strict_dtypes, x64):
    *arrays, settings = _arrays(CASES[name], 1)
    _assert_equals_xlas(_gradients, settings, *arrays)


def _all_modes(f, x, kernel, g):
    """Tangents, and the product of the Hessian of a loss with a vector in the three orders that contain reverse."""

    def loss(x, kernel):
        return jnp.sum(g * jnp.sin(f(x, kernel)))  # not quadratic, so that no part of the Hessian is zero

    gradient = jax.grad(loss, argnums=(0, 1))
    at, along = (x, kernel), (jnp.cos(x), jnp.cos(kernel))
    _, tangent = jax.jvp(f, at, along)
    _, linear = jax.linearize(f, *at)
    _, forward_over_reverse = jax.jvp(gradient, at, along)
    reverse_over_forward = jax.grad(lambda *at: jax.jvp(loss, at, along)[1], argnums=(0, 1))(*at)
    reverse_over_reverse = jax.grad(
        lambda *at: sum(jnp.vdot(a, b) for a, b in zip(gradient(*at), along, strict=True)), argnums=(0, 1)
    )(*at)
    recomputed = jax.grad(jax.checkpoint(loss), argnums=(0, 1))(*at)
    return tangent, linear(*along), forward_over_reverse, reverse_over_forward, reverse_over_reverse, recomputed


@pytest.mark.parametrize("name", [QUICK[0], *(pytest.param(name, marks=pytest.mark.slow) for name in QUICK[1:])])
def test_every_order_of_forward_and_reverse_mode(name, monkeypatch, strict_dtypes, x64):
    monkeypatch.setattr(conv, "CHUNK_ELEMENTS", SOME_CHUNKS)
    *arrays, settings = _arrays(CASES[name], 3)
    _assert_equals_xlas(_all_modes, settings, *arrays)


def test_numerical_gradients_of_second_order(x64):
    x, kernel, _, settings = _arrays((5, 5, 1, 2, (2, 2), (1, 1), ((1, 0), (0, 1))), 1)
    f = jax.jit(lambda x, k: conv.conv2d(x, k, **settings))
    check_grads(f, (x, kernel), order=2, modes=["fwd", "rev"])


def _mapped(f, x, kernel, g):
    """`vmap` over either operand and over both of values, gradients of each example, and gradients of mapped calls."""

    def gradients(x, kernel, g):
        return _gradients(f, x, kernel, g)[1:]

    kernels = jnp.stack([kernel, jnp.cos(kernel), -kernel], axis=3)  # [kh, kw, c, 3, d]
    examples = x[:, None], g[:, None]  # [n, 1, ...]
    over_both = jax.vmap(gradients, (0, None, 0))
    return (
        jax.vmap(f, (None, 3), 4)(x, kernels),
        jax.vmap(gradients, (None, 3, None))(x, kernels, g),
        jax.vmap(f, (0, None))(examples[0], kernel),
        over_both(examples[0], kernel, examples[1]),
        jax.vmap(over_both, (None, 3, None))(examples[0], kernels, examples[1]),
        jax.vmap(lambda g: gradients(x, kernel, g))(jnp.stack([g, jnp.cos(g)])),
        jax.grad(lambda kernel: jnp.sum(jnp.sin(jax.vmap(f, (0, None))(examples[0], kernel))))(kernel),
        jax.grad(lambda kernel: jnp.sum(jnp.sin(over_both(examples[0], kernel, examples[1])[0])))(kernel),
    )


@pytest.mark.parametrize("name", [QUICK[0], *(pytest.param(name, marks=pytest.mark.slow) for name in QUICK[1:])])
def test_mapped_calls_and_gradients_of_single_examples(name, strict_dtypes, x64):
    *arrays, settings = _arrays(CASES[name], 2)
    _assert_equals_xlas(_mapped, settings, *arrays)


def test_jacobians(strict_dtypes, x64):
    def jacobians(f, x, kernel):
        return jax.jacrev(f, argnums=(0, 1))(x, kernel), jax.jacfwd(f, argnums=(0, 1))(x, kernel)

    x, kernel, _, settings = _arrays((6, 6, 2, 2, (2, 2), (1, 1), ((0, 0), (0, 0))), 2)
    _assert_equals_xlas(jacobians, settings, x, kernel)


def test_closed_form():
    # All ones, no padding: every tap of every pair of channels counts the output positions of the batch.
    x, kernel = jnp.ones((3, 8, 9, 4)), jnp.ones((3, 3, 4, 5))
    value, _, dkernel = _value_and_gradients(
        conv.conv2d, x, kernel, jnp.ones((3, 6, 7, 5)), {"strides": [1, 1], "padding": [(0, 0), [0, 0]]}
    )
    np.testing.assert_array_equal(value, 36.0)
    np.testing.assert_array_equal(dkernel, 3.0 * 6 * 7)


@pytest.mark.parametrize("name", ["3x3", pytest.param("3x3 stride 2", marks=pytest.mark.slow), "few positions"])
def test_bfloat16_images_have_float32_weight_gradients(name, monkeypatch, strict_dtypes):
    monkeypatch.setattr(conv, "CHUNK_ELEMENTS", SOME_CHUNKS)
    x, kernel, g, settings = _arrays(CASES[name], 7, jnp.bfloat16)
    run = jax.jit(lambda x, kernel, g: _value_and_gradients(conv.conv2d, x, kernel, g, settings))
    value, dx, dkernel = run(x, kernel.astype(jnp.float32), g)
    assert value.dtype == dx.dtype == jnp.bfloat16
    assert dkernel.dtype == jnp.float32
    exact = _value_and_gradients(conv.xla_conv2d, *(a.astype(jnp.float32) for a in (x, kernel, g)), settings)[2]
    # The inputs are exact in float32. Float32 sums of at most 504 terms differ by less than 1e-5 of the largest; a
    # single rounding to bfloat16 would show as 2^-9 = 2e-3.
    np.testing.assert_allclose(dkernel, exact, rtol=0, atol=1e-4 * float(jnp.abs(exact).max()))
    # A kernel of the images' dtype gets its gradient in that dtype, rounded once.
    rounded = run(x, kernel, g)[2]
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded.astype(jnp.float32), dkernel, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize(
    "chunk_elements", [30_000, pytest.param(ONE_CHUNK, marks=pytest.mark.slow)], ids=["chunks", "one chunk"]
)
@pytest.mark.parametrize("name", ["3x3", pytest.param("3x3 stride 2", marks=pytest.mark.slow)])
def test_eight_devices_equal_one(name, chunk_elements, monkeypatch, x64):
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    monkeypatch.setattr(conv, "CHUNK_ELEMENTS", chunk_elements)
    x, kernel, g, settings = _arrays(CASES[name], 32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    def compute(x, kernel, g):
        single = jax.vmap(lambda x, g: _value_and_gradients(conv.conv2d, x[None], kernel, g[None], settings)[2])
        return *_value_and_gradients(conv.conv2d, x, kernel, g, settings), single(x, g)

    def in_shards(x, kernel, g):  # the kernel does not vary over the devices, so its gradient is summed over them
        return _value_and_gradients(conv.conv2d, x, kernel, g, settings)

    data, every = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(in_shards, mesh=mesh, in_specs=(data, every, data), out_specs=(data, data, every))
    arrays = jax.device_put(x, rows), jax.device_put(kernel, whole), jax.device_put(g, rows)
    compiled = jax.jit(lambda *arrays: (compute(*arrays), mapped(*arrays))).lower(*arrays).compile()
    assert not re.search("all-gather|all-to-all|collective-permute", compiled.as_text())  # no image leaves its device
    expected = jax.jit(compute)(x, kernel, g)
    _assert_close(compiled(*arrays), (expected, expected[:3]))


def test_one_trace_serves_every_platform():
    x, kernel, g, settings = _arrays(CASES["3x3"], 4, jnp.float32)
    run = jax.jit(lambda x, k, g: jax.vjp(lambda k: conv.conv2d(x, k, **settings), k)[1](g))
    traced = run.trace(x, kernel, g)
    assert "dot_general" in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "dot_general" not in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "dot_general" not in traced.lower(lowering_platforms=("tpu",)).as_text()
    # Half precision: XLA sums over devices in the type in which the convolution puts its result out.
    traced = run.trace(x.astype(jnp.bfloat16), kernel, g.astype(jnp.bfloat16))
    for platform, dtype in (("tpu", "f32"), ("cuda", "bf16")):
        lowered = traced.lower(lowering_platforms=(platform,)).as_text()
        assert re.search(rf"stablehlo\.convolution.*xbf16>, .*xbf16>\) -> tensor<3x3x4x5x{dtype}>", lowered)


def test_the_precision_is_that_of_the_call():
    x, kernel, g, settings = _arrays(CASES["3x3"], 4, jnp.float32)

    def run(x, kernel, g):
        with jax.default_matmul_precision("highest"):  # left again before the program is lowered
            return _value_and_gradients(conv.conv2d, x, kernel, g, settings)

    lowered = jax.jit(run).trace(x, kernel, g).lower(lowering_platforms=("tpu",)).as_text()
    assert len(re.findall(r"stablehlo\.convolution", lowered)) == 3
    assert lowered.count("HIGHEST") == 6  # each convolution states it for both operands


@pytest.mark.parametrize(
    ("x", "kernel"),
    [((8, 8, 3), (3, 3, 3, 4)), ((1, 8, 8, 3), (3, 3, 4, 4)), ((1, 8, 8, 3), (3, 3, 3))],
)
def test_shapes_that_do_not_fit(x, kernel):
    with pytest.raises(ValueError, match="conv2d: expected x"):
        conv.conv2d(jnp.zeros(x), jnp.zeros(kernel), strides=(1, 1), padding=((0, 0), (0, 0)))


@pytest.mark.parametrize(("x", "kernel"), [("float32", "bfloat16"), ("bfloat16", "float16"), ("int32", "float32")])
def test_dtypes_that_do_not_fit(x, kernel):
    with pytest.raises(ValueError, match=f"found {x}.* and {kernel}"):
        conv.conv2d(
            jnp.zeros((1, 4, 4, 2), x), jnp.zeros((1, 1, 2, 2), kernel), strides=(1, 1), padding=((0, 0), (0, 0))
        )
