"""Dimensional collapse: the spectrum of an embedding and what is read from it.

The plot is in `dcjax.collapse.plot`, which loads matplotlib.
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
