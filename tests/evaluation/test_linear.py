"""The cached-feature probe against scikit-learn, and what surrounds it."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dcjax.evaluation import (
    TOLERANCE,
    Classifier,
    draw_labelled,
    fit_logistic,
    knn_accuracy,
    standardize,
    top_k_accuracy,
)
from dcjax.evaluation.knn import largest


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
    # float32 and a gradient of 1e-4 here, 1e-8 there
    np.testing.assert_allclose(probabilities, reference.predict_proba(scaled), atol=3e-3)


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
    assert knn_accuracy(x, labels, x, labels, classes=classes, neighbors=5, temperature=0.07) < 0.6


def test_what_is_not_finite_is_wrong():
    x, labels = blobs()
    broken = Classifier(jnp.full((6, 4), jnp.nan), jnp.zeros(4))
    assert top_k_accuracy(broken, x, labels, k=4) == 0
    nothing = np.full_like(x, np.nan)
    assert knn_accuracy(nothing, labels, nothing, labels, classes=4, neighbors=5, temperature=0.07) == 0


def test_a_solver_that_is_stopped_early_says_so():
    x, labels = blobs()
    (x,) = standardize(x)
    assert fit_logistic(x, labels, classes=4).residual <= TOLERANCE
    assert fit_logistic(x, labels, classes=4, max_iterations=2).residual > TOLERANCE


def test_top_k_counts_ranks():
    logits = jnp.array([[3.0, 2, 1, 0], [0, 1, 2, 3], [1, 3, 2, 0]])
    classifier = Classifier(jnp.eye(4), jnp.zeros(4))
    labels = jnp.array([0, 0, 2])  # ranks 1, 4 and 2
    for k, expected in ((1, 1 / 3), (2, 2 / 3), (3, 2 / 3), (4, 1)):
        assert top_k_accuracy(classifier, logits, labels, k=k) == pytest.approx(expected)


def test_draws_are_fixed_balanced_and_different():
    labels = np.repeat(np.arange(3), [20, 30, 40])
    draws = [draw_labelled(labels, per_class=10, draw=draw) for draw in range(5)]
    for chosen in draws:
        np.testing.assert_array_equal(np.bincount(labels[chosen]), [10, 10, 10])
        assert len(set(chosen)) == 30
    assert len({tuple(sorted(chosen)) for chosen in draws}) == 5
    np.testing.assert_array_equal(draws[2], draw_labelled(labels, per_class=10, draw=2))
    with pytest.raises(ValueError, match="at most 20, the training images of class 0, found 21"):
        draw_labelled(labels, per_class=21, draw=0)


def slow_knn(train, train_labels, test, test_labels, classes, k, temperature):
    right = 0
    unit = train / np.linalg.norm(train, axis=1, keepdims=True)
    for row, label in zip(test, test_labels, strict=True):
        similarity = unit @ (row / np.linalg.norm(row))
        votes = np.zeros(classes)
        for i in np.argsort(-similarity)[:k]:
            votes[train_labels[i]] += np.exp(similarity[i] / temperature)
        right += np.argmax(votes) == label
    return right / len(test)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 5), (20, 20), (21, 20), (100, 3), (1000, 20), (997, 1)])
def test_the_largest_are_those_of_top_k(n, k):
    values = np.random.default_rng(n).permutation(n).astype(np.float32) - n // 2
    found, where = largest(jnp.asarray(values), k)
    np.testing.assert_array_equal(found, np.sort(values)[::-1][:k])
    np.testing.assert_array_equal(values[np.asarray(where)], found)


@pytest.mark.parametrize("k", [1, 20])
def test_nearest_neighbours(k):
    x, labels = blobs(n=700)
    x -= 5
    split = 400  # 300 test rows: more than a block, and not a multiple of it
    expected = slow_knn(
        x[:split].astype(np.float64), labels[:split], x[split:].astype(np.float64), labels[split:], 4, k, 0.07
    )
    found = knn_accuracy(x[:split], labels[:split], x[split:], labels[split:], classes=4, neighbors=k, temperature=0.07)
    assert 0.5 < expected < 1
    assert found == pytest.approx(expected, abs=1.5 / 300)  # a vote may be as good as tied in float32
    with pytest.raises(ValueError, match=r"probe\.neighbors must be from 1 to the 400 training images, found 401"):
        knn_accuracy(x[:400], labels[:400], x[400:], labels[400:], classes=4, neighbors=401, temperature=0.07)
