"""The figures of a report: curves over steps, spectra at some steps, and a heat map of the spectrum over time."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from dcjax.report.lines import Curve
from dcjax.report.record import Look
from dcjax.report.svg import Sheet

# Okabe and Ito's colours for colour-blind readers, then again dashed, then dotted.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("", "5 2", "1.5 1.5")

COLLAPSED = 1e-6  # `dcjax.collapse.ranks.TOLERANCE`, whose package loads JAX; a test compares them
FLOOR = 1e-10  # of the largest eigenvalue; smaller ones are drawn here
LEVELS = 20  # colours of the heat map, half a decade each
SIZE = (3.3, 2.0)
WIDE = (4.2, 2.4)
LOG_RATIO = 30  # norms that span more than this are drawn on a logarithmic scale


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve of a figure: x and y `[n]`, and its place in the order of colours."""

    label: str
    x: np.ndarray
    y: np.ndarray
    index: int


@dataclasses.dataclass(frozen=True)
class Level:
    """A horizontal line at a value, dotted, in the colour of the curve with the same index; None for grey."""

    label: str
    value: float
    index: int | None = None


def colour(index: int) -> tuple[str, str]:
    """The colour and the SVG dash pattern of the curve with some place in the order."""
    return COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]


def line(label: str, curve: Curve, index: int, points: int) -> Line:
    """A curve over steps, thinned."""
    kept = thin(curve.values, points)
    return Line(label, curve.steps[kept], curve.values[kept], index)


def thin(values: np.ndarray, points: int) -> np.ndarray:
    """The indices of at most `points` values: the ends and, so that peaks stay, the extremes of even stretches."""
    n = len(values)
    if n <= points:
        return np.arange(n)
    edges = np.linspace(1, n - 1, (points - 2) // 2 + 1).astype(int)
    kept = {0, n - 1}
    for start, end in itertools.pairwise(edges):
        kept |= {start + int(values[start:end].argmin()), start + int(values[start:end].argmax())}
    return np.array(sorted(kept))


def evenly(count: int, most: int) -> list[int]:
    """At most `most` indices below `count`, evenly spaced, with both ends."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))}) if count else []


def steps_figure(
    sheet: Sheet,
    title: str,
    lines: Sequence[Line],
    *,
    levels: Sequence[Level] = (),
    norms: bool = False,
    size: tuple[float, float] = SIZE,
) -> str:
    """Curves over steps; `norms` are drawn on a logarithmic scale if they span much."""
    shown = np.concatenate([item.y for item in lines] + [np.array([level.value for level in levels])])
    log = norms and bool(shown.min() > 0 and shown.max() > LOG_RATIO * shown.min())
    marked = max(len(item.x) for item in lines) <= 12

    def paint(axes: Any) -> None:
        for level in levels:
            shade = "#777777" if level.index is None else colour(level.index)[0]
            axes.axhline(level.value, color=shade, linewidth=1, linestyle=(0, (1, 2)))
        for item in lines:
            _plot(axes, item, marker="o" if marked else None)
        if log:
            axes.set_yscale("log")
            spans = math.log10(shown.max() / shown.min())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if spans < 2.5 else (1,), numticks=6))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(_tick))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(_step_tick))
        axes.set_xlabel("step")
        _finish(axes)

    scale = " (logarithmic scale)" if log else ""
    label = f"{title} over steps{scale}: {_described(lines, levels)}"
    return sheet.draw(paint, kind=f"steps{scale}", label=label, size=size)


def spectrum_figure(sheet: Sheet, title: str, spectra: dict[str, tuple[np.ndarray, int]], points: int) -> str:
    """Spectra, each relative to its largest value, over the share of the dimensions.

    Args:
      sheet: the page's figures.
      title: for the description.
      spectra: label to the eigenvalues `[d]`, descending, and the place in the order of colours.
      points: the most points of a curve.
    """
    lines = []
    for label, (values, index) in spectra.items():
        kept = evenly(len(values), points)
        share = 100 * (np.arange(len(values)) + 1) / len(values)
        lines.append(Line(label, share[kept], relative(values)[kept], index))

    def paint(axes: Any) -> None:
        axes.axhline(math.log10(COLLAPSED), color="#777777", linewidth=1, linestyle=(0, (1, 2)))
        for item in lines:
            _plot(axes, item, marker="o" if len(item.x) <= 32 else None)
        axes.set(xlim=(0, 102), ylim=(math.log10(FLOOR) - 0.3, 0.3), xlabel="rank, % of the dimensions")
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(_power))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        _finish(axes)

    counts = ", ".join(f"{label}: {collapsed(values)} of {len(values)}" for label, (values, _) in spectra.items())
    label = f"{title}; directions at or below 1e-6 of the largest: {counts}"
    return sheet.draw(paint, kind="spectrum", label=label, size=SIZE)


def heat_map(sheet: Sheet, part: str, looks: Sequence[Look], *, most_steps: int, most_ranks: int) -> str:
    """The spectrum of a part over time as an image: step to the right, rank upwards, log10 of the share as colour.

    Args:
      sheet: the page's figures.
      part: "r" or "z".
      looks: two or more, as `mappable` returns them.
      most_steps, most_ranks: the most pixels in each direction.
    """
    found = [(look.step, relative(look.spectra[part])) for look in looks]
    dim = len(found[0][1])
    steps = np.array([step for step, _ in found])
    wanted = np.linspace(steps[0], steps[-1], min(most_steps, len(steps)))
    columns = [int(np.abs(steps - step).argmin()) for step in wanted]
    ranks = evenly(dim, most_ranks)
    image = np.stack([found[i][1][ranks] for i in columns], axis=1)  # [ranks, steps]
    alive = np.array([(values > math.log10(COLLAPSED)).sum() for _, values in found])
    colours = ListedColormap(palette())

    def paint(axes: Any) -> None:
        axes.imshow(
            image, origin="lower", aspect="auto", interpolation="none", cmap=colours, vmin=math.log10(FLOOR), vmax=0,
            extent=(steps[0], steps[-1], 0.5, dim + 0.5),
        )  # fmt: skip
        kept = thin(alive.astype(float), 2 * most_steps)
        axes.plot(steps[kept], np.minimum(alive[kept] + 0.5, dim + 0.4), color="#D55E00", linewidth=1.6)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(_step_tick))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        for spine in axes.spines.values():
            spine.set_visible(False)

    label = (
        f"Heat map of the spectrum of {part}: {alive[0]} of {dim} directions above 1e-6 of the largest at step "
        f"{steps[0]}, {alive[-1]} at step {steps[-1]}"
    )
    return sheet.draw(paint, kind="map", label=label, size=WIDE)


def mappable(looks: Sequence[Look], part: str) -> list[Look]:
    """The looks at a part with as many dimensions as the last one, where there are two or more; else none."""
    found = [look for look in looks if part in look.spectra]
    found = [look for look in found if len(look.spectra[part]) == len(found[-1].spectra[part])]
    return found if len(found) > 1 else []


def palette() -> list[str]:
    """The colours of the heat map, from the smallest eigenvalues to the largest."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(shade) for shade in colormaps["viridis"](np.linspace(0, 1, LEVELS))]


def relative(values: np.ndarray) -> np.ndarray:
    """log10 of eigenvalues as shares of the largest, at least that of `FLOOR`."""
    largest = max(float(values[0]), np.finfo(np.float64).tiny)
    return np.log10(np.maximum(values / largest, FLOOR))


def collapsed(values: np.ndarray) -> int:
    """How many eigenvalues are at or below `COLLAPSED` of the largest."""
    return int((values <= COLLAPSED * values[0]).sum())


def _plot(axes: Any, item: Line, *, marker: str | None) -> None:
    shade, dashes = colour(item.index)
    style: Any = (0, tuple(map(float, dashes.split()))) if dashes else "-"
    axes.plot(item.x, item.y, color=shade, linestyle=style, linewidth=1.4, marker=marker, markersize=2)


def _finish(axes: Any) -> None:
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)


def _described(lines: Sequence[Line], levels: Sequence[Level]) -> str:
    ends = [f"{item.label} from {item.y[0]:.4g} to {item.y[-1]:.4g}" for item in lines]
    return ", ".join(ends + [f"{level.label} {level.value:.4g}" for level in levels])


def _tick(value: float, _: Any = None) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        mantissa, _, exponent = f"{value:.4e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")
    if abs(value) >= 10_000:
        return f"{value / 1000:.6g}k"
    return f"{value:.6g}".replace("-", "−")


def _step_tick(value: float, _: Any = None) -> str:
    return _tick(value) if abs(value) >= 1 else "0"


def _power(value: float, _: Any = None) -> str:
    return "1" if value == 0 else f"1e{value:.0f}".replace("-", "−")
