"""The tables and the figure of `experiments.forecast`."""

import functools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dcjax.collapse.plot import COLOURS, save
from experiments.forecast_images import FORECASTS, OUTCOMES, PROJECTORS, rank_correlation
from experiments.grid import markdown, mean_of

PLOTTED = ("rates", "lasting", "noise share")  # ways to name the directions of the toy models
SHOWN = ("named", "precision", "recall")
TABLE = ("r < 1e-4", "r < 1e-2", "rank of r", "rank of z")


def text(record: dict[str, Any]) -> str:
    """The Markdown of both parts, as far as they were run."""
    parts = []
    if "toy" in record:
        parts.append(_toy_table(record["toy"]["rows"]))
    if "images" in record:
        parts += [_outcome_table(record["images"]["runs"]), _image_tables(record["images"]["runs"])]
    return "\n\n".join(parts)


def _toy_table(rows: list[dict[str, Any]]) -> str:
    namings = list(dict.fromkeys(row["naming"] for row in rows))
    found: dict[tuple[str, float], dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["setting"], row["amplitude"]), {})[row["naming"]] = row
    lines = []
    for (setting, amplitude), of in found.items():
        cells = [
            "; ".join(_cell(of[naming][name], digits=1 if name == "named" else 2) for name in SHOWN)
            if naming in of
            else None
            for naming in namings
        ]
        lines.append([setting, f"{amplitude:g}", _cell(next(iter(of.values()))["collapsed"]), *cells])
    return (
        "Linear toy, 16 coordinates of variance 1/2, noise of variance k on 8 of them. Collapsed directions of W, and "
        "for each way to name them how many are named, precision and recall: means over the seeds in which a value is "
        "defined, ± half-width of the 95 % interval (Student's t).\n\n"
        + markdown(["loss, noise", "k", "collapsed", *namings], lines)
    )


def _outcome_table(runs: list[dict[str, Any]]) -> str:
    rows = []
    for projector in PROJECTORS:
        for amplitude in sorted({run["amplitude"] for run in runs}):
            chosen = [run for run in runs if (run["projector"], run["amplitude"]) == (projector, amplitude)]
            if chosen:
                values = [_cell(_mean([abs(run["outcomes"][name]) for run in chosen])) for name in OUTCOMES]
                rows.append([projector, f"{amplitude:g}", len(chosen), *values])
    return "Final collapse on the digits, by augmentation amplitude.\n\n" + markdown(
        ["projector", "amplitude", "runs", *OUTCOMES], rows
    )


def _image_tables(runs: list[dict[str, Any]]) -> str:
    steps = sorted({int(step) for run in runs for step in run["forecasts"]})
    tables = []
    for projector in PROJECTORS:
        chosen = [run for run in runs if run["projector"] == projector]
        if len(chosen) < 3:
            continue
        shown = [name for name in TABLE if projector != "none" or "z" not in name]
        rows = []
        for name in FORECASTS:
            for step in steps if name != "baseline: amplitude" else steps[:1]:
                predicted = [run["forecasts"][str(step)][name] for run in chosen]
                cells = [_rho(rank_correlation(predicted, [run["outcomes"][of] for run in chosen])) for of in shown]
                rows.append([name, step, *cells])
        tables.append(
            f"Projector {projector}, {len(chosen)} runs: Spearman's rho of forecast and final collapse, with its 95 % "
            "interval (bootstrap over runs).\n\n" + markdown(["forecast", "step", *shown], rows)
        )
    return "\n\n".join(tables)


def draw(record: dict[str, Any], path: pathlib.Path) -> None:
    """Draws how many directions of the toy models are named and collapse, and two forecasts against the rank of r."""
    panels = []
    if "toy" in record:
        rows = record["toy"]["rows"]
        settings = dict.fromkeys(row["setting"] for row in rows)
        panels += [functools.partial(_draw_toy, rows=rows, setting=setting) for setting in settings]
    if "images" in record:
        runs = record["images"]["runs"]
        panels += [
            functools.partial(_draw_images, runs=runs, name=name)
            for name in ("negative rates", "baseline: noise share")
        ]
    save(panels, path)


def _draw_toy(axes: Any, *, rows: list[dict[str, Any]], setting: str) -> None:
    of = {naming: [row for row in rows if (row["setting"], row["naming"]) == (setting, naming)] for naming in PLOTTED}
    amplitudes = [row["amplitude"] for row in of["rates"]]
    axes.plot(amplitudes, [row["collapsed"][0] for row in of["rates"]], color="#BBBBBB", linewidth=5, label="collapsed")
    for colour, naming, style in zip(COLOURS, PLOTTED, ("-", "--", ":"), strict=False):
        if of[naming]:
            named = [row["named"][0] for row in of[naming]]
            axes.plot(amplitudes, named, style, color=colour, marker="o", markersize=3, linewidth=1.2, label=naming)
    axes.set_ylim(-0.4, 8.8)
    axes.set_xlabel("variance k of the noise on 8 of 16 coordinates")
    axes.set_ylabel("directions: collapsed, named by")
    axes.set_title(setting, fontsize=9)
    axes.legend(fontsize=7)


def _draw_images(axes: Any, *, runs: list[dict[str, Any]], name: str) -> None:
    for colour, projector in zip(COLOURS, PROJECTORS, strict=False):
        chosen = [run for run in runs if run["projector"] == projector]
        x = [run["forecasts"]["20"][name] for run in chosen]
        y = [-run["outcomes"]["rank of r"] for run in chosen]
        sizes = 10 + 40 * np.array([run["amplitude"] for run in chosen])
        axes.scatter(x, y, s=sizes, color=colour, alpha=0.7, linewidths=0, label=projector)
    axes.set_xlabel(f"{name} at step 20")
    axes.set_ylabel("final effective rank of r")
    axes.set_title("digits; larger dots: stronger augmentation", fontsize=9)
    axes.legend(fontsize=8)


def _mean(values: Sequence[float]) -> list[float | None]:
    found = mean_of(values)
    return [found.mean, found.half_width if found.count > 1 else None]


def _cell(value: Sequence[float | None] | None, *, digits: int = 1) -> str:
    """A mean with its half-width, if it has one; a dash where it is not defined."""
    if value is None:
        return "-"
    return " ± ".join(f"{part:.{digits}f}" for part in value if part is not None)


def _rho(found: Sequence[float]) -> str:
    rho, low, high = found
    return f"{rho:.2f} ({low:.2f} to {high:.2f})" if math.isfinite(rho) else "-"
