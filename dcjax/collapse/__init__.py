"""Dimensional collapse: the spectrum of an embedding, and the measures computed from it.

`dcjax.collapse.plot` must be imported by its own name, because it loads matplotlib.
"""

from dcjax.collapse.arrays import unit_rows
from dcjax.collapse.covariance import Covariance
from dcjax.collapse.forecast import Forecast, forecast
from dcjax.collapse.lasting import Lasting, lasting_directions
from dcjax.collapse.local import LocalSpectra, local_spectra
from dcjax.collapse.metrics import METRICS, Interval, Metric, jackknife, metrics
from dcjax.collapse.moments import spectrum
from dcjax.collapse.quantities import Quantities
from dcjax.collapse.ranks import effective_rank
from dcjax.collapse.verdict import Verdict, judge
from dcjax.collapse.weights import Alignment, MatrixReport, alignments, matrix_reports

__all__ = [
    "METRICS",
    "Alignment",
    "Covariance",
    "Forecast",
    "Interval",
    "Lasting",
    "LocalSpectra",
    "MatrixReport",
    "Metric",
    "Quantities",
    "Verdict",
    "alignments",
    "effective_rank",
    "forecast",
    "jackknife",
    "judge",
    "lasting_directions",
    "local_spectra",
    "matrix_reports",
    "metrics",
    "spectrum",
    "unit_rows",
]
