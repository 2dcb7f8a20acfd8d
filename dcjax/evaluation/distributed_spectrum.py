"""The spectrum of features whose rows are spread over the processes of a run."""

import jax
import numpy as np

from dcjax.collapse import Covariance, spectrum, unit_rows
from dcjax.runtime.mesh import from_process


def spectrum_of_processes(rows: np.ndarray, *, normalize: bool) -> np.ndarray:
    """`dcjax.collapse.spectrum` of the rows of all processes together; every process calls this.

    Each process reduces its own rows to a `Covariance`, and these are merged one by one. That is as exact as the
    decomposition of all rows at once; a sum of covariance matrices would lose all values below 1e-16 of the largest. A
    process holds up to five copies of its own rows in float64 and a few matrices `[d, d]`; no process holds all rows.

    Args:
      rows: `[m, d]`, this process's rows; m may differ between processes, and be 0.
      normalize: as in `spectrum`.

    Returns:
      `[d]` in float64, descending, the same on every process.

    Raises:
      ValueError: there are fewer than two rows in all, or entries that are not finite.
    """
    rows = np.asarray(rows, np.float64)  # raw pixels are uint8
    if jax.process_count() == 1:
        return spectrum(rows, normalize=normalize)
    if not np.isfinite(rows).all():
        raise ValueError("rows must be finite, found NaN or inf")
    own = Covariance.init(rows.shape[1], np.float64).update(unit_rows(rows) if normalize else rows)
    leaves, structure = jax.tree.flatten(own)
    merged = Covariance.init(rows.shape[1], np.float64)
    for process in range(jax.process_count()):
        merged = merged.merge(structure.unflatten([np.asarray(from_process(leaf, process)) for leaf in leaves]))
    if merged.count < 2:
        raise ValueError(f"rows must be at least 2 over all processes, found {merged.count:.0f}")
    return merged.singular_values()
