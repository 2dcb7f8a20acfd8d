"""Local collapse: spectra within k-means cells, for an embedding that is full as a whole and flat everywhere."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dcjax.collapse.classes import centered_singular_values
from dcjax.collapse.quantities import SAMPLE, SEED, Quantities, k_means
from dcjax.collapse.ranks import effective_rank

LEAST_ROWS = 3  # a cell with fewer has no spectrum worth a number


@dataclasses.dataclass(frozen=True)
class LocalSpectra:
    """The spectra within cells, and those of isotropic rows of the same number and dimension cut the same way.

    Attributes:
      sizes: `[c]`, the rows of each cell, of those with three or more.
      eigenvalues: `[c, d]`, of each cell's covariance (divisor its rows), descending.
      isotropic_sizes, isotropic_eigenvalues: the same of N(0, I) rows.
    """

    sizes: Int[np.ndarray, " c"]
    eigenvalues: Float[np.ndarray, "c d"]
    isotropic_sizes: Int[np.ndarray, " e"]
    isotropic_eigenvalues: Float[np.ndarray, "e d"]

    @property
    def rank(self) -> float:
        """The effective rank within a cell, the mean over rows."""
        return _mean_rank(self.sizes, self.eigenvalues)

    @property
    def isotropic_rank(self) -> float:
        """The same of isotropic rows: few rows in a cell lower it without any collapse."""
        return _mean_rank(self.isotropic_sizes, self.isotropic_eigenvalues)


def local_spectra(z: Any, *, cells: int = 10, sample: int = SAMPLE) -> LocalSpectra:
    """The spectra within the k-means cells of an embedding.

    Args:
      z: `[n, d]`, as for `metrics`, or `Quantities`.
      cells: how many cells k-means makes; at most a third of the rows.
      sample: the most rows that are clustered, drawn without replacement.

    Raises:
      ValueError: `cells` is not a whole number from 1 to a third of the rows, or no cell has three rows.
    """
    quantities = z if isinstance(z, Quantities) else Quantities(z, sample=sample)
    rows = quantities.rows
    if not isinstance(cells, int) or not 1 <= cells <= len(rows) // LEAST_ROWS:
        raise ValueError(f"cells must be from 1 to {len(rows) // LEAST_ROWS}, a third of the rows, found {cells}")
    isotropic = np.random.default_rng(SEED).standard_normal(rows.shape)
    own, other = (_within(part, k_means(part, cells)) for part in (rows, isotropic))
    if not len(own[0]):
        raise ValueError(f"no cell of {cells} has {LEAST_ROWS} rows or more; pass fewer cells")
    return LocalSpectra(*own, *other)


def _within(rows: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sizes and the eigenvalues of the cells that have enough rows."""
    sizes, spectra = [], []
    for c in range(cell.max() + 1):
        own = rows[cell == c]
        if len(own) < LEAST_ROWS:
            continue
        values = np.zeros(rows.shape[1])
        singular = centered_singular_values(own)
        values[: len(singular)] = singular**2 / len(own)
        sizes.append(len(own))
        spectra.append(values)
    return np.array(sizes, np.int64), np.array(spectra).reshape(len(sizes), rows.shape[1])


def _mean_rank(sizes: np.ndarray, eigenvalues: np.ndarray) -> float:
    ranks = [effective_rank(np.sqrt(values)) for values in eigenvalues]
    return float(np.average(ranks, weights=sizes)) if len(sizes) else 0.0
