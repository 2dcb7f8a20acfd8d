"""The spectrum of features whose rows are spread over the processes of a run."""

import jax
import numpy as np

from dcjax.collapse import exact_rows, spectrum, squared_singular_values, triangular_factor
from dcjax.runtime.errors import SettingError
from dcjax.runtime.mesh import from_process, from_processes


def spectrum_of_processes(rows: np.ndarray, *, normalize: bool) -> np.ndarray:
    """`dcjax.collapse.spectrum` of the rows of all processes together; every process calls this.

    Each process reduces its own centred rows to the factor R of their QR decomposition, whose singular values are the
    rows' own, and the factors are merged one by one. That is as exact as the decomposition of all rows at once, where a
    sum of covariance matrices would lose all values below 1e-16 of the largest. A process holds up to five copies of
    its own rows in float64 and a few matrices `[d, d]`; no process holds all rows.

    Args:
      rows: `[m, d]`, this process's rows; m may differ between processes, and be 0.
      normalize: as in `spectrum`.

    Returns:
      `[d]` in float64, descending, the same on every process.

    Raises:
      ValueError: as `spectrum`.
    """
    rows = np.asarray(rows, np.float64)  # raw pixels are of 8 bits
    if jax.process_count() == 1:
        return spectrum(rows, normalize=normalize)
    z = exact_rows(rows, normalize=normalize)
    count, *total = from_processes(np.concatenate([[len(z)], z.sum(axis=0)])).sum(axis=0)
    if count < 2:
        raise SettingError(f"a spectrum needs an array [n, d] with n >= 2, found n = {count:.0f}")
    own = triangular_factor(z - np.array(total) / count)
    padded = np.zeros((z.shape[1], z.shape[1]))  # one shape on every process
    padded[: len(own)] = own
    merged = padded[:0]
    for process in range(jax.process_count()):
        merged = triangular_factor(merged, from_process(padded, process))
    return squared_singular_values(merged) / count
