"""Plots of spectra: sorted singular values on a logarithmic scale, as in the paper."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dcjax.collapse.local import LocalSpectra
from dcjax.collapse.weights import MatrixReport
from dcjax.runtime.files import replacing

# Okabe and Ito's colours for colour-blind readers; the line styles distinguish the curves in greyscale.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))

# Values are drawn at no less than this share of the largest. float32 embeddings have relative noise of about 1e-7,
# which is 1e-14 in a variance, so smaller values mean nothing; and zero has no logarithm.
FLOOR = 1e-14

MARKED = 32  # points of a curve that are marked one by one; more would merge
NAMED = 8  # matrices that a legend names one by one


def plot_spectra(spectra: Mapping[str, np.ndarray], path: pathlib.Path, *, title: str) -> None:
    """Draws ln(singular value) over its rank for one or more spectra and writes a PNG.

    Args:
      spectra: the values `[d]` by label, descending, as `spectrum` returns them.
      path: the file to write.
      title: a line above the axes.
    """

    def draw(axes: Any) -> None:
        draw_spectra(axes, spectra)
        axes.set_ylabel("ln singular value of the covariance")
        axes.set_title(title, fontsize=9)

    save([draw], path)


def spectra_image(spectra: Mapping[str, np.ndarray]) -> np.ndarray:
    """Draws spectra as `plot_spectra`, small and in 40 ms: `[h, w, 3]` uint8, for TensorBoard."""
    figure = Figure(figsize=(4.2, 3.0), dpi=80)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.14, 0.16, 0.84, 0.8))
    axes.locator_params(nbins=5)  # most of the time goes into ticks
    draw_spectra(axes, spectra)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def save(panels: Sequence[Callable[[Any], None]], path: pathlib.Path) -> None:
    """Writes a PNG of panels beside each other; each draws on the axes that it is given."""
    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.2 * len(panels), 3.0), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw(axes)
        # Matplotlib stamps its version into a PNG; without it the same numbers give the same file.
        with replacing(path) as partial:
            figure.savefig(partial, format="png", metadata={"Software": None})


def draw_spectra(
    axes: Any,
    spectra: Mapping[str, np.ndarray],
    *,
    relative: bool = False,
    thresholds: Mapping[str, float] | None = None,
) -> None:
    """Draws ln(singular value) over its rank.

    Args:
      axes: Matplotlib's.
      spectra: the values `[d]` by label, descending.
      relative: divide each spectrum by its largest value, to compare embeddings of different scales.
      thresholds: label to the value at or below which directions count as collapsed, drawn as a thin line.
    """
    for i, (label, values) in enumerate(spectra.items()):
        largest = max(float(values[0]), np.finfo(np.float64).tiny)
        scale = largest if relative else 1.0
        rank = np.arange(1, len(values) + 1)
        colour, style = COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)]
        axes.plot(
            rank,
            np.log(np.maximum(values, FLOOR * largest) / scale),
            color=colour,
            linestyle=style,
            linewidth=1.4,
            marker="o" if len(values) <= MARKED else None,
            markersize=2.5,
            label=label,
        )
        if thresholds and FLOOR * largest < thresholds.get(label, 0) < largest:
            level = np.log(thresholds[label] / scale)
            axes.plot(rank[[0, -1]], [level, level], color=colour, linewidth=0.6, linestyle=(0, (1, 2)))
    axes.set_xlabel("singular value rank index")
    axes.set_ylabel("ln(eigenvalue / largest)" if relative else "ln singular value of the covariance")
    if thresholds:
        axes.set_title("directions at or below the dotted line count as collapsed", fontsize=9)
    _finish(axes)


def draw_local(axes: Any, local: LocalSpectra, *, title: str) -> None:
    """Draws the spectrum of every cell, relative to its largest value, over those of isotropic rows."""
    kinds = (
        ("isotropic rows", local.isotropic_eigenvalues, "#999999"),
        ("cells", local.eigenvalues, COLOURS[0]),
    )
    for label, spectra, colour in kinds:
        for i, values in enumerate(spectra):
            if values[0] <= 0:
                continue
            drawn = np.log(np.maximum(values / values[0], FLOOR))
            drawn = np.where(values > 0, drawn, np.nan)  # past the rank that the cell's rows can have
            rank = np.arange(1, len(values) + 1)
            axes.plot(rank, drawn, color=colour, linewidth=0.7, alpha=0.8, label=None if i else label)
    axes.set_xlabel("singular value rank index")
    axes.set_ylabel("ln(eigenvalue / largest)")
    axes.set_title(f"{title}, within cells: rank {local.rank:.1f}, isotropic {local.isotropic_rank:.1f}", fontsize=9)
    _finish(axes)


def draw_weights(axes: Any, reports: Sequence[MatrixReport], *, title: str) -> None:
    """Draws the singular values of a checkpoint's matrices, relative to the largest, from the first to the last."""
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(reports)))
    for i, (report, colour) in enumerate(zip(reports, shades, strict=True)):
        s = report.singular_values
        named = len(reports) <= NAMED or i in (0, len(reports) - 1)
        values = np.log(np.maximum(s / max(float(s[0]), np.finfo(np.float64).tiny), FLOOR))
        share = np.arange(1, len(s) + 1) / len(s)
        axes.plot(share, values, color=colour, linewidth=1, label=report.name if named else None)
    axes.set_xlabel("rank / number of singular values")
    axes.set_ylabel("ln(singular value / largest)")
    axes.set_title(title, fontsize=9)
    _finish(axes)


def _finish(axes: Any) -> None:
    axes.margins(x=0.02)
    axes.grid(alpha=0.25, linewidth=0.5)
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(fontsize=8)
