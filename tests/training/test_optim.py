"""LARS and its schedule against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dcjax.training.optim import lars, warmup_cosine


def slow_lars(params, gradients, rates, *, momentum, weight_decay, trust):
    """The recipe of the paper, a parameter at a time."""
    params = {name: p.copy() for name, p in params.items()}
    buffers = {name: np.zeros_like(p) for name, p in params.items()}
    for gradient, rate in zip(gradients, rates, strict=True):
        for name, p in params.items():
            g = gradient[name]
            if p.ndim > 1:
                g = g + weight_decay * p
                norms = np.linalg.norm(p), np.linalg.norm(g)
                g = g * (trust * norms[0] / norms[1] if all(norms) else 1.0)
            buffers[name] = momentum * buffers[name] + g
            params[name] = p - rate * buffers[name]
    return params


def test_lars_follows_the_recipe_while_the_rate_changes(x64):
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 3, 4, 5), "dense": (6, 2), "scale": (5,), "zero": (4, 4), "still": (2, 3)}
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    params["zero"][:] = 0  # |p| = 0: the ratio is 1
    gradients = [{name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(8)]
    for gradient in gradients:
        gradient["still"] = -1e-2 * params["still"]  # |g + wd p| = 0 at the first step: the ratio is 1
    schedule = warmup_cosine(learning_rate=4.8, warmup_steps=3, total_steps=8, final_scale=0.001)
    optimizer = lars(schedule, momentum=0.9, weight_decay=1e-2, trust_coefficient=0.001)
    state, found = optimizer.init(params), params
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, found)
        found = optax.apply_updates(found, updates)
    rates = [float(schedule(jnp.int32(step))) for step in range(8)]  # as the optimiser counts
    assert len({round(rate, 6) for rate in rates}) >= 7
    expected = slow_lars(params, gradients, rates, momentum=0.9, weight_decay=1e-2, trust=0.001)
    for name in shapes:
        # float64, the same operations in another order
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, atol=1e-14, err_msg=name)


def test_the_rate_is_applied_after_the_momentum():
    """Once the rate is zero the parameters stand still, whatever the momentum holds; with optax.lars they would not."""
    params = {"w": jnp.ones((2, 2))}
    optimizer = lars(lambda step: jnp.where(step < 1, 1.0, 0.0), momentum=0.9, weight_decay=0.0, trust_coefficient=0.1)
    state = optimizer.init(params)
    moved = []
    for _ in range(2):
        updates, state = optimizer.update({"w": jnp.full((2, 2), 0.5)}, state, params)
        moved.append(float(jnp.abs(updates["w"]).max()))
    assert moved[0] > 0
    assert moved[1] == 0


def test_schedule():
    schedule = warmup_cosine(learning_rate=4.8, warmup_steps=10, total_steps=100, final_scale=0.001)
    rates = np.array([schedule(step) for step in range(101)])
    assert rates[0] == 0
    np.testing.assert_allclose(rates[:11], 4.8 * np.arange(11) / 10, rtol=1e-6)
    t = np.arange(91) / 90
    np.testing.assert_allclose(rates[10:], 4.8 * (0.001 + 0.999 * 0.5 * (1 + np.cos(np.pi * t))), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(schedule)(50), rates[50], rtol=1e-6)
    assert warmup_cosine(learning_rate=1.0, warmup_steps=0, total_steps=1, final_scale=0.1)(0) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "^learning_rate must be positive, found 0.0"),
        ({"warmup_steps": 10}, "^warmup_steps .* found 10 of 10"),
        ({"warmup_steps": -1}, "^warmup_steps .* found -1"),
    ],
)
def test_bad_schedules(settings, message):
    with pytest.raises(ValueError, match=message):
        warmup_cosine(**{"learning_rate": 1.0, "warmup_steps": 2, "total_steps": 10, "final_scale": 0.1} | settings)


@pytest.mark.parametrize(
    ("setting", "value"), [("momentum", 1.0), ("momentum", -0.1), ("weight_decay", -1e-6), ("trust_coefficient", 0.0)]
)
def test_bad_settings(setting, value):
    with pytest.raises(ValueError, match=f"^{setting} .* found {value}"):
        lars(1.0, **{"momentum": 0.9, "weight_decay": 0.0, "trust_coefficient": 0.001} | {setting: value})
