"""The toy part of `experiments.forecast`: the directions that the initial X names, against those that collapse."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcjax import losses
from dcjax.collapse import Forecast, forecast, lasting_directions
from dcjax.toy import Setting, simulate
from experiments.grid import mean_of

DIM = 16
SAMPLES = 128
VARIANCE = 0.5  # the paper's convention, in which pairs differ by the identity and 2 Cov(x) - Cov(noise) = (1 - k) I
AMPLITUDES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
SEEDS = 10
STEPS = 6000
RATE = 0.1
TEMPERATURE = 0.1
PAIRS = 4096  # of the forecast, drawn anew; few of them spread the correlations of equal directions
ONE_BATCH = 1024  # of these, for rates: their cost grows with the square
BOUND = 1e-2  # a right direction of W has collapsed where its singular value is below this share of the largest

# Name to the loss and whether both views are noisy.
SETTINGS = {
    "eq. 2, noise on one view": ("eq2", False),
    "InfoNCE, noise on one view": ("info_nce", False),
    "InfoNCE, noise on both views": ("info_nce", True),
}
# How directions are named: by the sign of the rates; by that of the rates of unused directions; as those that
# `lasting_directions` does not count, for cosine losses; or, without any loss, where half the mean square of the
# difference of two views is more than half of the variance of both.
NAMINGS = ("rates", "unused rates", "lasting", "noise share")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A model and a naming of directions: how far the named directions are those that collapsed.

    Attributes:
      setting: a key of `SETTINGS`.
      naming: one of `NAMINGS`.
      amplitude: the variance of the noise on the last half of the coordinates.
      seed: the seed of W(0), the training and the views of the forecast.
      named, collapsed: how many of the 16.
      precision: |P_named P_collapsed|_F^2 / named, P the projections on the two spaces; None where none is named.
      recall: the same, divided by collapsed; None where none collapsed.
    """

    setting: str
    naming: str
    amplitude: float
    seed: int
    named: int
    collapsed: int
    precision: float | None
    recall: float | None


def toy_cells(*, seeds: int = SEEDS, steps: int = STEPS) -> list[Cell]:
    """Trains the models of every setting from the same initial W and compares.

    Args:
      seeds: how many.
      steps: of SGD.
    """
    setting = Setting(
        dim=DIM, samples=SAMPLES, data_variance=VARIANCE, noise="block", two_sided=False, init="default",
        loss="info_nce", learning_rate=RATE,
    )  # fmt: skip
    found = simulate(setting, depths=[1], amplitudes=AMPLITUDES, seeds=range(seeds), steps=[0, steps])
    initial, eq2 = found.weights[0, :, :, 0, 0], found.weights[0, :, :, 1, 0]
    cells = []
    for name, (loss, two_sided) in SETTINGS.items():
        ends = eq2 if loss == "eq2" else train_info_nce(initial, AMPLITUDES, steps=steps, two_sided=two_sided)
        for (i, amplitude), seed in itertools.product(enumerate(AMPLITUDES), range(seeds)):
            views = draw_views(amplitude, seed, PAIRS, two_sided=two_sided)
            temperature = TEMPERATURE if loss == "info_nce" else None
            predicted = forecast(
                *(rows[:ONE_BATCH] for rows in views), initial[i, seed], loss=loss, temperature=temperature
            )
            gone = collapsed_directions(ends[i, seed])
            for naming in NAMINGS:
                if naming == "lasting" and loss == "eq2":
                    continue
                named = named_directions(predicted, naming, *views)
                counts = named.shape[1], gone.shape[1]
                cells.append(Cell(name, naming, amplitude, seed, *counts, *overlap(named, gone)))
        print(f"{name}: done", flush=True)
    return cells


def train_info_nce(initial: np.ndarray, amplitudes: Sequence[float], *, steps: int, two_sided: bool) -> np.ndarray:
    """SGD on the package's trained loss, cosines and a temperature, over fresh batches; `simulate` knows eq. 2 only.

    Args:
      initial: `[amplitudes, seeds, 16, 16]`.
      amplitudes: variances of the noise.
      steps: of SGD.
      two_sided: whether both views are noisy.

    Returns:
      The last W, in the shape of `initial`.
    """

    def step(i: Any, w: jax.Array, amplitude: jax.Array, key: jax.Array) -> jax.Array:
        x, *noise = jax.random.normal(jax.random.fold_in(key, i), (3, SAMPLES, DIM))
        scale = jnp.where(jnp.arange(DIM) < DIM // 2, 0, jnp.sqrt(amplitude))
        x, x_prime = (VARIANCE**0.5 * x + sides * scale * n for sides, n in zip((two_sided, True), noise, strict=True))

        def loss(w: jax.Array) -> jax.Array:
            return losses.info_nce(x @ w.T, x_prime @ w.T, temperature=TEMPERATURE)

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


def draw_views(amplitude: float, seed: int, pairs: int, *, two_sided: bool) -> tuple[np.ndarray, np.ndarray]:
    """New pairs, `[pairs, 16]` each."""
    x, *noise = np.random.default_rng([seed, 7]).normal(size=(3, pairs, DIM))
    scale = amplitude**0.5 * (np.arange(DIM) >= DIM // 2)
    return VARIANCE**0.5 * x + two_sided * scale * noise[0], VARIANCE**0.5 * x + scale * noise[1]


def named_directions(predicted: Forecast, naming: str, x: np.ndarray, x_prime: np.ndarray) -> np.ndarray:
    """An orthonormal basis `[16, k]` of the directions that a naming expects to collapse."""
    if naming == "rates":
        return predicted.directions[:, : predicted.negative]
    if naming == "unused rates":
        return predicted.unused_directions[:, : predicted.unused_negative]
    if naming == "lasting":
        return lasting_directions(x, x_prime, loss="info_nce", temperature=TEMPERATURE, batch_size=SAMPLES).lost
    noise = (x_prime - x).T @ (x_prime - x) / len(x)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True) + np.cov(x_prime.T, bias=True) - 2 * noise)
    return vectors[:, values < 0]


def collapsed_directions(w: np.ndarray, *, bound: float = BOUND) -> np.ndarray:
    """An orthonormal basis `[16, k]` of the right directions of W with small singular values."""
    _, values, right = np.linalg.svd(np.asarray(w, np.float64))
    return right[values < bound * values[0]].T


def overlap(named: np.ndarray, gone: np.ndarray) -> tuple[float | None, float | None]:
    """Precision and recall of spaces given by orthonormal bases; None where one of them is empty."""
    shared = float(((named.T @ gone) ** 2).sum())
    return (shared / named.shape[1] if named.shape[1] else None, shared / gone.shape[1] if gone.shape[1] else None)


def summary(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """For each setting, amplitude and naming the means over seeds and the half-widths of their 95 % intervals.

    Precision and recall are averaged over the seeds in which they are defined; None where that is none.
    """
    groups: dict[tuple[str, float, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.setting, cell.amplitude, cell.naming), []).append(cell)
    rows = []
    for (setting, amplitude, naming), group in groups.items():
        row: dict[str, Any] = {"setting": setting, "amplitude": amplitude, "naming": naming, "seeds": len(group)}
        for name in ("collapsed", "named", "precision", "recall"):
            values = [value for cell in group if (value := getattr(cell, name)) is not None]
            found = mean_of(values) if values else None
            row[name] = None if found is None else [found.mean, found.half_width if found.count > 1 else None]
        rows.append(row)
    return rows
