"""The singular values of an embedding's covariance."""

import numpy as np
from jaxtyping import Float


def spectrum(z: Float[np.ndarray, "n d"], *, normalize: bool) -> Float[np.ndarray, " d"]:
    """Singular values of the covariance C = 1/n sum_i (z_i - mean)(z_i - mean)^T, largest first.

    They are the squared singular values of the centred rows in float64, divided by n. The covariance itself is not
    formed: its rounding would hide all values below about 1e-16 of the largest (6e-8 in float32), and that is where
    collapsed dimensions lie.

    Args:
      z: `[n, d]`, one embedding per row.
      normalize: whether to divide every row by its norm first, as the authors did for their plots; eq. 1 does not.

    Returns:
      `[d]` in float64, descending; zeros past the rank where n <= d.

    Raises:
      ValueError: z does not have the shape `[n, d]` with n >= 2, or has entries that are not finite.

    References:
      Jing et al., ICLR 2022, eq. 1.
    """
    if np.ndim(z) != 2 or len(z) < 2:
        raise ValueError(f"z must have the shape [n, d] with n >= 2, found {np.shape(z)}")
    z = exact_rows(z, normalize=normalize)
    return squared_singular_values(z - z.mean(axis=0)) / len(z)


def exact_rows(z: Float[np.ndarray, "n d"], *, normalize: bool) -> Float[np.ndarray, "n d"]:
    """The rows `[n, d]` in float64, each divided by its norm if `normalize`; rows of zeros stay zeros.

    Raises:
      ValueError: z has entries that are not finite.
    """
    z = np.asarray(z, np.float64)
    if not np.isfinite(z).all():
        raise ValueError("z must be finite, found NaN or inf")
    if not normalize:
        return z
    norms = np.linalg.norm(z, axis=1, keepdims=True)
    return np.divide(z, norms, out=np.zeros_like(z), where=norms > 0)


def triangular_factor(*parts: Float[np.ndarray, "_ d"]) -> Float[np.ndarray, "_ d"]:
    """A triangular matrix R `[<= d, d]` with the singular values of all the rows in `parts` together.

    Householder's QR computes it, and R^T R = sum_i parts_i^T parts_i. Unlike that sum, R keeps singular values below
    the square root of the rounding. The factor of several factors is the factor of all their rows.

    Args:
      parts: each `[n_i, d]`, n_i >= 0.
    """
    return np.asarray(np.linalg.qr(np.concatenate(parts), mode="r"))


def squared_singular_values(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
    """The squared singular values of the rows, `[d]`, descending, with zeros past the rank where n < d."""
    values = np.zeros(rows.shape[1])
    singular = np.linalg.svd(rows, compute_uv=False)
    values[: len(singular)] = singular**2
    return values
