"""The ensembles against explicit views, plain loops and automatic differentiation."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import double_precision

from dcjax.runtime.errors import SettingError
from dcjax.toy import INITS, Setting, Trajectory, collapsed, embed, info_nce, simulate
from dcjax.toy.simulate import _bases, _draw
from dcjax.toy.statements.ensembles import STRONG, TWO_LAYERS, run

TINY = dataclasses.replace(STRONG, dim=4, samples=6)


def dot_loss(z, z_prime, temperature):
    """The sum over i of the cross-entropy of z_i . z'_j / temperature."""
    logits = z @ z_prime.T / temperature
    return -jnp.sum(jnp.diagonal(jax.nn.log_softmax(logits, axis=1)))


@functools.partial(jax.jit, static_argnames="setting")
def views_of(setting, seed, step, amplitude):
    """The two views of a step, formed one by one."""
    drawn = _draw(setting, jax.random.fold_in(jax.random.key(seed), step), jnp.zeros(()).dtype)
    return [drawn @ basis.T for basis in _bases(setting, jnp.asarray(amplitude))]


@functools.partial(jax.jit, static_argnames="setting")
def plain_step(setting, layers, seed, step, amplitude):
    """A step of SGD as one would write it: views, layers one after the other, autodiff of the mean loss."""

    def loss(layers, x, x_prime):
        for i, w in enumerate(layers):
            x, x_prime = x @ w.T, x_prime @ w.T
            if setting.relu and i + 1 < len(layers):
                x, x_prime = jax.nn.relu(x), jax.nn.relu(x_prime)
        total = dot_loss(x, x_prime, setting.temperature) if setting.loss == "dot" else info_nce(x, x_prime)
        return total / setting.samples

    gradient = jax.grad(loss)(layers, *views_of(setting, seed, step, amplitude))
    pairs = enumerate(zip(layers, gradient, strict=True))
    return [w if i in setting.frozen else w - setting.learning_rate * g for i, (w, g) in pairs]


DEPTHS, AMPLITUDES, SEEDS = (2, 3), (0.0, 1.5), (0, 7)


@functools.cache
def five_steps(setting):
    """A grid of eight cells: one a device, so that all grids of up to eight cells of a setting share its program."""
    return simulate(setting, depths=DEPTHS, amplitudes=AMPLITUDES, seeds=SEEDS, steps=[0, 5])


@pytest.mark.parametrize(
    ("changes", "depths"),
    [
        ({}, DEPTHS),
        ({"relu": True, "noise": "isotropic", "two_sided": True}, [3]),
        ({"loss": "dot", "temperature": 0.5, "init": "decaying", "two_sided": True}, [2]),
        ({"frozen": (1,), "init": "balanced"}, [3]),
    ],
    ids=["plain", "relu", "dot", "frozen"],
)
def test_against_plain_sgd(x64, changes, depths):
    setting = dataclasses.replace(TINY, **changes)
    trajectory = five_steps(setting)
    assert trajectory.weights.shape == (2, 2, 2, 2, 3, 4, 4)
    for i, j, k in [(0, 1, 0), (1, 0, 1), (1, 1, 0)]:
        start, end = trajectory.weights[i, j, k]
        depth = DEPTHS[i]
        assert np.abs(end[:depth] - start[:depth]).max() > 1e-3
        if depth in depths:
            layers = list(start[:depth])
            for step in range(5):
                layers = plain_step(setting, layers, SEEDS[k], step, AMPLITUDES[j])
            np.testing.assert_allclose(end[:depth], np.stack(layers), rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(end[depth:], np.broadcast_to(np.eye(4), (3 - depth, 4, 4)))
        for layer in setting.frozen:
            np.testing.assert_array_equal(end[layer], start[layer])


def test_a_cell_does_not_depend_on_the_grid_around_it(x64):
    """The larger grid steps through its cells in blocks, and stops between."""
    grid = simulate(TINY, depths=[1, 2, 3], amplitudes=[0.5, 1.5], seeds=[0, 1, 7], steps=[2, 5])
    alone = five_steps(TINY)
    np.testing.assert_allclose(grid.weights[1:, 1, ::2, 1], alone.weights[:, 1, :, 1], rtol=1e-10, atol=1e-12)


def test_both_precisions_see_the_same_data():
    grid = {"depths": [3], "amplitudes": [1.0], "seeds": [3], "steps": [0, 8]}
    single = simulate(TINY, **grid)
    with double_precision():
        double = simulate(TINY, **grid)
    assert (single.weights.dtype, double.weights.dtype) == (np.float32, np.float64)
    # Eight steps with rounding of 1e-7; other data would differ in the first digit.
    np.testing.assert_allclose(single.weights, double.weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("noise", ["block", "isotropic"])
def test_covariances_of_the_views(noise, two_sided):
    setting = dataclasses.replace(STRONG, dim=4, samples=50_000, noise=noise, two_sided=two_sided)
    x, x_prime = views_of(setting, 0, 0, 2.0)
    mask = np.array([0, 0, 1, 1] if noise == "block" else [1, 1, 1, 1])
    np.testing.assert_allclose(np.cov(x.T), np.diag(0.5 + two_sided * 2.0 * mask), atol=0.05)
    np.testing.assert_allclose(np.cov(x_prime.T), np.diag(0.5 + 2.0 * mask), atol=0.05)
    np.testing.assert_allclose(np.cov((x_prime - x).T), np.diag((1 + two_sided) * 2.0 * mask), atol=0.1)


def test_initial_layers(x64):
    d = 16

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def initial(name, layers):
        return INITS[name](jax.random.key(0), layers, d, jnp.float64)

    default = np.asarray(initial("default", 3))
    assert 0.24 < np.abs(default).max() <= 0.25
    decaying, balanced = (np.asarray(initial(name, 3)) for name in ("decaying", "balanced"))
    for layers in (decaying, balanced):
        np.testing.assert_allclose(
            np.linalg.svd(layers, compute_uv=False), [np.exp(-0.35 * np.arange(d))] * 3, rtol=1e-9
        )
    for lower, upper in itertools.pairwise(balanced):
        np.testing.assert_allclose(lower @ lower.T - upper.T @ upper, 0, atol=1e-13)
    # A layer is the same in a deeper chain.
    np.testing.assert_allclose(initial("decaying", 1)[0], decaying[0], rtol=1e-10, atol=1e-12)


def test_embed_pads_with_identities():
    rng = np.random.default_rng(0)
    x, layers = rng.normal(size=(5, 3)), rng.normal(size=(2, 3, 3))
    padded = np.concatenate([layers, np.eye(3)[None]])
    plain = x @ layers[0].T
    np.testing.assert_allclose(embed(padded, x, 2, relu=False), plain @ layers[1].T)
    np.testing.assert_allclose(embed(padded, x, 2, relu=True), np.maximum(plain, 0) @ layers[1].T)
    np.testing.assert_allclose(embed(padded[1:], x, 1, relu=True), x @ layers[1].T)


def test_what_a_trajectory_tells():
    trajectory = simulate(TINY, depths=[1, 2, 3], amplitudes=[1.0], seeds=[0, 1], steps=[0, 3])
    values = trajectory.singular_values()
    assert values.shape == (3, 1, 2, 2, 3, 4)
    np.testing.assert_allclose(values[0, 0, 0, 0, 1:], 1)  # padding
    first, second = trajectory.weights[1, 0, 1, 1, :2]
    np.testing.assert_allclose(values[1, 0, 1, 1, 1], np.linalg.svd(second, compute_uv=False), rtol=1e-5)
    expected = np.abs(np.linalg.svd(second)[2] @ np.linalg.svd(first)[0])
    assert trajectory.alignment().shape == (3, 1, 2, 2, 4, 4)
    np.testing.assert_allclose(trajectory.alignment()[1, 0, 1, 1], expected, atol=1e-4)
    spectra = trajectory.embedding_spectra(inputs=20_000)
    expected = 0.5 * np.linalg.svd(second @ first, compute_uv=False) ** 2
    np.testing.assert_allclose(spectra[1, 0, 1, 1], expected, rtol=0.1)


def test_an_alignment_needs_two_layers():
    shallow = Trajectory(TINY, (1,), (1.0,), (0,), np.array([1]), np.ones((1, 1, 1, 1, 1, 4, 4)))
    with pytest.raises(SettingError, match=r"found the depths \[1\]"):
        shallow.alignment()


def test_collapsed():
    values = np.array([[4.0, 1.0, 0.039, 0.0], [4.0, 4.0, 4.0, 4.0]])
    np.testing.assert_array_equal(collapsed(values, below=1e-2), [2, 0])


def test_divergence_is_kept_by_simulate_and_named_by_run():
    with pytest.raises(SettingError, match=r"diverged at amplitude 50, depth 3, seed 0 .*learning rate 2"):
        run(TINY, depths=[3], amplitudes=[50.0], seeds=[0], steps=[60], learning_rate=2.0)
    setting = dataclasses.replace(TINY, learning_rate=2.0)
    lost = simulate(setting, depths=[3], amplitudes=[50.0], seeds=[0], steps=[60])
    np.testing.assert_array_equal(lost.finite(), [[[False]]])
    with pytest.raises(SettingError, match="a cell of the trajectory diverged"):
        lost.singular_values()


@pytest.mark.slow
def test_both_causes_of_collapse_in_small(x64, optimised):
    """Short runs of the figures' models, as the statements have them in fewer dimensions."""
    strong = run(STRONG, amplitudes=[0.5, 2.0], seeds=[0], steps=[1000, 2000], samples=64).singular_values()[
        0, :, 0, :, 0
    ]
    np.testing.assert_array_equal(collapsed(strong[:, 1], below=1e-2), [0, 8])
    assert np.all(strong[1, 1, 8:] < 0.8 * strong[1, 0, 8:])  # still decaying
    assert np.all(strong[0, 1, 8:] > 0.8 * strong[0, 0, 8:])  # settled
    deep = run(TWO_LAYERS, depths=[1, 2, 3], amplitudes=[0.01], seeds=[0], steps=[1500], samples=64)
    number = collapsed(deep.embedding_spectra()[:, 0, 0, -1], below=1e-2)
    assert number[0] == 0
    assert 8 <= number[1] <= number[2]
    balanced = run(TWO_LAYERS, depths=[2], amplitudes=[1e-6], seeds=[0], steps=[500], samples=64, init="balanced")
    assert np.diagonal(balanced.alignment()[0, 0, 0, -1]).min() > 0.99


@pytest.mark.slow
def test_the_dot_product_loss_suppresses_but_does_not_collapse(optimised):
    """Its fixed point for large batches is w^2 = tau s / (s + a)^2, s the inputs' variance, a each view's noise."""
    changes = {"data_variance": 1.0, "two_sided": True, "loss": "dot", "temperature": 0.1, "learning_rate": 0.01}
    trajectory = run(STRONG, amplitudes=[2.25], seeds=[0], steps=[1000], dim=4, samples=256, **changes)
    found = trajectory.singular_values()[0, 0, 0, 0, 0]
    np.testing.assert_allclose(found[:2], np.sqrt(0.1), rtol=0.1)
    np.testing.assert_allclose(found[2:], np.sqrt(0.1) / 3.25, rtol=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": "salt"}, "noise 'salt'.*block"),
        ({"init": "balance"}, "init 'balance'.*'balanced'"),
        ({"loss": "mse"}, "loss 'mse'"),
        ({"dim": 0}, "dim.*found 0"),
        ({"dim": 2.5}, r"dim.*found 2\.5"),
        ({"dim": 1}, "dim .*noise.*found 1"),
        ({"samples": 1}, "samples.*found 4 and 1"),
        ({"learning_rate": 0.0}, r"learning_rate.*found 0\.0"),
        ({"data_variance": -1.0}, r"data_variance.*found -1\.0"),
        ({"temperature": 0.1}, r"temperature.*found 0\.1"),
        ({"loss": "dot"}, "temperature.*found None"),
        ({"loss": "dot", "temperature": 0.0}, r"temperature.*found 0\.0"),
    ],
)
def test_bad_settings(unchecked_shapes, changes, message):
    with pytest.raises(ValueError, match=message):
        Setting(**(dataclasses.asdict(TINY) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": []}, "depths"),
        ({"depths": [0]}, "depths.*found 0"),
        ({"amplitudes": [-1.0]}, r"amplitudes.*found \[-1\.0\]"),
        ({"amplitudes": [np.nan]}, r"amplitudes.*found \[nan\]"),
        ({"seeds": [-1]}, r"seeds.*found \[-1\]"),
        ({"steps": [3, 3]}, r"steps.*found \[3, 3\]"),
        ({"steps": [-1]}, r"steps.*found \[-1\]"),
    ],
)
def test_bad_grids(changes, message):
    with pytest.raises(ValueError, match=message):
        simulate(TINY, **({"depths": [1], "amplitudes": [1.0], "seeds": [0], "steps": [1]} | changes))


def test_a_frozen_layer_must_exist():
    with pytest.raises(ValueError, match=r"frozen.*found \(1,\)"):
        simulate(dataclasses.replace(TINY, frozen=(1,)), depths=[1, 2], amplitudes=[1.0], seeds=[0], steps=[1])
