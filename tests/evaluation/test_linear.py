"""The cached-feature probe against scikit-learn, and what surrounds it."""

import io
import lzma
import pathlib

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dcjax.evaluation import (
    TOLERANCE,
    Classifier,
    draw_labelled,
    fit_logistic,
    standardize,
    top_k_accuracy,
)

PACK = pathlib.Path(__file__).parents[3] / "shared" / "data" / "cifar10_jpeg_test.npz.xz"


def blobs(n=300, d=6, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    centres = 1.5 * rng.normal(size=(classes, d))
    labels = rng.integers(classes, size=n).astype(np.int32)
    x = (centres[labels] + rng.normal(size=(n, d))) * np.linspace(0.5, 2, d) + 5
    return x.astype(np.float32), labels


def test_logistic_regression_is_scikit_learns():
    x, labels = blobs()
    (scaled,) = map(np.asarray, standardize(x))
    w, b, _ = fit_logistic(scaled, labels, classes=4)
    reference = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(scaled, labels)
    logits = scaled @ np.asarray(w) + np.asarray(b)
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    # The gradient ends at 1e-5 here and at 1e-8 there; the penalty's curvature, 1 / 300, is the least of the objective.
    np.testing.assert_allclose(probabilities, reference.predict_proba(scaled), atol=3e-3)


def ill_conditioned(n, d, condition, classes=4, seed=0):
    """Features whose largest singular value is `condition` times the smallest, and labels that need all directions."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, d))
    u, _, v = np.linalg.svd(z - z.mean(0), full_matrices=False)
    x = u * np.geomspace(1, 1 / condition, u.shape[1]) @ v
    logits = np.sqrt(n) * u @ rng.normal(size=(u.shape[1], classes))
    labels = np.argmax(logits + rng.gumbel(size=(n, classes)), axis=1)
    return x / np.sqrt(np.mean(np.square(x))), labels.astype(np.int32)


@pytest.mark.parametrize(("n", "d", "condition"), [(200, 12, 1e4), (30, 50, 1e2)])
def test_the_optimum_is_scikit_learns(x64, n, d, condition):
    """Ill-conditioned features, more and fewer rows than features, and rows that do not count."""
    x, labels = ill_conditioned(n, d, condition)
    reference = LogisticRegression(C=1.0, tol=1e-13, max_iter=1000, solver="newton-cholesky").fit(x, labels)
    padded = np.concatenate([x, np.ones((3, d))]), np.concatenate([labels, [-1] * 3]).astype(np.int32)
    classifier = fit_logistic(*padded, classes=4, tolerance=1e-13)
    # The Hessian is at least 1 / n, so a gradient of 1e-13 leaves W within n * sqrt(4 d) * 1e-13 < 1e-9 of the optimum.
    np.testing.assert_allclose(classifier.w, reference.coef_.T, atol=1e-9)
    np.testing.assert_allclose(classifier.b, reference.intercept_ - reference.intercept_.mean(), atol=1e-9)

    def objective(w, b):
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(x @ w + b, labels)
        return jnp.mean(loss) + 0.5 / n * jnp.sum(w**2)

    gradient = jax.grad(objective, argnums=(0, 1))(classifier.w, classifier.b)
    assert classifier.residual <= 1e-13
    # Sums of n numbers of order 1 in another order.
    assert max(float(jnp.abs(g).max()) for g in gradient) == pytest.approx(float(classifier.residual), abs=1e-14)


def test_correlated_features_take_few_steps():
    x, labels = ill_conditioned(1000, 64, 1e4)
    assert fit_logistic(x.astype(np.float32), labels, classes=4, max_iterations=60).residual <= TOLERANCE


@pytest.mark.skipif(not PACK.exists(), reason="the real images are not here")
@pytest.mark.parametrize("count", [100, 400])  # fewer and more than the features
def test_the_pixels_of_photographs(count):
    pack = np.load(io.BytesIO(lzma.decompress(PACK.read_bytes())))
    starts, data = pack["offsets"], pack["data"]
    chosen = np.linspace(0, len(pack["labels"]) - 1, count).astype(int)  # of every class
    images = [cv2.imdecode(data[starts[i] : starts[i + 1]], cv2.IMREAD_COLOR)[12:20, 12:20] for i in chosen]
    x, labels = np.stack(images).reshape(count, -1).astype(np.float32), pack["labels"][chosen].astype(np.int32)
    (x,) = map(np.asarray, standardize(x))
    w, b, residual = fit_logistic(x, labels, classes=10, max_iterations=150)
    assert residual <= TOLERANCE
    reference = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000, solver="newton-cg").fit(np.float64(x), labels)

    def objective(w, b):
        logits = np.float64(x) @ np.float64(w) + np.float64(b)
        logits -= logits.max(1, keepdims=True)
        log_likelihoods = logits[np.arange(count), labels] - np.log(np.exp(logits).sum(1))
        return -log_likelihoods.mean() + 0.5 / count * np.square(np.float64(w)).sum()

    # float32 and a gradient of 1e-5
    assert objective(w, b) == pytest.approx(objective(reference.coef_.T, reference.intercept_), abs=3e-5)


def test_standardize_is_scikit_learns_and_survives_constants():
    x, _ = blobs()
    x[:, 2] = 7
    train, test = standardize(x[:200], x[200:])
    scaler = StandardScaler().fit(x[:200].astype(np.float64))
    np.testing.assert_allclose(train, scaler.transform(x[:200]), atol=1e-4)
    np.testing.assert_allclose(test, scaler.transform(x[200:]), atol=1e-4)
    assert (np.asarray(train)[:, 2] == 0).all()


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_collapsed_features_are_right_by_chance_only(classes):
    labels = np.repeat(np.arange(classes), 3).astype(np.int32)
    x = np.zeros((len(labels), 5), np.float32)
    classifier = fit_logistic(x, labels, classes=classes)
    for k in (1, 2):
        assert top_k_accuracy(classifier, x, labels, k=k) == pytest.approx(k / classes)


def test_what_is_not_finite_is_wrong():
    x, labels = blobs()
    broken = Classifier(jnp.full((6, 4), jnp.nan), jnp.zeros(4))
    assert top_k_accuracy(broken, x, labels, k=4) == 0


def test_a_solver_that_is_stopped_early_says_so():
    x, labels = blobs()
    (x,) = standardize(x)
    assert fit_logistic(x, labels, classes=4).residual <= TOLERANCE
    assert fit_logistic(x, labels, classes=4, max_iterations=2).residual > TOLERANCE


@pytest.mark.parametrize("scale", [1, 1e20])
def test_a_solver_that_cannot_be_satisfied_stays_at_the_best_point(scale):
    x, labels = blobs()
    (x,) = standardize(x)

    def objective(classifier):
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(classifier.logits(scale * x), labels)
        return jnp.mean(losses) + 0.5 * jnp.sum(jnp.square(classifier.w)) / len(x)

    usual = fit_logistic(scale * x, labels, classes=4)
    beyond = fit_logistic(scale * x, labels, classes=4, tolerance=0)  # rounding keeps the gradient from 0
    assert beyond.residual > 0
    # The search takes a step that raises the objective by 10 roundings for lowering it.
    assert objective(beyond) <= objective(usual) * (1 + 300 * 10 * jnp.finfo(jnp.float32).eps)


def test_top_k_counts_ranks():
    logits = jnp.array([[3.0, 2, 1, 0], [0, 1, 2, 3], [1, 3, 2, 0]])
    classifier = Classifier(jnp.eye(4), jnp.zeros(4))
    labels = jnp.array([0, 0, 2])  # ranks 1, 4 and 2
    for k, expected in ((1, 1 / 3), (2, 2 / 3), (3, 2 / 3), (4, 1)):
        assert top_k_accuracy(classifier, logits, labels, k=k) == pytest.approx(expected)


def test_draws_are_fixed_balanced_and_different():
    labels = np.repeat(np.arange(3), [20, 30, 40])
    draws = [draw_labelled(labels, labels_per_class=10, draw=draw) for draw in range(5)]
    for chosen in draws:
        np.testing.assert_array_equal(np.bincount(labels[chosen]), [10, 10, 10])
        assert len(set(chosen)) == 30
    assert len({tuple(sorted(chosen)) for chosen in draws}) == 5
    np.testing.assert_array_equal(draws[2], draw_labelled(labels, labels_per_class=10, draw=2))
    with pytest.raises(
        ValueError, match=r"^labels_per_class must be at most 20, the training images of class 0, found 21"
    ):
        draw_labelled(labels, labels_per_class=21, draw=0)
