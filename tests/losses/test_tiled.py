"""The tiled and the sharded losses against the plain ones, which are tested against slow references."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dcjax.losses import LOSSES, info_nce, nt_xent


def views(n, d, *, aligned=False, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, d))
    z_prime = z + 0.05 * rng.normal(size=(n, d)) if aligned else 0.3 * z + rng.normal(size=(n, d))
    return z.astype(dtype), z_prime.astype(dtype)


def line(devices, kind=AxisType.Auto, name="data"):
    return jax.make_mesh((devices,), (name,), devices=jax.devices()[:devices], axis_types=(kind,))


@functools.cache
def differentiated(name, **settings):
    return jax.jit(jax.value_and_grad(functools.partial(LOSSES[name], **settings), argnums=(0, 1)))


def value_and_gradients(name, z, z_prime, **settings):
    value, gradients = differentiated(name, **settings)(z, z_prime)
    return np.asarray(value), np.concatenate([np.asarray(g) for g in gradients])


def agree(found, expected, *, value, gradient):
    assert abs(found[0] - expected[0]) <= value * max(1, abs(expected[0]))
    size = np.linalg.norm(expected[1])
    # Absolute where the gradient is zero but for rounding.
    assert np.linalg.norm(found[1] - expected[1]) <= gradient * (size if size > 1e-9 else 1)


# What can fail alone: one pair; one tile that is not full; tiles of one logit; several tiles, the last not full; the
# same with a running maximum. The slow test takes the whole grid.
CASES = [(1, 16, 0.1, 100), (64, 1, 1.0, 100), (7, 16, 0.1, 1), (65, 16, 0.05, 24), (65, 16, 0.01, 24)]


def check(name, n, d, temperature, blocks, aligned):
    z, z_prime = views(n, d, aligned=aligned)
    rounded, rounded_prime = np.float32(z), np.float32(z_prime)
    exact = value_and_gradients(name, z, z_prime, temperature=temperature)
    # Rounding the inputs to float32 is not the loss's error.
    narrow = value_and_gradients(name, np.float64(rounded), np.float64(rounded_prime), temperature=temperature)
    for block in blocks:
        settings = {"temperature": temperature, "block_size": block}
        agree(value_and_gradients(name, z, z_prime, **settings), exact, value=1e-10, gradient=1e-10)
        found = value_and_gradients(name, rounded, rounded_prime, **settings)
        assert found[1].dtype == np.float32
        agree(found, narrow, value=1e-5, gradient=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("n", "d", "temperature", "block"), CASES)
def test_against_the_plain_loss(x64, name, n, d, temperature, block):
    check(name, n, d, temperature, [block], aligned=False)


@pytest.mark.parametrize("name", LOSSES)
def test_on_aligned_views(x64, name):
    check(name, 65, 16, 0.05, [24], aligned=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.1, 1.0])
def test_the_whole_grid(x64, name, aligned, temperature):
    for n in (1, 2, 3, 7, 64, 257, 1000):
        for d in (1, 16, 128, 360, 2048):
            # Millions of tiles of one logit are tried at one width only.
            check(name, n, d, temperature, (1, 64, 100, 512) if n <= 64 or d == 16 else (64, 100, 512), aligned)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("devices", "temperature", "block"),
    [
        # A half ring of an odd and of an even number of devices.
        (3, 0.1, None),
        (8, 0.01, 7),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 0.1, None), (2, 0.1, None), (5, 0.1, None))),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((8, 0.1, None), (3, 0.01, 7))),
    ],
)
def test_on_meshes(x64, name, devices, temperature, block):
    z, z_prime = views(120, 6)
    expected = value_and_gradients(name, z, z_prime, temperature=temperature)
    found = value_and_gradients(name, z, z_prime, temperature=temperature, block_size=block, mesh=line(devices))
    agree(found, expected, value=1e-12, gradient=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("devices", [1, 2, 3, 5, 8])
def test_on_meshes_in_float32(x64, name, devices):
    for n in (120, 960):
        for temperature in (0.01, 0.05, 0.1, 1.0):
            for aligned in (False, True):
                z, z_prime = views(n, 128, aligned=aligned, dtype=np.float32)
                expected = value_and_gradients(name, np.float64(z), np.float64(z_prime), temperature=temperature)
                found = value_and_gradients(
                    name, z, z_prime, temperature=temperature, block_size=64, mesh=line(devices)
                )
                agree(found, expected, value=1e-5, gradient=1e-5)


@pytest.mark.parametrize(
    ("kind", "placed"),
    [
        (AxisType.Auto, "host"),
        (AxisType.Explicit, "split"),
        pytest.param(AxisType.Explicit, "host", marks=pytest.mark.slow),
        pytest.param(AxisType.Explicit, "whole", marks=pytest.mark.slow),
        pytest.param(AxisType.Auto, "split", marks=pytest.mark.slow),
        pytest.param(AxisType.Auto, "whole", marks=pytest.mark.slow),
    ],
)
def test_wherever_the_rows_lie(x64, kind, placed):
    z, z_prime = views(24, 5)
    mesh = line(4, kind)
    expected = value_and_gradients("nt_xent", z, z_prime, temperature=0.1)
    if placed != "host":
        spec = PartitionSpec("data" if placed == "split" else None)
        z, z_prime = (jax.device_put(x, NamedSharding(mesh, spec)) for x in (z, z_prime))
    with jax.set_mesh(mesh):
        agree(
            value_and_gradients("nt_xent", z, z_prime, temperature=0.1, mesh=mesh),
            expected,
            value=1e-12,
            gradient=1e-12,
        )
        value = nt_xent(z, z_prime, temperature=0.1, mesh=mesh)  # outside jit
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)


@pytest.mark.parametrize("axis", ["hosts", "chips"])
def test_one_axis_of_several(x64, axis):
    mesh = jax.make_mesh((2, 4), ("hosts", "chips"), axis_types=(AxisType.Auto,) * 2)
    z, z_prime = views(16, 5)
    expected = value_and_gradients("info_nce", z, z_prime, temperature=0.1)
    found = value_and_gradients("info_nce", z, z_prime, temperature=0.1, mesh=mesh, axis=axis)
    agree(found, expected, value=1e-12, gradient=1e-12)


@pytest.mark.parametrize(
    ("name", "settings"), [("info_nce", {"block_size": 7}), ("nt_xent", {"mesh": 2})], ids=["tiled", "sharded"]
)
def test_a_learned_temperature_and_second_derivatives(x64, name, settings):
    settings = {key: line(value) if key == "mesh" else value for key, value in settings.items()}
    z, z_prime = views(24, 5)
    temperature = jnp.asarray(0.3)

    def second(z, temperature, **settings):
        gradient = jax.grad(LOSSES[name])(z, z_prime, temperature=temperature, **settings)
        return jnp.sum(jnp.sin(gradient)), gradient

    derivatives = jax.grad(second, argnums=(0, 1), has_aux=True)
    found, expected = (jax.jit(functools.partial(derivatives, **s))(z, temperature) for s in (settings, {}))
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-10, atol=1e-12), found, expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("settings", [{"block_size": 3}, {"mesh": 2}], ids=["tiled", "sharded"])
def test_special_rows(strict_dtypes, name, settings):
    settings = {key: line(value) if key == "mesh" else value for key, value in settings.items()} | {"temperature": 0.1}
    n = 8
    same = np.ones((n, 4), np.float32)
    candidates = n if name == "info_nce" else 2 * n - 1
    np.testing.assert_allclose(LOSSES[name](same, same, **settings), math.log(candidates), rtol=1e-6)
    basis = 1e30 * np.eye(n, dtype=np.float32)  # orthogonal, and large
    negatives = (n - 1 if name == "info_nce" else 2 * (n - 1)) * math.exp(-10)
    np.testing.assert_allclose(LOSSES[name](basis, basis, **settings), math.log1p(negatives), rtol=1e-4)
    z, z_prime = views(n, 4, dtype=np.float32)
    z[3] = 0
    _, gradient = value_and_gradients(name, z, z_prime, **settings)
    np.testing.assert_array_equal(gradient[3], 0)
    assert np.isfinite(gradient).all()
    z[2, 1] = np.nan
    assert np.isnan(LOSSES[name](z, z_prime, **settings))


@pytest.mark.parametrize(("name", "temperature"), [("info_nce", 0.1), ("nt_xent", 0.01)])
def test_one_pair_has_no_loss_and_no_gradient(name, temperature):
    z, z_prime = views(1, 4, dtype=np.float32)
    value, gradient = value_and_gradients(name, z, z_prime, temperature=temperature, block_size=4)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_a_vanishing_loss_keeps_its_digits(x64):
    """1e-9 of the weight is on the negatives: added to the positive's, nothing of it would be left in float32."""
    z, z_prime = views(16, 64, aligned=True, dtype=np.float32)
    expected = value_and_gradients("info_nce", np.float64(z), np.float64(z_prime), temperature=0.04)
    found = value_and_gradients("info_nce", z, z_prime, temperature=0.04, block_size=8)
    assert 1e-10 < expected[0] < 1e-7
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
    assert np.linalg.norm(found[1] - expected[1]) <= 1e-4 * np.linalg.norm(expected[1])


def test_bfloat16_rows_are_widened():
    z, z_prime = (jnp.bfloat16(x) for x in views(32, 16))
    expected = info_nce(jnp.float32(z), jnp.float32(z_prime), temperature=0.1, block_size=8)
    found = info_nce(z, z_prime, temperature=0.1, block_size=8)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)
    assert jax.grad(info_nce)(z, z_prime, temperature=0.1, block_size=8).dtype == jnp.bfloat16


def compiled(n, d, devices=1, **settings):
    """The compiled value and gradient, for rows that lie where the loss wants them."""
    loss = jax.value_and_grad(functools.partial(nt_xent, temperature=0.1, **settings), argnums=(0, 1))
    split = NamedSharding(line(devices), PartitionSpec("data"))
    rows = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=split)
    return jax.jit(loss, out_shardings=(None, (split, split))).lower(rows, rows).compile()


def temporary(program):
    return program.memory_analysis().temp_size_in_bytes


def test_memory_is_linear():
    plain, tiled = compiled(2048, 64), [compiled(n, 64, block_size=256) for n in (2048, 4096)]
    assert temporary(tiled[0]) < temporary(plain) / 20
    assert temporary(tiled[1]) < 2.1 * temporary(tiled[0])


def test_a_mesh_gathers_nothing():
    program = compiled(4096, 64, devices=8, mesh=line(8), block_size=256)
    assert temporary(program) < temporary(compiled(4096, 64, devices=8)) / 10
    text = program.as_text()
    assert "collective-permute" in text
    assert not re.search(r"all-gather|all-to-all", text)


@pytest.mark.slow
def test_65536_pairs_in_300_megabytes():
    program = compiled(65_536, 128, block_size=1024)
    assert temporary(program) < 300e6
    z, z_prime = views(65_536, 128, dtype=np.float32)
    value, gradients = program(z, z_prime)
    assert 0.5 < float(value) / math.log(2 * 65_536) < 1.2
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("name", LOSSES)
def test_views_of_two_dtypes(x64, name):
    z, z_prime = views(12, 4)
    z_prime = np.float32(z_prime)
    value, gradient = value_and_gradients(name, z, z_prime, temperature=0.1, block_size=5)
    expected = value_and_gradients(name, z, np.float64(z_prime), temperature=0.1)
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_bad_input(unchecked_shapes, name):
    z, z_prime = views(6, 3, dtype=np.float32)
    loss = functools.partial(LOSSES[name], z, z_prime, temperature=0.1)
    with pytest.raises(ValueError, match="block_size must be at least 1, found 0"):
        loss(block_size=0)
    with pytest.raises(ValueError, match="axis 'data' must divide the batch, found 4 devices and 6 rows"):
        loss(mesh=line(4))
    with pytest.raises(ValueError, match=r"axis must be one of the mesh's axes \('data',\), found 'model'"):
        loss(mesh=line(2), axis="model")
    with pytest.raises(ValueError, match="axis 'data' needs the mesh"):
        loss(axis="data")
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    with pytest.raises(ValueError, match=r"axis must name one of the mesh's axes \('a', 'b'\)"):
        loss(mesh=mesh)
    for temperature in (0, -0.1, math.inf, math.nan, jnp.float32(-0.1), np.float32(0)):
        with pytest.raises(ValueError, match="temperature must be positive and finite, found"):
            LOSSES[name](z, z_prime, temperature=temperature, block_size=2)
    with pytest.raises(ValueError, match=r"\(6, 3\) and \(5, 3\)"):
        LOSSES[name](z, z_prime[:5], temperature=0.1, block_size=2)
