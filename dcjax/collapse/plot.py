"""The paper's spectrum plot: sorted singular values on a logarithmic scale."""

import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours for colour-blind readers; the line styles distinguish the curves in greyscale.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))

# Values are drawn at no less than this share of the largest. float32 embeddings have relative noise of about 1e-7,
# which is 1e-14 in a variance, so smaller values mean nothing; and zero has no logarithm.
FLOOR = 1e-14


def plot_spectra(spectra: Mapping[str, np.ndarray], path: pathlib.Path, *, title: str) -> None:
    """Draws ln(singular value) over its rank for one or more spectra and writes a PNG.

    Args:
      spectra: the values `[d]` by label, descending, as `spectrum` returns them.
      path: the file to write.
      title: a line above the axes.
    """
    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.2, 3.0), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for i, (label, values) in enumerate(spectra.items()):
            floor = FLOOR * max(float(values[0]), np.finfo(np.float64).tiny)
            marker = "o" if len(values) <= 32 else None
            axes.plot(
                np.arange(1, len(values) + 1),
                np.log(np.maximum(values, floor)),
                color=COLOURS[i % len(COLOURS)],
                linestyle=STYLES[i % len(STYLES)],
                linewidth=1.4,
                marker=marker,
                markersize=2.5,
                label=label,
            )
        axes.set_xlabel("singular value rank index")
        axes.set_ylabel("ln singular value of the covariance")
        axes.set_title(title, fontsize=9)
        axes.margins(x=0.02)
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.legend()
        # Matplotlib stamps its version into a PNG; without it the same numbers give the same file.
        figure.savefig(path, metadata={"Software": None})
