"""The vote of the nearest neighbours against a slow loop, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import place

from dcjax.evaluation import knn_accuracy
from dcjax.evaluation.knn import largest, nearest
from dcjax.runtime.mesh import make_mesh


def accuracy(train, train_labels, test, test_labels, *, devices=1, **settings):
    mesh = make_mesh(devices)
    return knn_accuracy(
        place(train, train_labels, mesh), place(test, test_labels, mesh), mesh=mesh, temperature=0.07, **settings
    )


def blobs(n, d=6, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    centres = 1.5 * rng.normal(size=(classes, d))
    labels = rng.integers(classes, size=n).astype(np.int32)
    return (centres[labels] + rng.normal(size=(n, d))).astype(np.float32), labels


def signs(n, seed):
    """Rows whose float32 cosines are exact, in any order of summation: many are equally near."""
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=(n, 16)).astype(np.float32)


def slow_neighbours(train, row, k):
    """The k nearest rows and their cosines; of equally near ones the first."""
    similarity = train @ row / (np.linalg.norm(train, axis=1) * np.linalg.norm(row))
    order = np.argsort(-similarity, kind="stable")[:k]
    return order, similarity[order]


def slow_knn(train, train_labels, test, test_labels, classes, k, temperature):
    right = 0
    for row, label in zip(test, test_labels, strict=True):
        votes = np.zeros(classes)
        for i, similarity in zip(*slow_neighbours(train, row, k), strict=True):
            votes[train_labels[i]] += np.exp(similarity / temperature)
        right += np.argmax(votes) == label
    return right / len(test)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 5), (20, 20), (21, 20), (100, 3), (1000, 20), (997, 1)])
def test_the_largest_are_those_of_top_k(n, k):
    distinct = np.random.default_rng(n).permutation(n).astype(np.float32) - n // 2
    for values in (distinct, np.floor(distinct / 7)):  # distinct ones, and seven of each
        found, where = largest(jnp.asarray(values), k)
        expected = np.argsort(-values, kind="stable")[:k]
        np.testing.assert_array_equal(where, expected)
        np.testing.assert_array_equal(found, values[expected])


@pytest.mark.parametrize("k", [1, 20])
def test_nearest_neighbours(k):
    x, labels = blobs(n=700)
    split = 400  # 300 test rows: more than a block, and not a multiple of it
    expected = slow_knn(
        x[:split].astype(np.float64), labels[:split], x[split:].astype(np.float64), labels[split:], 4, k, 0.07
    )
    found = accuracy(x[:split], labels[:split], x[split:], labels[split:], classes=4, neighbors=k)
    assert 0.5 < expected < 1
    assert found == pytest.approx(expected, abs=1.5 / 300)  # a vote may be as good as tied in float32


@pytest.mark.parametrize(("n", "k"), [(157, 20), (11, 11)])  # the second: more neighbours than rows on a device
@pytest.mark.parametrize("similarities", [2**26, 4 * 157])  # all test rows at once, or few at a time
def test_eight_devices_find_what_one_finds(monkeypatch, n, k, similarities):
    """The same neighbours, the lower index first where they are equally near, and the same votes."""
    monkeypatch.setattr("dcjax.evaluation.knn.SIMILARITIES", similarities)
    jax.clear_caches()  # the constant is read while compiling
    train, test = signs(n, 0), signs(45, 1)
    labels, targets = (np.random.default_rng(2).integers(3, size=size).astype(np.int32) for size in (n, 45))
    for devices in (1, 8):
        mesh = make_mesh(devices)
        found = nearest(place(train, labels, mesh), place(test, targets, mesh), mesh=mesh, neighbors=k)
        for i, row in enumerate(test):
            order, similarity = slow_neighbours(train, row, k)
            np.testing.assert_array_equal(found.index[i], order)
            np.testing.assert_array_equal(found.similarity[i], similarity)
            np.testing.assert_array_equal(found.label[i], labels[order])
    if similarities == 2**26:
        shares = [accuracy(train, labels, test, targets, devices=devices, classes=3, neighbors=k) for devices in (1, 8)]
        assert shares[0] == shares[1]


@pytest.mark.parametrize("classes", [2, 10])
def test_collapsed_features_are_right_by_chance_only(classes):
    labels = np.repeat(np.arange(classes), 3).astype(np.int32)
    x = np.zeros((len(labels), 5), np.float32)
    assert accuracy(x, labels, x, labels, classes=classes, neighbors=5) < 0.6


def test_what_is_not_finite_is_wrong():
    x, labels = blobs(40)
    for bad, count in ((np.full_like(x, np.nan), 8), (np.full_like(x, np.nan), 1)):
        assert accuracy(bad, labels, bad, labels, classes=4, neighbors=5, devices=count) == 0


def test_the_number_of_neighbours_has_bounds():
    x, labels = blobs(40)
    for k in (0, 41):
        with pytest.raises(ValueError, match=rf"probe\.neighbors must be from 1 to the 40 training images, found {k}"):
            accuracy(x, labels, x, labels, classes=4, neighbors=k)
