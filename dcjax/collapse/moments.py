"""The spectrum of an embedding, and running moments of rows on the host, by a Gram matrix or by a triangular factor."""

from typing import Any

import numpy as np
import scipy.linalg.blas
from jaxtyping import Float, Shaped

from dcjax.collapse.arrays import blocks, check_finite, unit_rows
from dcjax.collapse.covariance import Covariance

BLAS: Any = scipy.linalg.blas


def spectrum(z: Any, *, normalize: bool = False) -> Float[np.ndarray, " d"]:
    """Singular values of the covariance C = 1/n sum_i (z_i - mean)(z_i - mean)^T, largest first.

    They are computed in float64. Entries stored in float64 keep values down to 1e-12 of the largest exact to 1e-7, or
    better (a running QR decomposition of the centred rows, `Covariance`). For entries that are stored with fewer
    digits the faster Gram matrix in float64 suffices, whose noise of about 1e-15 of the largest lies below their own.
    The rows are read in blocks, so the memory is O(d^2).

    Args:
      z: `[n, d]`, one embedding per row: an array of any library (with `__array__` or DLPack), a memory-mapped file, or
        an iterable of batches `[m, d]`.
      normalize: whether to divide every row by its norm first, as the authors did for their plots; eq. 1 does not.

    Returns:
      `[d]` in float64, descending; zeros past the rank where n <= d.

    Raises:
      ValueError: z does not have the shape `[n, d]` with n >= 2, or has entries that are not finite.

    References:
      Jing et al., ICLR 2022, eq. 1.
    """
    moments: Gram | Factor | None = None
    for block in blocks(z):
        check_finite(block)
        if moments is None:
            moments = moments_for(block.dtype, block.shape[1])
        moments.update(unit_rows(block) if normalize else block)
    if moments is None or moments.count < 2:
        raise ValueError(
            f"z must have the shape [n, d] with n >= 2, found {0 if moments is None else moments.count} rows"
        )
    return moments.eigenvalues()


class Gram:
    """Moments of entries that float32 can hold, by the float64 Gram matrix of the rows minus the first block's mean.

    It is several times as fast as the triangular factor. Its rounding hides eigenvalues below 1e-15 to 1e-14 of the
    largest; the rounding of float32 entries themselves already hides those below about (6e-8)^2 = 4e-15 of their mean
    square.
    """

    def __init__(self, dim: int):
        self.noise = max(1e-15, np.finfo(np.float64).eps * dim**0.5)  # smaller shares of the largest are rounding
        self.count = 0
        self._shift = np.zeros(dim)
        self._sum = np.zeros(dim)
        self._gram = np.zeros((dim, dim), order="F")

    def update(self, rows: Shaped[np.ndarray, "m d"]) -> None:
        """Adds rows in place."""
        rows = np.array(rows, np.float64, order="C")
        if not self.count and len(rows):
            self._shift = rows.mean(axis=0)
        rows -= self._shift
        self.count += len(rows)
        self._sum += rows.sum(axis=0)
        if len(rows):  # the upper triangle only
            BLAS.dsyrk(1.0, rows.T, beta=1.0, c=self._gram, overwrite_c=1)

    @property
    def mean(self) -> Float[np.ndarray, " d"]:
        """The mean of the rows."""
        return self._shift + self._sum / self.count

    def eigenvalues(self) -> Float[np.ndarray, " d"]:
        """Those of the covariance with divisor n, descending; zeros past the rank that n rows can have."""
        values = _eigenvalues(self._about(self._sum / self.count)) / self.count
        return _without_rounding(values, self.count, self.mean)

    def uncentered_singular_values(self) -> Float[np.ndarray, " k"]:
        """Those of the rows themselves, descending."""
        scatter = self._about(self._sum / self.count)
        scatter = BLAS.dsyr(self.count, self.mean, a=scatter, overwrite_a=1)
        return np.sqrt(_eigenvalues(scatter)[: self.count])

    def covariance(self) -> Float[np.ndarray, "d d"]:
        """The covariance with divisor n."""
        upper = np.triu(self._about(self._sum / self.count))
        return (upper + np.triu(upper, 1).T) / self.count

    def _about(self, offset: np.ndarray) -> np.ndarray:
        """The upper triangle of the scatter about `shift + offset`, a copy in Fortran's order."""
        return BLAS.dsyr(-self.count, offset, a=self._gram.copy(order="F"), overwrite_a=1)


class Factor:
    """Moments of float64 entries, by `Covariance`."""

    noise = 1e-30  # as of `Gram`

    def __init__(self, dim: int):
        self.count = 0
        self._state = Covariance.init(dim, np.float64)

    def update(self, rows: Shaped[np.ndarray, "m d"]) -> None:
        """Adds rows in place."""
        self.count += len(rows)
        self._state = self._state.update(np.asarray(rows, np.float64))

    @property
    def mean(self) -> Float[np.ndarray, " d"]:
        """The mean of the rows."""
        return self._state.mean

    def eigenvalues(self) -> Float[np.ndarray, " d"]:
        """Those of the covariance with divisor n, descending; zeros past the rank that n rows can have."""
        values = np.linalg.svd(self._state.factor, compute_uv=False) ** 2 / self.count
        return _without_rounding(values, self.count, self.mean)

    def uncentered_singular_values(self) -> Float[np.ndarray, " k"]:
        """Those of the rows themselves, descending."""
        rows = np.concatenate([self._state.factor, np.sqrt(self.count) * self.mean[None]])
        return np.linalg.svd(rows, compute_uv=False)[: min(self.count, rows.shape[1])]

    def covariance(self) -> Float[np.ndarray, "d d"]:
        """The covariance with divisor n."""
        return self._state.factor.T @ self._state.factor / self.count


def _eigenvalues(upper: np.ndarray) -> np.ndarray:
    """Those of a positive semi-definite matrix from its upper triangle, descending; destroys it, to save its memory."""
    values = scipy.linalg.eigvalsh(upper, lower=False, overwrite_a=True, check_finite=False, driver="evd")
    return np.maximum(values[::-1], 0)


def _without_rounding(values: np.ndarray, count: int, mean: np.ndarray) -> np.ndarray:
    """Eigenvalues with zeros past the rank of n centred rows, and for the rounding that the mean's size leaves."""
    values[max(count - 1, 0) :] = 0
    values[values <= (np.finfo(np.float64).eps * np.abs(mean).max()) ** 2] = 0  # equal rows have none, not noise
    return values


Moments = Gram | Factor


def moments_for(dtype: np.dtype, dim: int) -> Moments:
    """Empty moments that are exact enough for entries of a dtype: the Gram matrix where float32 can hold them."""
    exact = dtype == np.float64 or (np.issubdtype(dtype, np.integer) and dtype.itemsize > 2)
    return Factor(dim) if exact else Gram(dim)
