"""Dimensional collapse: the spectrum of an embedding, and the measures computed from it.

`dcjax.collapse.plot` must be imported by its own name, because it loads matplotlib.
"""

from dcjax.collapse.covariance import exact_rows, spectrum, squared_singular_values, triangular_factor
from dcjax.collapse.metrics import effective_rank

__all__ = [
    "effective_rank",
    "exact_rows",
    "spectrum",
    "squared_singular_values",
    "triangular_factor",
]
