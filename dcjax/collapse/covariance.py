"""The singular values of an embedding's covariance."""

import numpy as np
from jaxtyping import Float

from dcjax.runtime.errors import SettingError


def spectrum(z: Float[np.ndarray, "n d"], *, normalize: bool) -> Float[np.ndarray, " d"]:
    """Singular values of the covariance C = 1/n sum_i (z_i - mean)(z_i - mean)^T, largest first.

    They come from the singular values of the centred rows in float64, squared: those of a covariance that was formed
    first drown in rounding below about 1e-16 of the largest (6e-8 in float32), which is where collapsed dimensions lie.

    Args:
      z: `[n, d]`, one embedding a row.
      normalize: divide every row by its norm first, as the authors did for their plots; False is eq. 1 as it stands.

    Returns:
      `[d]` in float64, descending; zeros past the rank where n <= d.

    Raises:
      ValueError: not `[n, d]` with n >= 2, or entries that are not finite.

    References:
      Jing et al., ICLR 2022, eq. 1.
    """
    if np.ndim(z) != 2 or len(z) < 2:
        raise SettingError(f"a spectrum needs an array [n, d] with n >= 2, found the shape {np.shape(z)}")
    z = exact_rows(z, normalize=normalize)
    return squared_singular_values(z - z.mean(axis=0)) / len(z)


def exact_rows(z: Float[np.ndarray, "n d"], *, normalize: bool) -> Float[np.ndarray, "n d"]:
    """The rows `[n, d]` in float64, each divided by its norm where that is asked for.

    Raises:
      ValueError: entries that are not finite.
    """
    z = np.asarray(z, np.float64)
    if not np.isfinite(z).all():
        raise SettingError("a spectrum needs finite embeddings, found NaN or inf")
    if not normalize:
        return z
    norms = np.linalg.norm(z, axis=1, keepdims=True)
    return np.divide(z, norms, out=np.zeros_like(z), where=norms > 0)


def triangular_factor(*parts: Float[np.ndarray, "_ d"]) -> Float[np.ndarray, "_ d"]:
    """R `[<= d, d]` with the singular values of all the rows in `parts` together.

    R^T R = sum_i parts_i^T parts_i, by Householder's QR: unlike that sum, R keeps singular values that are smaller than
    the square root of the rounding. Factors of parts are merged by taking the factor of the factors.

    Args:
      parts: each `[n_i, d]`, n_i >= 0.
    """
    return np.asarray(np.linalg.qr(np.concatenate(parts), mode="r"))


def squared_singular_values(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
    """`[d]`, descending; zeros past the rank where n < d."""
    values = np.zeros(rows.shape[1])
    singular = np.linalg.svd(rows, compute_uv=False)
    values[: len(singular)] = singular**2
    return values
