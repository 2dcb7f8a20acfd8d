"""Dimensional collapse: the spectrum of an embedding and what is read from it."""

from dcjax.collapse.covariance import spectrum
from dcjax.collapse.metrics import effective_rank
from dcjax.collapse.plot import plot_spectra

__all__ = ["effective_rank", "plot_spectra", "spectrum"]
