"""X of the forecast against automatic differentiation of the package's losses, and the flow that it predicts."""

import jax
import numpy as np
import pytest
import scipy.linalg

from dcjax import losses, toy
from dcjax.collapse import forecast, spectrum

TEMPERATURE = 0.3
MATRICES = {"square": (5, 5), "wide": (3, 6), "tall": (8, 4)}
GRADIENTS = {
    "info_nce": lambda z, z_prime: losses.info_nce(z, z_prime, temperature=TEMPERATURE),
    "nt_xent": lambda z, z_prime: losses.nt_xent(z, z_prime, temperature=TEMPERATURE),
    "eq2": lambda z, z_prime: toy.info_nce(z, z_prime) / len(z),
}
COSINES = ("info_nce", "nt_xent")


@jax.jit
def gradients(w, x, x_prime):
    """The gradient of every loss with respect to W, as one program."""
    return {name: jax.grad(lambda w, loss=loss: loss(x @ w.T, x_prime @ w.T))(w) for name, loss in GRADIENTS.items()}


def views(n, d, seed=0, noise=0.5):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) + 0.3
    return x, x + noise * rng.normal(size=(n, d))


def forecast_of(loss, x, x_prime, weight=None):
    return forecast(x, x_prime, weight, loss=loss, temperature=TEMPERATURE if loss in COSINES else None)


@pytest.mark.parametrize("loss", GRADIENTS)
@pytest.mark.parametrize("shape", [*MATRICES.values(), None], ids=[*MATRICES, "identity"])
def test_the_gradient_is_minus_w_x(loss, shape, x64):
    x, x_prime = views(9, shape[1] if shape else 5)
    w = np.random.default_rng(1).normal(size=shape) if shape else np.eye(5)
    found = forecast_of(loss, x, x_prime, w if shape else None)
    gradient = gradients(w, x, x_prime)[loss]
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(-w @ found.matrix, gradient, atol=1e-10 * scale, rtol=0)
    np.testing.assert_array_equal(found.matrix, found.matrix.T)
    np.testing.assert_allclose(found.directions.T @ found.directions, np.eye(x.shape[1]), atol=1e-12)
    np.testing.assert_allclose(
        found.directions * found.rates @ found.directions.T, found.matrix, atol=1e-12 * np.abs(found.rates).max()
    )
    if loss in COSINES:
        assert abs(np.trace(found.matrix @ w.T @ w)) < 1e-12 * np.abs(found.matrix).max() * (w**2).sum()


def test_eq2_is_lemma_2(x64):
    x, x_prime = views(12, 4)
    w = 0.5 * np.random.default_rng(1).normal(size=(4, 4))
    alpha = np.asarray(jax.jit(toy.softmax_weights)(x @ w.T, x_prime @ w.T))
    s0, s1 = jax.jit(toy.covariance_split)(x, x_prime, alpha)
    found = forecast_of("eq2", x, x_prime, w)
    np.testing.assert_allclose(12 * found.matrix, s0 - s1, rtol=0, atol=1e-12 * np.abs(s0).max())
    np.testing.assert_allclose(
        12 * found.matrix, jax.jit(toy.interaction_matrix)(x, x_prime, alpha), rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("loss", COSINES)
def test_a_cosine_loss_has_negative_rates_without_any_augmentation(loss):
    x, _ = views(50, 6)
    found = forecast_of(loss, x, x)
    assert abs(found.rates.sum()) < 1e-12
    assert 0 < found.negative < 6
    np.testing.assert_array_equal(found.noise_shares, np.zeros(6))


@pytest.mark.parametrize("loss", GRADIENTS)
@pytest.mark.parametrize("sides", [1, 2])
def test_a_direction_out_of_use_grows_at_its_unused_rate(loss, sides):
    """Coordinates that W leaves out, independent of those in use: X has their unused rates, but for few rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 11))
    noise = np.array([0.2] * 8 + [0.0, 0.5, 3.0])
    x, x_prime = (x + noise * rng.normal(size=x.shape) * (view or sides == 2) for view in (0, 1))
    w = np.eye(11)[:8]
    found = forecast_of(loss, x, x_prime, w)
    unused = np.einsum("ik,k,ik->i", found.unused_directions, found.unused_rates, found.unused_directions)[8:]
    np.testing.assert_allclose(np.diag(found.matrix)[8:], unused, atol=0.03 * np.abs(unused).max())
    # Noise on both views leaves eq. 2 no negative rate. The cosine losses ask for a correlation above their margin.
    expected = [True, True, loss == "eq2" and sides == 2]
    assert [rate > 0 for rate in unused] == expected
    if loss == "info_nce":
        z, z_prime = (rows[:, :8] / np.linalg.norm(rows[:, :8], axis=1, keepdims=True) for rows in (x, x_prime))
        cosines = z @ z_prime.T
        p = np.exp(cosines / TEMPERATURE)
        p /= p.sum(axis=1, keepdims=True)
        margin = (np.diag(cosines) - (p * cosines).sum(axis=1)).sum() / (1 - np.diag(p)).sum()
        assert [np.corrcoef(x[:, k], x_prime[:, k])[0, 1] > margin for k in (8, 9, 10)] == expected


def test_strong_noise_on_one_view_names_its_coordinates():
    """X of small weights and many rows is 2 Cov(x) - Cov(noise): 2 where there is no noise, 2 - 4 where there is."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 8))
    noisy = np.arange(8) >= 5
    found = forecast(x, x + 2 * noisy * rng.normal(size=x.shape), 1e-3 * np.eye(8), loss="eq2")
    assert found.negative == 3
    np.testing.assert_allclose(found.rates, [-2] * 3 + [2] * 5, atol=0.4)  # about four standard errors of 1,500 rows
    np.testing.assert_allclose((found.directions[noisy, :3] ** 2).sum(), 3, atol=0.05)
    # Half the variance of the noise, relative to that of both views' mean: 2 / (1 + 2), above 1/2 as the sign is.
    np.testing.assert_allclose(found.noise_shares, [2 / 3] * 3 + [0] * 5, atol=0.05)
    both = forecast(x + 2 * noisy * rng.normal(size=x.shape), x + 2 * noisy * rng.normal(size=x.shape), loss="eq2",
                    weight=1e-3 * np.eye(8))  # fmt: skip
    assert both.rates[0] > 1  # 2 Cov(x): noise on both views makes no rate negative
    assert np.isinf(both.half_lives).all()


@pytest.mark.parametrize("loss", GRADIENTS)
def test_the_flow_of_a_fixed_x(loss, x64):
    x, x_prime = views(9, 6, noise=1.5)
    w = np.random.default_rng(1).normal(size=MATRICES["wide"])
    found = forecast_of(loss, x, x_prime, w)
    after = found.weight_after(3.0)
    np.testing.assert_allclose(
        after, w @ scipy.linalg.expm(3.0 * found.matrix), rtol=0, atol=1e-12 * np.abs(after).max()
    )
    # Of an eigenvector |W(t) v| = |W v| exp(rate t), halved after the half-life.
    gains = [np.linalg.norm(m @ found.directions[:, 0]) for m in (w, found.weight_after(found.half_lives[0]))]
    np.testing.assert_allclose(gains[1], gains[0] / 2, rtol=1e-10)
    assert found.negative == np.isfinite(found.half_lives).sum() >= 1
    rows = np.concatenate([x, x_prime])
    values = spectrum(rows @ after.T)
    np.testing.assert_allclose(found.spectrum_after(3.0), values / values[0], atol=1e-12)
    assert found.collapsed_after(0.0) == 0
    # One small step of gradient descent is the flow to first order.
    step = 1e-5
    descended = w - step * gradients(w, x, x_prime)[loss]
    np.testing.assert_allclose(found.weight_after(step), descended, rtol=0, atol=1e-8)


def test_the_spectrum_of_a_long_time_neither_overflows_nor_loses_small_values():
    x, x_prime = views(500, 4, noise=0.0)
    found = forecast(x, x_prime, loss="eq2")
    values = found.spectrum_after(1e4)
    assert values[0] == 1
    assert np.isfinite(values).all()
    assert found.collapsed_after(1e4) == 3
    with pytest.raises(ValueError, match="time must be at most"):
        found.weight_after(1e9)


def test_the_temperature_of_eq2_frees_its_signs_from_the_scale():
    x, x_prime = views(40, 3, noise=2.0)
    found, larger = (forecast(c * x, c * x_prime, loss="eq2", temperature=0.2) for c in (1.0, 100.0))
    np.testing.assert_allclose(larger.matrix, 1e4 * found.matrix, rtol=1e-9)
    # Unit rows have the logits of info_nce: -|u - v|^2 / (2 T) = (cos - 1) / T.
    unit, unit_prime = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, x_prime))
    same = forecast(unit, unit_prime, 0.2**-0.5 * np.eye(3), loss="eq2")
    np.testing.assert_allclose(forecast(unit, unit_prime, loss="eq2", temperature=0.2).matrix, same.matrix, atol=1e-12)


def test_rows_that_w_maps_to_zero_have_no_part():
    x, x_prime = views(6, 3)
    w = np.diag([1.0, 1.0, 0.0])
    x[0] = x_prime[0] = [0, 0, 5]
    for loss in COSINES:
        assert np.isfinite(forecast_of(loss, x, x_prime, w).matrix).all()


def test_rounding_is_not_counted():
    """Equal rows leave only rounding: an X of 0 in exact arithmetic, below the floor of float32 entries."""
    x = np.tile(np.float32([0.1, 0.7, 1.3]), (30, 1))
    for loss in GRADIENTS:
        found = forecast_of(loss, x, x)
        assert found.negative == 0, loss
        assert found.floor >= np.abs(found.rates).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.ones(3)}, "x must be real numbers of the shape"),
        ({"x": np.ones((1, 3)), "x_prime": np.ones((1, 3))}, r"shape \[n, d\] with n >= 2, found \(1, 3\)"),
        ({"x_prime": np.ones((4, 2))}, "one shape"),
        ({"x": np.full((4, 3), np.nan)}, "x must be finite"),
        ({"x_prime": np.full((4, 3), np.inf)}, "x_prime must be finite"),
        ({"weight": np.ones((2, 4))}, r"weight must have the shape \[e, 3\], found \(2, 4\)"),
        ({"weight": np.full((2, 3), np.nan)}, "weight must be finite"),
        ({"temperature": 0.0}, "temperature must be positive and finite, found 0"),
        ({"temperature": -1.0}, "temperature must be positive"),
        ({"temperature": None}, "temperature must be given for the loss info_nce"),
        ({"loss": "infonce"}, "did you mean 'info_nce'"),
    ],
)
def test_refuses(change, message):
    x, x_prime = views(4, 3)
    arguments = {"x": x, "x_prime": x_prime, "temperature": 0.1} | change
    with pytest.raises(ValueError, match=message):
        forecast(**arguments)


def test_refuses_times():
    found = forecast(*views(4, 3), temperature=0.1)
    for time in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="time must be finite and not negative"):
            found.spectrum_after(time)
