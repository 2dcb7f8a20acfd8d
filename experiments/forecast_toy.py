"""The toy part of `experiments.forecast`: the directions that the initial X names, against those that collapse."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcjax import losses
from dcjax.collapse import Forecast, forecast
from dcjax.toy import Setting, simulate

DIM = 16
SAMPLES = 128
VARIANCE = 0.5  # the paper's convention, in which pairs differ by the identity and 2 Cov(x) - Cov(noise) = (1 - k) I
AMPLITUDES = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0)
SEEDS = 10
STEPS = 6000
RATE = 0.1
TEMPERATURE = 0.1
PAIRS = 1024  # of the forecast, drawn anew
BOUND = 1e-2  # a right direction of W has collapsed where its singular value is below this share of the largest

LOSSES = ("eq2", "info_nce")
# How directions are named: by the sign of the rates, or, without any loss, where the noise has more than half of the
# variance, which is where X with uniform weights is negative.
NAMINGS = ("negative rates", "noise share above 1/2")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A model: its loss and naming, and how far the named directions are those that collapsed.

    Attributes:
      named, collapsed: how many of the 16.
      precision: |P_named P_collapsed|_F^2 / named, P the projections on the two spaces; None where none is named.
      recall: the same, divided by collapsed; None where none collapsed.
    """

    loss: str
    naming: str
    amplitude: float
    seed: int
    named: int
    collapsed: int
    precision: float | None
    recall: float | None


def toy_cells(
    *,
    amplitudes: Sequence[float] = AMPLITUDES,
    seeds: int = SEEDS,
    steps: int = STEPS,
    pairs: int = PAIRS,
) -> list[Cell]:
    """Trains all models with each loss from the same initial W and compares.

    Args:
      amplitudes: variances of the noise on the last half of the coordinates of the second view.
      seeds: how many.
      steps: of SGD.
      pairs: rows of the forecast.
    """
    setting = Setting(
        dim=DIM, samples=SAMPLES, data_variance=VARIANCE, noise="block", two_sided=False, init="default",
        loss="info_nce", learning_rate=RATE,
    )  # fmt: skip
    found = simulate(setting, depths=[1], amplitudes=amplitudes, seeds=range(seeds), steps=[0, steps])
    initial, ends = found.weights[0, :, :, 0, 0], {"eq2": found.weights[0, :, :, 1, 0]}
    ends["info_nce"] = train_info_nce(initial, amplitudes, steps=steps)
    cells = []
    for (i, amplitude), seed in ((item, seed) for item in enumerate(amplitudes) for seed in range(seeds)):
        x, x_prime = draw_views(amplitude, seed, pairs)
        for loss in LOSSES:
            temperature = TEMPERATURE if loss == "info_nce" else None
            predicted = forecast(x, x_prime, initial[i, seed], loss=loss, temperature=temperature)
            gone = collapsed_directions(ends[loss][i, seed])
            for naming in NAMINGS:
                named = named_directions(predicted, naming, x, x_prime)
                cells.append(Cell(loss, naming, amplitude, seed, named.shape[1], gone.shape[1], *overlap(named, gone)))
    return cells


def train_info_nce(initial: np.ndarray, amplitudes: Sequence[float], *, steps: int) -> np.ndarray:
    """SGD on the package's trained loss, cosines and a temperature, over fresh batches; `simulate` knows eq. 2 only.

    Args:
      initial: `[amplitudes, seeds, 16, 16]`.
      amplitudes: variances of the noise.
      steps: of SGD.

    Returns:
      The last W, in the shape of `initial`.
    """

    def step(i: Any, w: jax.Array, amplitude: jax.Array, key: jax.Array) -> jax.Array:
        x, noise = jax.random.normal(jax.random.fold_in(key, i), (2, SAMPLES, DIM)) * VARIANCE**0.5
        noise = noise * jnp.where(jnp.arange(DIM) < DIM // 2, 0, (amplitude / VARIANCE) ** 0.5)

        def loss(w: jax.Array) -> jax.Array:
            return losses.info_nce(x @ w.T, (x + noise) @ w.T, temperature=TEMPERATURE)

        return w - RATE * jax.grad(loss)(w)

    @functools.partial(jax.jit, static_argnames="steps")
    def train(w: jax.Array, amplitude: jax.Array, seed: jax.Array, *, steps: int) -> jax.Array:
        def cell(of: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            w, amplitude, seed = of
            key = jax.random.fold_in(jax.random.key(seed), 1)
            return jax.lax.fori_loop(0, steps, lambda i, w: step(i, w, amplitude, key), w)

        return jax.lax.map(cell, (w, amplitude, seed))

    grid = np.meshgrid(np.asarray(amplitudes, np.float32), np.arange(initial.shape[1], dtype=np.uint32), indexing="ij")
    amplitude, seed = (axis.ravel() for axis in grid)
    flat = np.asarray(initial, np.float32).reshape(-1, DIM, DIM)
    return np.asarray(train(flat, amplitude, seed, steps=steps)).reshape(initial.shape)


def draw_views(amplitude: float, seed: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """New pairs, `[pairs, 16]` each."""
    rng = np.random.default_rng([seed, 7])
    x, noise = rng.normal(size=(2, pairs, DIM))
    return VARIANCE**0.5 * x, VARIANCE**0.5 * x + amplitude**0.5 * noise * (np.arange(DIM) >= DIM // 2)


def named_directions(predicted: Forecast, naming: str, x: np.ndarray, x_prime: np.ndarray) -> np.ndarray:
    """An orthonormal basis `[16, k]` of the directions that a naming expects to collapse."""
    if naming == "negative rates":
        return predicted.directions[:, : predicted.negative]
    values, vectors = np.linalg.eigh(2 * np.cov(x.T, bias=True) - (x_prime - x).T @ (x_prime - x) / len(x))
    return vectors[:, values < 0]


def collapsed_directions(w: np.ndarray, *, bound: float = BOUND) -> np.ndarray:
    """An orthonormal basis `[16, k]` of the right directions of W with small singular values."""
    _, values, right = np.linalg.svd(np.asarray(w, np.float64))
    return right[values < bound * values[0]].T


def overlap(named: np.ndarray, gone: np.ndarray) -> tuple[float | None, float | None]:
    """Precision and recall of spaces given by orthonormal bases; None where one of them is empty."""
    shared = float(((named.T @ gone) ** 2).sum())
    return (shared / named.shape[1] if named.shape[1] else None, shared / gone.shape[1] if gone.shape[1] else None)
