"""What the statements are tested on: random models, and the settings of the paper's toy figures."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcjax.runtime.errors import SettingError
from dcjax.toy.info_nce import info_nce
from dcjax.toy.simulate import Setting, Trajectory, simulate

# Fig. 3: one linear layer, pairs of inputs that differ by the identity, noise on half of the coordinates of one view.
STRONG = Setting(
    dim=16,
    samples=128,
    data_variance=0.5,
    noise="block",
    two_sided=False,
    init="default",
    loss="info_nce",
    learning_rate=0.1,
)

# Figs. 4 to 6: standard normal inputs, little noise on all coordinates of both views, an initial spectrum that decays.
TWO_LAYERS = Setting(
    dim=16,
    samples=128,
    data_variance=1.0,
    noise="isotropic",
    two_sided=True,
    init="decaying",
    loss="info_nce",
    learning_rate=0.1,
)


def run(
    setting: Setting,
    *,
    amplitudes: Sequence[float],
    seeds: Sequence[int],
    steps: Sequence[int] | np.ndarray,
    depths: Sequence[int] = (1,),
    **changes: Any,
) -> Trajectory:
    """Simulates a setting with some of its fields changed.

    Raises:
      ValueError: as `simulate`, or a cell that diverged.
    """
    setting = dataclasses.replace(setting, **changes)
    trajectory = simulate(
        setting,
        depths=list(depths),
        amplitudes=list(amplitudes),
        seeds=list(seeds),
        steps=[int(step) for step in steps],
    )
    lost = np.argwhere(~trajectory.finite())
    if len(lost):
        depth, amplitude, seed = lost[0]
        raise SettingError(
            f"the simulation diverged at amplitude {trajectory.amplitudes[amplitude]:g}, depth "
            f"{trajectory.depths[depth]}, seed {trajectory.seeds[seed]} (learning rate {setting.learning_rate:g}); a "
            "smaller --amplitude would be right"
        )
    return trajectory


def over_seeds(evaluate: Callable[[jax.Array], Any], seed: int, seeds: int) -> Any:
    """`evaluate(key)` for each of the seeds from `seed` on: NumPy arrays with a leading axis `[seeds]`.

    One after the other, and without `vmap` over decompositions: batched SVDs that run side by side on CPU wait for each
    other's threads, for good where the cores are few.
    """
    keys = jax.vmap(jax.random.key)(jnp.arange(seed, seed + seeds))
    with jax.default_matmul_precision("highest"):  # what the statements multiply themselves
        return jax.tree.map(np.asarray, jax.jit(functools.partial(jax.lax.map, evaluate))(keys))


def two_layer_descent(x: jax.Array, x_prime: jax.Array) -> Callable[[Any], Any]:
    """The velocity (W1', W2') of the real flow of two layers: minus the gradient of the mean of eq. 2, by autodiff."""

    def loss(layers):
        product = layers[1] @ layers[0]
        return -info_nce(x @ product.T, x_prime @ product.T) / x.shape[0]

    return jax.grad(loss)


def random_model(key: jax.Array, n: int, dim: int, amplitude: float = 1.0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A random W and two views, the second with noise on the last half of the coordinates."""
    for_w, for_x, for_noise = jax.random.split(key, 3)
    w = jax.random.normal(for_w, (dim, dim)) * (0.5 / dim**0.5)
    x = jax.random.normal(for_x, (n, dim)) * 0.5**0.5
    noise = jax.random.normal(for_noise, (n, dim)) * amplitude**0.5
    return w, x, x + jnp.where(jnp.arange(dim) < dim - dim // 2, 0, noise)
