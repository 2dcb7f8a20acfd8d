"""The projectors of Tables 1 and 2, and the mechanism of DirectCLR."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax.losses import info_nce
from dcjax.models import PROJECTORS, make_projector
from dcjax.models.resnet import BasicBlock
from dcjax.runtime.errors import SettingError
from dcjax.schema import section
from dcjax.training.optim import lars

D, D0 = 12, 5
SETTINGS = {"width": D, "d0": D0, "hidden": 16, "features": 6}


def start(name, seed=0):
    projector = make_projector(name, **SETTINGS)
    r = jax.random.normal(jax.random.key(1), (8, D))
    return projector, projector.init(jax.random.key(seed), r, train=False), r


def matrix_of(projector, variables):
    """The matrix M of a linear projector z = r M."""
    return np.asarray(projector.apply(variables, jnp.eye(D), train=False))


@pytest.mark.parametrize(
    ("name", "trained", "fixed", "out"),
    [
        ("none", 0, 0, D),
        ("linear", D * 6, 0, 6),
        ("mlp", D * 16 + 2 * 16 + 16 * 6 + 2 * 6, 0, 6),
        ("direct", 0, 0, D0),
        ("random_subset", 0, 0, D0),
        ("orthogonal", D * D, 0, D),
        ("diagonal", D, 0, D),
        ("low_rank", 0, 2 * D * D0, D),
        ("low_rank_diagonal", 0, D, D),
    ],
)
def test_sizes(name, trained, fixed, out):
    projector, variables, r = start(name)

    def count(collection):
        return sum(leaf.size for leaf in jax.tree.leaves(variables.get(collection, {})))

    assert count("params") == trained
    assert count("constants") == fixed
    assert projector.apply(variables, r, train=False).shape == (8, out)
    assert set(variables) <= {"params", "batch_stats", "constants"}


def test_the_table_is_complete():
    assert set(PROJECTORS) == {
        "none", "linear", "mlp", "direct", "random_subset", "orthogonal", "diagonal", "low_rank", "low_rank_diagonal",
    }  # fmt: skip
    subvectors = {name for name in PROJECTORS if getattr(start(name)[0], "is_subvector", False)}
    assert subvectors == {"direct", "low_rank_diagonal"}


def test_none_and_direct_copy_their_input():
    for name, columns in (("none", D), ("direct", D0)):
        projector, variables, r = start(name)
        np.testing.assert_array_equal(projector.apply(variables, r, train=True), r[:, :columns])


def test_random_subset_takes_other_entries_at_every_draw():
    projector, variables, _ = start("random_subset")
    r = jnp.broadcast_to(jnp.arange(D, dtype=jnp.float32), (3, D))

    def chosen(draw):
        return projector.apply(variables, r, train=True, rngs={"projector": jax.random.key(draw)})

    np.testing.assert_array_equal(chosen(0), chosen(0))
    np.testing.assert_array_equal(chosen(0)[0], chosen(0)[2])  # the same entries of every row
    draws = [set(np.asarray(chosen(draw)[0], int)) for draw in range(40)]
    assert all(len(draw) == D0 for draw in draws)
    assert len(set(map(frozenset, draws))) > 20
    assert set.union(*draws) == set(range(D))
    np.testing.assert_array_equal(projector.apply(variables, r, train=False), r[:, :D0])


def test_orthogonal_stays_orthogonal_while_it_is_trained():
    projector, variables, r = start("orthogonal")
    optimizer = lars(0.5, momentum=0.9, weight_decay=0.0, trust_coefficient=0.1)
    params, target = variables["params"], jax.random.normal(jax.random.key(2), (8, D))
    state, before = optimizer.init(params), matrix_of(projector, variables)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: jnp.mean((projector.apply({"params": p}, r, train=True) - target) ** 2))(params)
        updates, state = optimizer.update(gradient, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    for _ in range(5):
        params, state = step(params, state)
    after = matrix_of(projector, {"params": params})
    assert np.abs(after - before).max() > 1e-2
    # float32: the exponential of a 12 x 12 skew matrix is orthogonal to a few units in the last place
    np.testing.assert_allclose(after @ after.T, np.eye(D), atol=1e-5)


def test_diagonal_starts_as_the_identity_and_scales_each_dimension():
    projector, variables, _ = start("diagonal")
    np.testing.assert_array_equal(matrix_of(projector, variables), np.eye(D))
    scale = jnp.arange(1.0, D + 1)
    np.testing.assert_array_equal(matrix_of(projector, {"params": {"scale": scale}}), np.diag(scale))


def test_low_rank_has_d0_singular_values_of_one():
    projector, variables, _ = start("low_rank")
    singular = np.linalg.svd(matrix_of(projector, variables), compute_uv=False)
    np.testing.assert_allclose(singular, [1] * D0 + [0] * (D - D0), atol=1e-6)
    left, right = (variables["constants"][name] for name in ("left", "right"))
    assert np.abs(left.T @ right.T).max() < 0.99  # two independent frames, not one twice
    _, other, _ = start("low_rank", seed=1)
    assert np.abs(other["constants"]["left"] - left).max() > 0.1  # drawn from the seed
    _, same, _ = start("low_rank", seed=0)
    np.testing.assert_array_equal(same["constants"]["left"], left)


def test_low_rank_diagonal_equals_direct():
    diagonal, variables, r = start("low_rank_diagonal")
    direct, none, _ = start("direct")
    r_prime = r + 0.1 * jax.random.normal(jax.random.key(3), r.shape)

    def loss(projector, variables, r, r_prime):
        z, z_prime = (projector.apply(variables, rows, train=True) for rows in (r, r_prime))
        return info_nce(z, z_prime, temperature=0.1)

    one = jax.value_and_grad(loss, argnums=(2, 3))(diagonal, variables, r, r_prime)
    two = jax.value_and_grad(loss, argnums=(2, 3))(direct, none, r, r_prime)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, two)


def test_mlp_has_the_recipes_size():
    """Two linear layers without biases and two BNs: 4.456 M weights in the matrices, 4.4608 M parameters in all."""
    projector = make_projector("mlp", width=2048, d0=360, hidden=2048, features=128)
    shapes = jax.eval_shape(lambda: projector.init(jax.random.key(0), jnp.zeros((2, 2048)), train=False))
    leaves = jax.tree.leaves(shapes["params"])
    assert sum(leaf.size for leaf in leaves) == 4_460_800
    assert sorted(leaf.shape for leaf in leaves if leaf.ndim == 2) == [(2048, 128), (2048, 2048)]


def test_mlp_is_the_recipes_head():
    """Linear, BN, ReLU, linear, BN, written out in NumPy float64, by the statistics of the batch."""
    projector, variables, r = start("mlp")
    z, _ = projector.apply(variables, r, train=True, mutable=["batch_stats"])

    def standardised(x):
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)

    first, second = sorted(
        (np.float64(leaf) for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 2),
        key=lambda kernel: kernel.shape != (D, 16),
    )
    expected = standardised(np.maximum(standardised(np.float64(r) @ first), 0) @ second)
    np.testing.assert_allclose(z, expected, atol=1e-4)  # two float32 products and standardisations of 8 rows


def test_the_loss_reaches_the_first_d0_entries_of_r_only():
    projector, variables, r = start("direct")
    r_prime = jax.random.normal(jax.random.key(3), r.shape)

    def loss(r, r_prime):
        z, z_prime = (projector.apply(variables, rows, train=True) for rows in (r, r_prime))
        return info_nce(z, z_prime, temperature=0.1)

    for gradient in jax.grad(loss, argnums=(0, 1))(r, r_prime):
        assert np.all(gradient[:, D0:] == 0)  # exactly
        assert np.all(np.abs(gradient[:, :D0]).max(axis=0) > 0)


def test_every_channel_below_the_last_block_is_trained_all_the_same():
    """r = mean(relu(h + F(h))): through the convolutions of F the first d0 entries of r reach every channel of h."""
    block = BasicBlock(filters=D, strides=1)
    h = jax.nn.relu(jax.random.normal(jax.random.key(0), (8, 4, 4, D)))
    variables = block.init(jax.random.key(1), h, train=True)
    # A block starts with the last BN scale at zero, F = 0; one step of training makes it non-zero.
    params = {**variables["params"], "bn2": {**variables["params"]["bn2"], "scale": jnp.full(D, 0.1)}}

    def loss(h, h_prime):
        r, r_prime = (
            jnp.mean(
                block.apply({**variables, "params": params}, rows, train=True, mutable=["batch_stats"])[0], axis=(1, 2)
            )
            for rows in (h, h_prime)
        )
        return info_nce(r[:, :D0], r_prime[:, :D0], temperature=0.1)

    gradient = jax.grad(loss)(h, h[:, :, ::-1] + 0.1)
    per_channel = np.abs(gradient).max(axis=(0, 1, 2))
    assert np.all(per_channel > 1e-6)


@pytest.mark.parametrize("name", PROJECTORS)
def test_bfloat16_compute_keeps_float32_parameters(name):
    projector = make_projector(name, **SETTINGS, dtype=jnp.bfloat16)
    r = jax.random.normal(jax.random.key(1), (8, D))
    variables = projector.init(jax.random.key(0), r, train=False)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    wide = make_projector(name, **SETTINGS).apply(variables, r, train=False)
    np.testing.assert_allclose(np.float32(projector.apply(variables, r, train=False)), wide, atol=0.05)


@pytest.mark.parametrize("d0", [0, -1, D + 1])
@pytest.mark.parametrize("name", ["direct", "random_subset", "low_rank", "low_rank_diagonal"])
def test_bad_d0(name, d0):
    with pytest.raises(ValueError, match=rf"^d0 must be from 1 to .* \({D}\), found {d0}"):
        make_projector(name, **SETTINGS | {"d0": d0})


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"^name 'lowrank' is not known \(did you mean 'low_rank'\?\)"):
        make_projector("lowrank", **SETTINGS)


def test_a_command_names_the_section_of_a_bad_setting():
    with pytest.raises(SettingError, match=r"^projector\.name 'lowrank' is not known"), section("projector"):
        make_projector("lowrank", **SETTINGS)


@pytest.mark.parametrize("setting", ["hidden", "features"])
def test_bad_widths(setting):
    with pytest.raises(ValueError, match=f"^{setting} must be at least 1, found 0"):
        make_projector("mlp", **SETTINGS | {setting: 0})


class Halved(nn.Module):
    """A projector of somebody else, without any of the settings."""

    @nn.compact
    def __call__(self, r, *, train):
        return r / 2


class Reversed(nn.Module):
    """One that keeps d0 dimensions."""

    d0: int

    @nn.compact
    def __call__(self, r, *, train):
        return r[:, : self.d0][:, ::-1]


def test_a_projector_is_one_class_and_one_row(monkeypatch):
    monkeypatch.setitem(PROJECTORS, "halved", Halved)
    monkeypatch.setitem(PROJECTORS, "reversed", Reversed)
    for name, expected in (("halved", lambda r: r / 2), ("reversed", lambda r: r[:, D0 - 1 :: -1])):
        projector, variables, r = start(name)
        np.testing.assert_array_equal(projector.apply(variables, r, train=True), expected(r))
    with pytest.raises(ValueError, match=r"^d0 must be from 1"):
        make_projector("reversed", **SETTINGS | {"d0": D + 1})
