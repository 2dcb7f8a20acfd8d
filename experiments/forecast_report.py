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

PLOTTED = ("rates", "lasting", "noise share")


def text(record: dict[str, Any]) -> str:
    """The Markdown of both parts, as far as they were run."""
    parts = []
    if "toy" in record:
        parts.append(_toy_table(record["toy"]))
    if "images" in record:
        parts += [_outcome_table(record["images"]["runs"]), _image_tables(record["images"]["runs"])]
    return "\n\n".join(parts)


def toy_rows(toy: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(setting, naming) to a summary of each amplitude: means and half-widths of 95 % intervals over seeds.

    Precision and recall are averaged over the seeds in which they are defined; `None` where that is none.
    """
    groups: dict[tuple[str, str, float], list[Sequence[Any]]] = {}
    for setting, naming, amplitude, *rest in toy["cells"]:
        groups.setdefault((setting, naming, amplitude), []).append(rest)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for (setting, naming, amplitude), cells in groups.items():
        _, named, collapsed, precision, recall = zip(*cells, strict=True)
        row: dict[str, Any] = {"amplitude": amplitude, "seeds": len(cells)}
        for name, values in (("named", named), ("collapsed", collapsed), ("precision", precision), ("recall", recall)):
            defined = [value for value in values if value is not None]
            row[name] = mean_of(defined) if defined else None
        found.setdefault((setting, naming), []).append(row)
    return found


def _toy_table(toy: dict[str, Any]) -> str:
    rows = [
        [setting, f"{item['amplitude']:g}", naming, *(_cell(item[name]) for name in ("collapsed", "named"))]
        + [_cell(item[name], digits=2) for name in ("precision", "recall")]
        for (setting, naming), items in toy_rows(toy).items()
        for item in items
    ]
    rows.sort(key=lambda row: (row[0], float(row[1])))
    header = ["loss, noise", "variance k", "named by", "collapsed of 16", "named", "precision", "recall"]
    return (
        "Linear toy, Var x = 1/2, noise of variance k on 8 of 16 coordinates. Means over the seeds in which a value is "
        "defined, ± half-width of the 95 % interval (Student's t).\n\n" + markdown(header, rows)
    )


def _outcome_table(runs: list[dict[str, Any]]) -> str:
    rows = []
    for projector in PROJECTORS:
        for amplitude in sorted({run["amplitude"] for run in runs}):
            chosen = [run for run in runs if (run["projector"], run["amplitude"]) == (projector, amplitude)]
            if chosen:
                values = [_cell(mean_of([abs(run["outcomes"][name]) for run in chosen])) for name in OUTCOMES]
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
        shown = [name for name in OUTCOMES if projector != "none" or "z" not in name]
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
    """Draws precision (full) and recall (dotted) of the toy models, and a forecast against the rank of r."""
    panels = []
    if "toy" in record:
        rows = toy_rows(record["toy"])
        panels += [functools.partial(_draw_toy, rows=rows, setting=s) for s in dict.fromkeys(key[0] for key in rows)]
    if "images" in record:
        runs = record["images"]["runs"]
        panels += [
            functools.partial(_draw_images, runs=runs, name=name) for name in ("negative rates", "lost directions")
        ]
    save(panels, path)


def _draw_toy(axes: Any, *, rows: dict[tuple[str, str], list[dict[str, Any]]], setting: str) -> None:
    for colour, naming in zip(COLOURS, PLOTTED, strict=False):
        for name, style in (("precision", "-"), ("recall", ":")):
            items = [item for item in rows.get((setting, naming), []) if item[name] is not None]
            if items:
                x, y = [item["amplitude"] for item in items], [item[name].mean for item in items]
                label = naming if name == "precision" else None
                axes.plot(x, y, style, color=colour, marker="o", markersize=3, linewidth=1.2, label=label)
    axes.set_ylim(-0.05, 1.05)
    axes.set_xscale("log")
    axes.set_xlabel("variance k of the noise")
    axes.set_ylabel("precision (full), recall (dotted)")
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


def _cell(value: Any, *, digits: int = 1) -> str:
    """A mean with its interval; a dash where it is not defined."""
    if value is None:
        return "-"
    half = f" ± {value.half_width:.{digits}f}" if math.isfinite(value.half_width) else ""
    return f"{value.mean:.{digits}f}{half}"


def _rho(found: Sequence[float]) -> str:
    rho, low, high = found
    return f"{rho:.2f} ({low:.2f} to {high:.2f})" if math.isfinite(rho) else "-"
