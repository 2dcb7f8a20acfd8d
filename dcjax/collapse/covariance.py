"""The singular values of an embedding's covariance."""

import numpy as np
from jaxtyping import Float

from dcjax.errors import SettingError


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
    z = np.asarray(z, np.float64)
    if z.ndim != 2 or z.shape[0] < 2:
        raise SettingError(f"a spectrum needs an array [n, d] with n >= 2, found the shape {z.shape}")
    if not np.isfinite(z).all():
        raise SettingError("a spectrum needs finite embeddings, found NaN or inf")
    if normalize:
        norms = np.linalg.norm(z, axis=1, keepdims=True)
        z = np.divide(z, norms, out=np.zeros_like(z), where=norms > 0)
    centred = z - z.mean(axis=0)
    values = np.zeros(z.shape[1])
    singular = np.linalg.svd(centred, compute_uv=False)
    values[: len(singular)] = singular**2 / z.shape[0]
    return values
