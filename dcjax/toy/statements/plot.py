"""The figures of the theory: curves with bands over seeds, and heat maps, in one style."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from dcjax.collapse.plot import COLOURS, MARKED, STYLES
from dcjax.runtime.files import replacing

STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.facecolor": "white",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 7,
}
PANEL = (3.1, 2.5)  # inches


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line through the median over the seeds, with a band from the smallest to the largest.

    Attributes:
      y: `[points]`, or `[seeds, points]`.
      x: `[points]`; None for the ranks 1, 2, ...
      label: its name in the legend; None leaves it out.
      colour: an index into the palette; a share from 0.0 to 1.0 of the colour map for families of curves; "grey" for
        a reference.
      dots: whether to draw points without a line.
    """

    y: Any
    x: Any = None
    label: str | None = None
    colour: int | float | str = 0
    dots: bool = False


@dataclasses.dataclass(frozen=True)
class Panel:
    """Curves on common axes."""

    curves: Sequence[Curve]
    x_label: str
    y_label: str
    title: str = ""
    log_x: bool = False
    log_y: bool = True
    floor: float | None = None  # the lower end of the y axis, where values run into rounding
    level: float | None = None  # a horizontal line
    label_ends: bool = False  # labels at the curves' right ends instead of a legend


@dataclasses.dataclass(frozen=True)
class Map:
    """A matrix of numbers, drawn as cells."""

    values: Any
    title: str
    x_label: str
    y_label: str
    bar_label: str
    limits: tuple[float, float]
    x_edges: Any = None  # None for the ranks 1, 2, ...
    y_names: Sequence[str] | None = None
    mark: float | None = None  # a vertical line
    wide: bool = False


def family(x: np.ndarray, values: np.ndarray, x_label: str, y_label: str, title: str) -> Panel:
    """One curve per singular value of `[seeds, points, dim]`, coloured by rank; the first and the last are labelled."""
    last = values.shape[-1] - 1
    curves = [
        Curve(values[..., k], x, f"k = {k + 1}" if k in (0, last) else None, k / max(last, 1)) for k in range(last + 1)
    ]
    return Panel(curves, x_label, y_label, title, label_ends=True)


def power_law(x: Sequence[float | int], values: np.ndarray, order: int, label: str) -> Curve:
    """The reference line proportional to x ** order through the median of the last of `[seeds, points]`."""
    ratio = np.asarray(x, float) / x[-1]
    return Curve(np.median(values[:, -1]) * ratio**order, x, label, "grey")


def alignment_map(values: np.ndarray, title: str) -> Map:
    """The map of an alignment matrix |V2^T U1|."""
    return Map(values, title, "k of U1", "k of V2", "|V2ᵀ U1|", (0.0, 1.0))


def draw_curves(path: pathlib.Path, panels: Sequence[Panel], *, size: tuple[float, float] = PANEL) -> None:
    """Writes a PNG with the panels side by side, each of `size` inches."""
    with _figure(path, len(panels), size) as (_, axes):
        for ax, panel in zip(axes, panels, strict=True):
            _draw_panel(ax, panel)


def draw_maps(path: pathlib.Path, maps: Sequence[Map]) -> None:
    """Writes a PNG with the maps side by side."""
    size = (6.2, 2.4) if maps[0].wide else (2.6, 2.5)
    with _figure(path, len(maps), size) as (figure, axes):
        for ax, item in zip(axes, maps, strict=True):
            values = np.asarray(item.values)
            rows, columns = values.shape
            x = np.arange(columns + 1) + 0.5 if item.x_edges is None else item.x_edges
            y = np.arange(rows + 1) + 0.5
            mesh = ax.pcolormesh(
                x, y, values, vmin=item.limits[0], vmax=item.limits[1], cmap="viridis", rasterized=True
            )
            ax.set_title(item.title)
            ax.set_xlabel(item.x_label)
            ax.set_ylabel(item.y_label)
            if item.y_names is None:
                ax.invert_yaxis()
                ax.set_aspect("equal")
                ax.yaxis.set_major_locator(MaxNLocator(integer=True))
                ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            else:
                ax.set_yticks(np.arange(rows) + 1, item.y_names)
            if item.mark is not None:
                ax.axvline(item.mark, color="white", linewidth=1.0, linestyle="--")
        whole = maps[-1].limits[1] > 1
        bar = figure.colorbar(mesh, ax=list(axes), shrink=0.9, pad=0.02, ticks=MaxNLocator(integer=whole))
        bar.set_label(maps[-1].bar_label)


@contextlib.contextmanager
def _figure(path: pathlib.Path, columns: int, size: tuple[float, float]) -> Iterator[tuple[Figure, np.ndarray]]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(size[0] * columns, size[1]), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(1, columns, squeeze=False)[0]
        # Matplotlib stamps its version into a PNG; without it the same numbers give the same file.
        with replacing(path) as partial:
            figure.savefig(partial, format="png", metadata={"Software": None})


def _draw_panel(ax: Axes, panel: Panel) -> None:
    for curve in panel.curves:
        y = np.atleast_2d(np.asarray(curve.y, float))
        x = np.arange(1, y.shape[1] + 1) if curve.x is None else np.asarray(curve.x)
        look = _look(curve)
        ax.plot(x, np.median(y, axis=0), label=curve.label, **look)
        if len(y) > 1:
            ax.fill_between(x, y.min(axis=0), y.max(axis=0), color=look["color"], alpha=0.2, linewidth=0)
    if panel.log_x:
        ax.set_xscale("log")
        # Each of the few points gets a tick; powers of ten would crowd them.
        ticks = np.unique(np.concatenate([np.asarray(curve.x, float) for curve in panel.curves]))
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
    if panel.log_y:
        ax.set_yscale("log")
    if panel.floor is not None:
        ax.set_ylim(bottom=panel.floor)
    if panel.level is not None:
        ax.axhline(panel.level, color="0.4", linewidth=0.8, linestyle=":")
    if all(curve.x is None for curve in panel.curves):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title(panel.title)
    ax.set_xlabel(panel.x_label)
    ax.set_ylabel(panel.y_label)
    ax.grid(alpha=0.25, linewidth=0.5)
    if panel.label_ends:
        for curve in panel.curves:
            if curve.label:
                end = np.asarray(curve.x)[-1], np.median(np.atleast_2d(np.asarray(curve.y, float)), axis=0)[-1]
                ax.annotate(curve.label, end, (4, 0), textcoords="offset points", va="center", fontsize=7)
    elif any(curve.label for curve in panel.curves):
        ax.legend()


def _look(curve: Curve) -> dict[str, Any]:
    match curve.colour:
        case str():
            look: dict[str, Any] = {"color": "0.45", "linestyle": "--", "linewidth": 1.0}
        case float():
            look = {"color": matplotlib.colormaps["viridis"](0.92 * curve.colour), "linewidth": 1.1}
        case index:
            look = {"color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index % len(STYLES)], "linewidth": 1.3}
    if curve.dots:
        look |= {"linestyle": "none", "marker": "o", "markersize": 3.5}
    elif curve.x is None and np.shape(curve.y)[-1] <= MARKED:
        look |= {"marker": "o", "markersize": 2}
    return look
