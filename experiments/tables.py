"""Scores of rows with intervals over seeds, as a table and a figure: shared by the paper's tables."""

import dataclasses
import json
import math
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dcjax.collapse.plot import COLOURS
from dcjax.runtime.files import replace_text
from dcjax.toy.statements.plot import Curve, Panel, draw_curves
from experiments.grid import (
    TOLERANCE,
    Mean,
    Results,
    collapsed,
    markdown,
    output,
    paired_difference,
    score,
    span,
    summary,
)
from experiments.scales import SCALES, row_named

STYLE: Any = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
FLOOR = 1e-8  # the lower end of a spectrum's axis; what lies below is rounding, such as that of dead channels


def score_report(
    results: Results, scale: str, folder: pathlib.Path, *, name: str, title: str, order: Sequence[str] | None = None
) -> str:
    """Writes `name` as JSON, Markdown and PNG: the scores of r for each row.

    Args:
      results: row name to the results of its seeds.
      scale: a key of `SCALES`.
      folder: where the files go.
      name: the files' name, without the scale and the suffix.
      title: a line above the table and the figure.
      order: the rows in the order in which they are shown; that of `results` if None.

    Returns:
      The Markdown text.
    """
    ordered = {row: results[row] for row in order or results if row in results}
    text = score_table(ordered, title=title, scale=scale)
    replace_text(output(folder, name, scale, "md"), text + "\n")
    replace_text(output(folder, name, scale, "json"), json.dumps(summary(ordered), indent=1) + "\n")
    bars = {row_named(row).label: score(runs, "r", "top1") for row, runs in ordered.items()}
    draw_scores(bars, output(folder, name, scale, "png"), title=title)
    return text


def score_table(results: Results, *, title: str, scale: str) -> str:
    """The scores of r as a Markdown table."""
    few = next((run["config"]["probe.labels_per_class"] for runs in results.values() for run in runs), 0)
    header = ["", "paper, ImageNet", "linear, all labels", f"linear, {few} labels/class", "k-NN", "effective rank of r"]
    header += [
        f"dimensions < {TOLERANCE:g}",
        "seeds",
        *(["linear, all labels, minus none"] if "none" in results else []),
    ]
    rows = []
    for row, runs in results.items():
        scores = [score(runs, "r", field) for field in ("top1", "few_label", "knn", "effective_rank")]
        below = span([collapsed(run["spectra"]["r_unit"]) for run in runs])
        label = row_named(row).label
        if not all(part["converged"] for run in runs for part in run["scores"].values()):
            label += " (probe not converged)"
        difference = paired_difference(runs, results["none"]) if "none" in results and row != "none" else None
        rows.append(
            [label, row_named(row).paper, *scores, below, len(runs), *([difference] if "none" in results else [])]
        )
    note = (
        f"{SCALES[scale].description}. Top-1 in % on the test images; ± is the half-width of the 95 % interval over "
        "seeds (Student's t); the difference from no projector is taken seed by seed. Dimensions: singular values of "
        f"eq. 1 (r scaled to norm 1) below {TOLERANCE:g} of the largest, of {SCALES[scale].width}."
    )
    return f"{title}\n\n{markdown(header, rows)}\n\n{note}"


def draw_scores(bars: Mapping[str, Mean | None], path: pathlib.Path, *, title: str) -> None:
    """Draws the linear accuracy of each row as a dot with its interval."""
    shown = {label: value for label, value in bars.items() if value is not None}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 0.9 + 0.28 * len(shown)), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for i, value in enumerate(shown.values()):
            half = value.half_width if math.isfinite(value.half_width) else 0
            axes.errorbar(value.mean, -i, xerr=half, fmt="o", color=COLOURS[0], markersize=4, capsize=2, linewidth=1.2)
            axes.annotate(str(value), (value.mean, -i), (0, 5), textcoords="offset points", ha="center", fontsize=7)
        axes.set_yticks([-i for i in range(len(shown))], list(shown))
        axes.set_ylim(0.7 - len(shown), 0.7)
        axes.set_xlabel("linear probe on r, all labels: top-1 (%)")
        axes.set_title(title, fontsize=8)
        axes.margins(x=0.1)
        axes.grid(axis="x", alpha=0.25, linewidth=0.5)
        figure.savefig(path, metadata={"Software": None})


def draw_spectra(curves: Sequence[Curve], path: pathlib.Path, *, title: str, scale: str) -> None:
    """Draws spectra of rows of norm 1 over the rank, each divided by its largest value."""
    drawn = [dataclasses.replace(curve, y=np.maximum(curve.y, FLOOR / 10)) for curve in curves]  # they leave the axes
    panel = Panel(
        drawn,
        "singular value rank index",
        "singular value / the largest",
        title=f"{title}, rows of norm 1\n{textwrap.fill(SCALES[scale].description, 64)}",
        floor=FLOOR,
    )
    draw_curves(path, [panel], size=(4.2, 3.0))
