"""Alignment, Theorem 3 and the lemmas of appendix A against finite differences of the SVD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax.toy import (
    aligned_rates,
    alignment_matrix,
    alignment_velocity,
    conserved_quantity,
    singular_value_velocity,
    two_layer_velocity,
)


def orthogonal(d, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


def aligned_layers(d=5, seed=0):
    """Layers with V2 = U1 and different spectra, and a symmetric X."""
    u1, v1, u2 = (orthogonal(d, seed + i) for i in range(3))
    s1, s2 = np.linspace(2, 0.5, d), np.linspace(1.5, 0.2, d)
    root = np.random.default_rng(seed + 3).normal(size=(d, d))
    return (u1 * s1) @ v1.T, (u2 * s2) @ u1.T, s1, s2, v1, root @ root.T / d


def differences(function, *layers, velocity, h=1e-6):
    """The central difference of a function of the layers along their velocity."""
    ahead, behind = (function(*(w + sign * h * v for w, v in zip(layers, velocity, strict=True))) for sign in (1, -1))
    return (np.asarray(ahead) - np.asarray(behind)) / (2 * h)


def test_alignment_of_aligned_layers(x64):
    w1, w2, *_ = aligned_layers()
    np.testing.assert_allclose(np.abs(alignment_matrix(w1, w2)), np.eye(5), atol=1e-12)
    random = np.random.default_rng(9).normal(size=(2, 5, 5))
    a = np.asarray(alignment_matrix(*random))
    np.testing.assert_allclose(a @ a.T, np.eye(5), atol=1e-12)
    assert np.abs(np.diagonal(a)).min() < 0.9


def test_alignment_of_layers_that_are_not_square(x64):
    w1, w2 = (np.random.default_rng(0).normal(size=shape) for shape in ((4, 6), (3, 4)))
    expected = np.linalg.svd(w2, full_matrices=False)[2] @ np.linalg.svd(w1, full_matrices=False)[0]
    np.testing.assert_allclose(np.abs(alignment_matrix(w1, w2)), np.abs(expected), rtol=1e-10, atol=1e-10)


def test_conserved_quantity_of_balanced_layers(x64):
    u1, v1, u2 = (orthogonal(4, i) for i in range(3))
    s = np.diag([2.0, 1.0, 0.5, 0.1])
    np.testing.assert_allclose(conserved_quantity(u1 @ s @ v1.T, u2 @ s @ u1.T), 0, atol=1e-13)
    np.testing.assert_allclose(conserved_quantity(np.eye(2), np.diag([2.0, 0.0])), np.diag([-3.0, 1.0]))


def test_theorem_3_on_aligned_layers(x64):
    w1, w2, s1, s2, v1, x_matrix = aligned_layers()
    velocity = two_layer_velocity(w1, w2, x_matrix)
    rates = aligned_rates(s1, s2, v1, x_matrix)
    for rate, w, v in zip(rates, (w1, w2), velocity, strict=True):
        np.testing.assert_allclose(rate, singular_value_velocity(w, v), rtol=1e-10)
        moving = differences(lambda w: np.linalg.svd(w, compute_uv=False), w, velocity=(v,))
        np.testing.assert_allclose(rate, moving, rtol=1e-6)  # rounding of 1e-16 over a step of 1e-6
    # The rates differ for V2 = U1^T, as the paper prints.
    u1 = w1 @ v1 / s1
    other = np.linalg.svd(w2)[0] * s2 @ u1
    wrong = singular_value_velocity(w1, two_layer_velocity(w1, other, x_matrix)[0])
    assert np.abs(wrong - rates[0]).max() > 0.1 * np.abs(rates[0]).max()


def test_lemma_4_on_any_flow(x64):
    w, velocity = np.random.default_rng(0).normal(size=(2, 4, 6))
    moving = differences(lambda w: np.linalg.svd(w, compute_uv=False), w, velocity=(velocity,))
    np.testing.assert_allclose(singular_value_velocity(w, velocity), moving, rtol=1e-6, atol=1e-8)


def test_lemma_6_with_the_sign_corrected(x64):
    w1, w2, gradient = np.random.default_rng(0).normal(size=(3, 5, 5))
    velocity = -w2.T @ gradient, -gradient @ w1.T
    a, a_velocity = alignment_velocity(w1, w2, gradient)
    # |A| does not depend on the SVD's signs, and no entry is near 0 here.
    moving = differences(lambda *w: np.abs(alignment_matrix(*w)), w1, w2, velocity=velocity)
    np.testing.assert_allclose(np.sign(a) * a_velocity, moving, rtol=1e-5, atol=1e-7)
    assert np.abs(np.sign(a) * a_velocity + moving).max() > 0.1  # the printed sign


def test_lemma_6_leaves_aligned_layers_aligned(x64):
    w1, w2, *_, x_matrix = aligned_layers()
    balanced = np.linalg.svd(w2)[0] * np.linalg.svd(w1)[1] @ np.linalg.svd(w1)[0].T
    _, a_velocity = alignment_velocity(w1, balanced, -balanced @ w1 @ x_matrix)
    np.testing.assert_allclose(a_velocity, 0, atol=1e-12)


def test_dtypes_stay(strict_dtypes):
    @jax.jit
    def everything(w):
        found = [conserved_quantity(w, w), alignment_matrix(w, w), *alignment_velocity(w, 2 * w, w)]
        return [*found, singular_value_velocity(w, w), *aligned_rates(w[0], w[1], w, w + w.T)]

    found = jax.eval_shape(everything, jax.ShapeDtypeStruct((3, 3), jnp.float32))
    assert {a.dtype for a in found} == {jnp.dtype(jnp.float32)}


def test_bad_input(unchecked_shapes):
    w, x_matrix = np.eye(3), np.eye(3)
    for function in (alignment_matrix, conserved_quantity):
        with pytest.raises(ValueError, match=r"\(3, 3\) and \(3, 2\)"):
            function(w, w[:, :2])
        with pytest.raises(ValueError, match="w2 must be finite"):
            function(w, w * np.nan)
    with pytest.raises(ValueError, match="one shape"):
        singular_value_velocity(w, w[:2])
    with pytest.raises(ValueError, match="square and of one size"):
        alignment_velocity(w[:, :2], w, w)
    with pytest.raises(ValueError, match=r"\[k\], \[k\] and \[d, k\]"):
        aligned_rates(np.ones(2), np.ones(3), w, x_matrix)
    with pytest.raises(ValueError, match="symmetric"):
        aligned_rates(np.ones(3), np.ones(3), w, x_matrix + np.triu(w + 1))
