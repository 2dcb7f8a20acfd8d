"""A running covariance of embeddings that is exact for small singular values, in memory independent of the rows."""

import dataclasses
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import scipy.linalg.lapack

Array = Any  # a NumPy or a JAX array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Covariance:
    """The number, the mean and the centred scatter of rows, as a pytree; every method returns a new one.

    The scatter sum_i w_i (z_i - mean)(z_i - mean)^T = R^T R is kept as its triangular factor R, which Householder's QR
    updates. R keeps singular values down to the rounding, and its squares, the eigenvalues, down to the rounding
    squared. The scatter itself in float32 would lose all eigenvalues below 6e-8 of the largest, and that is where
    collapsed dimensions lie.

    NumPy arrays are computed with NumPy in the dtype of `init`, and JAX arrays with JAX, under `jit`, `vmap`, `scan`
    and `shard_map` too; inside `shard_map` the state has to vary over the mesh's axis as the rows do. In float32,
    blocks of 64 rows or more and a mean of up to 10 times the spread leave each eigenvalue above 1e-11 of the largest
    exact to 1 %. In float64, a mean of 1e4 times the spread leaves each above 1e-12 exact to 1e-7. The memory is
    O(d^2).

    Attributes:
      count: [] the sum of the weights. In float32, an update by less than count / 2^24 rows does not move it.
      shift: `[d]`, the mean of the first rows. The others are measured from it, so that a large mean costs no digits.
      offset: `[d]`, the mean of all rows minus `shift`.
      factor: `[d, d]`, R.
    """

    count: Array
    shift: Array
    offset: Array
    factor: Array

    @classmethod
    def init(cls, dim: int, dtype: Any = np.float32) -> "Covariance":
        """The covariance of no rows.

        Args:
          dim: d, the entries of a row.
          dtype: float32 or float64. JAX computes in float64 only with `jax_enable_x64`; NumPy always can.

        Raises:
          ValueError: the dimension is not a whole number of at least 1, or the dtype is neither of the two.
        """
        if isinstance(dim, bool) or not isinstance(dim, int | np.integer) or dim < 1:
            raise ValueError(f"dim must be a whole number of at least 1, found {dim!r}")
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise ValueError(f"dtype must be float32 or float64, found {np.dtype(dtype).name}")
        zeros = np.zeros(dim, dtype)
        return cls(np.zeros((), dtype), zeros, zeros.copy(), np.zeros((dim, dim), dtype))

    @property
    def mean(self) -> Array:
        """`[d]`, the mean of the rows."""
        return self.shift + self.offset

    def update(self, z: Array, weights: Array | None = None) -> "Covariance":
        """Adds rows.

        Args:
          z: `[n, d]`, n >= 0. A few large blocks are faster and more exact than many small ones.
          weights: `[n]`, not negative, how often each row counts; rows of weight 0, as padding has, may hold anything.

        Raises:
          ValueError: the shapes do not fit, weights in NumPy are negative, or JAX would compute in float32 what `init`
            made in float64.
        """
        self._check_single()
        if np.ndim(z) != 2 or np.shape(z)[1] != self.factor.shape[-1]:
            raise ValueError(f"z must have the shape [n, {self.factor.shape[-1]}], found {np.shape(z)}")
        if weights is not None and np.shape(weights) != np.shape(z)[:1]:
            raise ValueError(f"weights must have the shape [{np.shape(z)[0]}], found {np.shape(weights)}")
        if weights is not None and not isinstance(weights, jax.Array):  # looking at JAX's would wait for the device
            weights = np.asarray(weights)
            if (weights < 0).any():
                raise ValueError(f"weights must not be negative, found {weights.min():g}")
        if np.shape(z)[0] == 0:
            return self
        xp = self._library(z, weights)
        dtype = self.factor.dtype
        z = xp.asarray(z, dtype)
        w = xp.ones(z.shape[:1], dtype) if weights is None else xp.asarray(weights, dtype)
        if weights is not None:
            z = xp.where((w > 0)[:, None], z, 0)  # 0 * nan is nan
        n = w.sum()
        safe = xp.maximum(n, xp.finfo(dtype).tiny)
        first = self._weighted(z, w, weights).sum(axis=0) / safe
        shift = xp.where(self.count > 0, self.shift, first)
        z = z - shift
        offset = self._weighted(z, w, weights).sum(axis=0) / safe
        z = self._weighted(z - offset, xp.sqrt(w), weights)
        return self._joined(xp, shift, n, offset, z)

    def merge(self, other: "Covariance") -> "Covariance":
        """The covariance of the rows of both; associative and commutative up to rounding.

        Raises:
          ValueError: the dimensions or the dtypes differ.
        """
        self._check_single()
        if self.factor.shape != other.factor.shape or self.factor.dtype != other.factor.dtype:
            one, two = (f"{c.factor.shape[-1]} ({c.factor.dtype})" for c in (self, other))
            raise ValueError(f"only covariances of the same dim and dtype can be merged, found {one} and {two}")
        xp = self._library(other.factor)
        shift = xp.where(self.count > 0, self.shift, other.shift)
        # Two nearby shifts subtract without rounding, and far ones carry no more digits than their difference.
        offset = xp.where(other.count > 0, (other.shift - shift) + other.offset, 0)
        return self._joined(xp, shift, other.count, offset, other.factor)

    def singular_values(self) -> Array:
        """`[d]`, descending: the singular values of eq. 1's covariance, R's own squared and divided by the count.

        Outside of `jit` they are computed from R in float64 on the host, as NumPy; under `jit` in R's own dtype, whose
        rounding hides values below about 1e-13 (float32) of the largest.

        Raises:
          ValueError: there are fewer than two rows, or some had NaN or inf.

        References:
          Jing et al., ICLR 2022, eq. 1.
        """
        if isinstance(self.factor, jax.core.Tracer):
            return jnp.linalg.svd(self.factor, compute_uv=False) ** 2 / self.count[..., None]
        if not np.asarray(self.count).min() >= 2:
            raise ValueError(f"a spectrum needs two rows or more, found {np.asarray(self.count).min():g}")
        if not np.isfinite(self.factor).all():
            raise ValueError("the rows had NaN or inf")
        values = np.linalg.svd(np.asarray(self.factor, np.float64), compute_uv=False) ** 2
        return values / np.asarray(self.count, np.float64)[..., None]

    def _joined(self, xp: Any, shift: Array, count: Array, offset: Array, rows: Array) -> "Covariance":
        """Adds rows that are centred and weighted already; their total weight is `count`, their mean `shift + offset`.

        The scatter about the common mean is the sum of both about their own means and of one more row, the scaled
        difference of the means (Chan, Golub & LeVeque, 1983).
        """
        total = self.count + count
        share = count / xp.maximum(total, xp.finfo(self.factor.dtype).tiny)
        apart = offset - self.offset
        correction = xp.sqrt(self.count * share) * apart
        factor = triangular_factor(xp, self.factor, rows, correction[None])
        return Covariance(total, shift, self.offset + share * apart, factor)

    def _check_single(self) -> None:
        if np.ndim(self.factor) != 2:
            raise ValueError(f"use jax.vmap for a batch of covariances, found a factor {np.shape(self.factor)}")

    @staticmethod
    def _weighted(rows: Array, w: Array, weights: Array | None) -> Array:
        return rows if weights is None else w[:, None] * rows

    def _library(self, *arrays: Array) -> Any:
        """NumPy where all arrays are on the host, else JAX.

        Raises:
          ValueError: JAX would compute in float32 what is kept in float64.
        """
        leaves = [*jax.tree.leaves(self), *arrays]
        if not any(isinstance(leaf, jax.Array) for leaf in leaves):
            return np
        if self.factor.dtype == np.float64 and jnp.result_type(float) == np.float32:
            raise ValueError("JAX arrays in float64 need jax.config.update('jax_enable_x64', True); pass NumPy arrays")
        return jnp


def triangular_factor(xp: Any, factor: Array, *rows: Array) -> Array:
    """R `[d, d]`, upper triangular, with R^T R = factor^T factor + sum_i rows_i^T rows_i.

    Args:
      xp: `numpy` or `jax.numpy`.
      factor: `[d, d]`, upper triangular.
      rows: each `[n_i, d]`.
    """
    if xp is not np:
        return jnp.linalg.qr(jnp.concatenate([factor, *rows]), mode="r")
    # LAPACK's QR of a triangle on top of rows leaves the zeros of the triangle out and works in place.
    lapack: Any = scipy.linalg.lapack
    fold = lapack.dtpqrt if factor.dtype == np.float64 else lapack.stpqrt
    below = np.empty((sum(map(len, rows)), len(factor)), factor.dtype, order="F")
    np.concatenate(rows, out=below)
    panel = min(64, len(factor))
    result, *_, info = fold(0, panel, np.array(factor, order="F"), below, overwrite_a=1, overwrite_b=1)
    if info:
        raise ValueError(f"LAPACK's tpqrt refused its argument {-info}")
    return result
