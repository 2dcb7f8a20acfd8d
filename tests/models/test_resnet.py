"""The encoders: sizes, initial values, precision, recomputation, sharding."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax.models import conv
from dcjax.models.resnet import ENCODERS, BasicBlock, Bottleneck, ResNet, ResNet18, ResNet50, make_encoder
from dcjax.runtime.errors import SettingError

WIDTH = 1 / 16


def _shapes(encoder, size=32):
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    return jax.eval_shape(functools.partial(encoder.init, train=False), jax.random.key(0), images)


@functools.cache
def _small():
    """A narrow ResNet-18, its initial variables and eight images."""
    encoder = make_encoder("resnet18", width=WIDTH, stem="small")
    images = jax.random.normal(jax.random.key(1), (8, 8, 8, 3))
    return encoder, jax.jit(functools.partial(encoder.init, train=False))(jax.random.key(0), images[:1]), images


def _value_and_gradients(encoder, variables, images):
    target = jax.random.normal(jax.random.key(2), (images.shape[0], encoder.features))

    def loss(params):
        r, updated = encoder.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return jnp.mean(jnp.square(r - target)), updated["batch_stats"]

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])


@pytest.mark.parametrize(("name", "count"), [("resnet18", 11_176_512), ("resnet50", 23_508_032)])
def test_published_parameter_counts(name, count):
    # torchvision's 11,689,512 and 25,557,032 less the classifiers (512 + 1) * 1000 and (2048 + 1) * 1000.
    assert sum(leaf.size for leaf in jax.tree.leaves(_shapes(make_encoder(name))["params"])) == count


@pytest.mark.parametrize(
    ("name", "width", "features"),
    [("resnet18", 1, 512), ("resnet18", 1 / 4, 128), ("resnet50", 1, 2048), ("resnet50", 2, 4096)],
)
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_size_of_the_representation(name, width, features, stem):
    encoder = make_encoder(name, width=width, stem=stem)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    r = jax.eval_shape(functools.partial(encoder.apply, train=False), _shapes(encoder), images)
    assert encoder.features == features
    assert r.shape == (2, features)
    assert r.dtype == jnp.float32


def test_resolution_of_the_stages():
    # The ImageNet stem divides 224 by 4, the small one keeps 32; each later stage halves.
    for stem, size, expected in (("imagenet", 224, [56, 28, 14, 7]), ("small", 32, [32, 16, 8, 4])):
        encoder = ResNet50(width=WIDTH, stem=stem)
        run = functools.partial(encoder.apply, train=False, capture_intermediates=True, mutable=["intermediates"])
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        _, captured = jax.eval_shape(run, _shapes(encoder, size), images)
        stages = [captured["intermediates"][f"layer{stage}_0"]["__call__"][0].shape for stage in range(1, 5)]
        assert stages == [(1, side, side, 16 * 2**i) for i, side in enumerate(expected)]


def test_initial_values():
    _, variables, _ = _small()
    params = variables["params"]
    np.testing.assert_array_equal(params["layer4_1"]["bn2"]["scale"], 0.0)
    np.testing.assert_array_equal(params["layer4_1"]["bn1"]["scale"], 1.0)
    np.testing.assert_array_equal(params["layer2_0"]["downsample_bn"]["scale"], 1.0)
    np.testing.assert_array_equal(params["bn1"]["scale"], 1.0)
    np.testing.assert_array_equal(variables["batch_stats"]["bn1"]["mean"], 0.0)
    np.testing.assert_array_equal(variables["batch_stats"]["bn1"]["var"], 1.0)
    kernel = np.asarray(params["layer4_1"]["conv2"]["kernel"])  # [3, 3, 32, 32]
    deviation = np.sqrt(2 / (9 * 32))
    # 9,216 draws: five standard errors of a standard deviation are 5 / sqrt(2 * 9216) = 3.7 %.
    assert kernel.std() == pytest.approx(deviation, rel=0.037)
    # Not truncated: a truncated normal ends at two (widened: 2.3) standard deviations.
    assert np.abs(kernel).max() > 2.6 * deviation
    init = jax.jit(functools.partial(Bottleneck(filters=4).init, train=False))
    bottleneck = init(jax.random.key(0), jnp.zeros((1, 4, 4, 16)))["params"]
    np.testing.assert_array_equal(bottleneck["bn3"]["scale"], 0.0)
    np.testing.assert_array_equal(bottleneck["bn2"]["scale"], 1.0)


def test_a_block_starts_as_the_identity():
    h = jax.random.uniform(jax.random.key(0), (2, 4, 4, 4))
    block = BasicBlock(filters=4)
    variables = block.init(jax.random.key(1), h, train=False)
    out, _ = block.apply(variables, h, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(out, h)


def test_the_last_block_alone():
    # The representation is the pool of the last block's output, given what the block before it puts out.
    encoder, variables, images = _small()
    mutable = ["batch_stats", "intermediates"]
    run = jax.jit(functools.partial(encoder.apply, train=True, capture_intermediates=True, mutable=mutable))
    r, captured = run(variables, images)
    h = captured["intermediates"]["layer4_0"]["__call__"][0]
    block = BasicBlock(filters=32, strides=1, dtype=jnp.float32)
    own = {collection: variables[collection]["layer4_1"] for collection in ("params", "batch_stats")}
    out, _ = block.apply(own, h, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(out.mean(axis=(1, 2)), r, rtol=1e-5, atol=1e-6)


def test_recomputation_changes_nothing():
    plain, variables, images = _small()
    remat = make_encoder("resnet18", width=WIDTH, stem="small", remat=True)
    assert jax.tree.structure(_shapes(remat)) == jax.tree.structure(variables)
    expected, actual = jax.jit(lambda v, x: (_value_and_gradients(plain, v, x), _value_and_gradients(remat, v, x)))(
        variables, images
    )
    # The compiler may order float32 sums differently.
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5), actual, expected)


@pytest.mark.parametrize(
    "stage_sizes", [(1, 1), pytest.param((2, 2, 2, 2), marks=pytest.mark.slow)], ids=["two blocks", "ResNet-18"]
)
def test_hessian_products_equal_those_of_xlas_convolution(stage_sizes, x64):
    make = functools.partial(ResNet, stage_sizes, BasicBlock, width=WIDTH, stem="small", dtype=jnp.float64)
    images = jax.random.normal(jax.random.key(0), (2, 10, 10, 3), jnp.float64)
    shapes = jax.eval_shape(functools.partial(make().init, train=False), jax.random.key(1), images)
    rng = np.random.default_rng(0)  # blocks that start as the identity would hide their convolutions
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.1, 0.5, leaf.shape)), shapes)
    params = variables["params"]
    along = jax.tree.map(jnp.cos, params)
    last = f"layer{len(stage_sizes)}_{stage_sizes[-1] - 1}"

    def loss(encoder, params):
        _, captured = encoder.apply(
            {**variables, "params": params},
            images,
            train=True,
            capture_intermediates=lambda module, _: module.name == last,
            mutable=["batch_stats", "intermediates"],
        )
        h = captured["intermediates"][last]["__call__"][0]  # the pool that follows rounds to float32
        return jnp.mean(jnp.square(h))

    def forward_over_reverse(encoder, params):
        return jax.jvp(jax.grad(functools.partial(loss, encoder)), (params,), (along,))[1]

    def reverse_over_forward(encoder, params):
        return jax.grad(lambda p: jax.jvp(functools.partial(loss, encoder), (p,), (along,))[1])(params)

    with mock.patch.object(conv, "conv2d", conv.xla_conv2d):
        expected = jax.jit(functools.partial(forward_over_reverse, make()))(params)
    actual = jax.jit(lambda p: (forward_over_reverse(make(remat=True), p), reverse_over_forward(make(), p)))(params)
    for product in actual:
        jax.tree.map(
            lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=1e-10 * float(jnp.abs(e).max() + 1)),
            product,
            expected,
        )


def test_bfloat16():
    plain, variables, images = _small()
    half = make_encoder("resnet18", width=WIDTH, stem="small", dtype=jnp.bfloat16)
    expected, actual = jax.jit(
        lambda v, x: tuple(e.apply(v, x, train=True, mutable=["batch_stats"]) for e in (plain, half))
    )(variables, images)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((_shapes(half), actual)))
    # Eight bits of mantissa (2^-9 relative rounding) through nine blocks, of which each starts as the identity.
    np.testing.assert_allclose(actual[0], expected[0], rtol=0, atol=0.03 * float(jnp.abs(expected[0]).max()))


def test_evaluation_uses_the_running_statistics():
    encoder, variables, images = _small()
    run = jax.jit(functools.partial(encoder.apply, train=False))
    # Another batch size is another order of float32 sums; statistics of the batch would differ in the first digit.
    np.testing.assert_allclose(run(variables, images)[:1], run(variables, images[:1]), rtol=1e-3, atol=1e-4)


def test_settings_that_cannot_be_used():
    assert {"resnet17", "resnet18", "resnet50"} <= set(ENCODERS)
    with pytest.raises(
        SettingError, match=r"model\.name: 'resnet19' is unknown; known encoders: resnet17, resnet18, resnet50"
    ):
        make_encoder("resnet19")
    with pytest.raises(SettingError, match=r"model\.stem: 'large' is unknown; known stems: imagenet, small"):
        make_encoder("resnet18", stem="large")
    for width in (0, -1, 0.3, 1 / 128):
        with pytest.raises(SettingError, match=r"model\.width"):
            ResNet18(width=width)
