"""Dimensional collapse: the spectrum of an embedding and what is read from it."""

from dcjax.collapse.covariance import exact_rows, spectrum, squared_singular_values, triangular_factor
from dcjax.collapse.metrics import effective_rank
from dcjax.collapse.plot import plot_spectra

__all__ = [
    "effective_rank",
    "exact_rows",
    "plot_spectra",
    "spectrum",
    "squared_singular_values",
    "triangular_factor",
]
