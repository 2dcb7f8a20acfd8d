"""The directions that last under a cosine loss: a known spectrum of correlations, and no dependence on the basis."""

import numpy as np
import pytest

from dcjax.collapse import forecast, lasting_directions


def views(noise, n=2000, seed=0):
    """Independent coordinates of variance 1, with noise of these variances on both views."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, len(noise)))
    return tuple(x + np.sqrt(noise) * rng.normal(size=x.shape) for _ in range(2))


def settle(x, x_prime, *, temperature, batch_size):
    """By a slow reference: adds one direction after the other as long as the next one's unused rate is positive."""
    count = 1
    while count < x.shape[1]:
        w = np.eye(x.shape[1])[:count]
        rate = sum(
            forecast(x[i : i + batch_size], x_prime[i : i + batch_size], w, temperature=temperature).unused_matrix[
                count, count
            ]
            for i in range(0, len(x) - batch_size + 1, batch_size)
        )
        if rate <= 0:
            break
        count += 1
    return count


def test_the_most_noisy_directions_are_lost():
    x, x_prime = views([0.0] * 5 + [9.0] * 3)  # correlations 1 and 0.1
    found = lasting_directions(x, x_prime, temperature=0.3, batch_size=200)
    assert found.count == settle(x, x_prime, temperature=0.3, batch_size=200) == 5
    np.testing.assert_allclose(found.correlations, [1] * 5 + [0.1] * 3, atol=0.07)
    np.testing.assert_allclose((found.lost[5:] ** 2).sum(), 3, atol=0.02)
    np.testing.assert_allclose(found.lost.T @ found.lost, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(found.readers[:, :5].T @ found.lost, 0, atol=1e-12)


def test_without_augmentation_nothing_is_lost():
    x, _ = views([0.0] * 6, n=100)
    for loss in ("info_nce", "nt_xent"):
        found = lasting_directions(x, x, loss=loss, temperature=0.1)
        assert found.count == 6
        np.testing.assert_allclose(found.correlations, 1, atol=1e-12)
        assert found.lost.shape == (6, 0)


def test_neither_the_basis_nor_the_mean_matters():
    x, x_prime = views([0.0, 0.1, 0.2, 8.0, 20.0], n=300)
    rng = np.random.default_rng(1)
    basis, mean = rng.normal(size=(5, 5)), rng.normal(size=5)
    found, other = (
        lasting_directions(*pair, temperature=0.5)
        for pair in ((x, x_prime), (x @ basis + mean, x_prime @ basis + mean))
    )
    np.testing.assert_allclose(found.correlations, other.correlations, atol=1e-10)
    assert found.count == other.count < 5
    # Rows x become x basis, and with them the direction v of W v = 0 becomes basis^T v.
    moved = basis.T @ found.lost
    np.testing.assert_allclose(np.linalg.matrix_rank(np.hstack([moved, other.lost]), tol=1e-8), other.lost.shape[1])


def test_directions_without_variance_are_left_out():
    x, x_prime = (rows @ np.eye(3, 5) for rows in views([0.0] * 3, n=50))
    found = lasting_directions(x, x_prime, temperature=0.1)
    assert found.correlations.shape == (3,)
    assert found.lost.shape == (5, 5 - found.count)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "eq2"}, "loss must be info_nce or nt_xent, found eq2"),
        ({"batch_size": 1}, "batch_size must be from 2 to the 20 rows, found 1"),
        ({"batch_size": 21}, "batch_size must be from 2 to the 20 rows"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"x": np.ones((20, 3)), "x_prime": np.ones((20, 3))}, "the rows must differ"),
        ({"x_prime": np.ones((20, 2))}, "one shape"),
    ],
)
def test_refuses(change, message):
    x, x_prime = views([0.1] * 3, n=20)
    with pytest.raises(ValueError, match=message):
        lasting_directions(**({"x": x, "x_prime": x_prime, "temperature": 0.1} | change))
