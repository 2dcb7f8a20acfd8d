"""The section that compares several runs: their curves in the same figures, and their last values side by side."""

from collections.abc import Sequence

from dcjax.report import html, measures
from dcjax.report.escape import text
from dcjax.report.figures import Level, line, spectrum_figure, steps_figure
from dcjax.report.finding import Finding
from dcjax.report.record import PARTS, Run
from dcjax.report.sections import Detail
from dcjax.report.svg import Sheet
from dcjax.schema import flatten


def comparison(
    sheet: Sheet, runs: Sequence[Run], names: Sequence[str], found: Sequence[Finding], detail: Detail
) -> str:
    """The section; the arguments are parallel sequences, as for `run_section`."""
    links = "".join(
        f'<li><a href="#run-{i + 1}">{text(name, 80)}</a>: {text(words.short)}</li>'
        for i, (name, words) in enumerate(zip(names, found, strict=True))
    )
    legend = html.legend((name, i) for i, name in enumerate(names))
    figures, left = _figures(sheet, runs, names, detail)
    more = html.paragraph(f"{left} more measures are not drawn.", "soft") if left else ""
    return (
        f'<section id="comparison"><h2>Comparison</h2><ul class="runs">{links}</ul>'
        f"<h3>Curves of all runs</h3>{legend}{html.grid(figures)}{legend}{more}"
        f"<h3>Last values</h3>{_last_values(runs, names, found)}"
        f"<h3>Config keys that differ</h3>{_keys(runs, names)}</section>"
    )


def _figures(sheet: Sheet, runs: Sequence[Run], names: Sequence[str], detail: Detail) -> tuple[list[str], int]:
    """The figures, and how many measures were left out."""
    points = detail.points
    lines = [line(name, run.training["loss"], i, points) for i, (name, run) in enumerate(zip(names, runs, strict=True))]
    chances = {run.chance: i for i, run in reversed(list(enumerate(runs))) if run.chance is not None}
    levels = [
        Level(f"chance line of {names[i]}", value, None if len(chances) == 1 else i) for value, i in chances.items()
    ]
    about = "dotted: the chance line" + ("" if len(chances) == 1 else " of each run, in its colour")
    figures = [html.figure("loss", about, steps_figure(sheet, "loss", lines, levels=levels))]
    for part in PARTS:
        spectra = {
            name: (run.final[part], i)
            for i, (name, run) in enumerate(zip(names, runs, strict=True))
            if part in run.final
        }
        if spectra:
            title = f"last spectrum of {part}"
            figures.append(html.figure(title, "share of the largest", spectrum_figure(sheet, title, spectra, points)))
    panels = measures.comparison_panels(list(runs))
    for (title, about), curves in list(panels.items())[: detail.compared]:
        overlaid = [line(names[i], curve, i, points) for i, curve in curves.items()]
        figures.append(html.figure(title, about, steps_figure(sheet, title, overlaid)))
    return figures, max(len(panels) - detail.compared, 0)


def _last_values(runs: Sequence[Run], names: Sequence[str], found: Sequence[Finding]) -> str:
    values = [
        {f"verdict on {part}": kind for part, kind in words.parts.items()} | measures.last_values(run)
        for run, words in zip(runs, found, strict=True)
    ]
    keys = list({key: None for column in values for key in column})[: 4 * measures.MAX_PANELS]
    rows = [[text(key, 60), *(text(column.get(key, "–")) for column in values)] for key in keys]
    return _table(names, rows)


def _keys(runs: Sequence[Run], names: Sequence[str]) -> str:
    configs = [flatten(run.config) for run in runs]
    keys = [key for key in configs[0] if any(config[key] != configs[0][key] for config in configs)]
    if not keys:
        return "<p>None: the runs have the same config.</p>"
    rows = [[f"<code>{text(key)}</code>", *(html.value_text(config[key]) for config in configs)] for key in keys]
    return _table(names, rows)


def _table(names: Sequence[str], rows: list[list[str]]) -> str:
    header = ["", *(text(name, 40) for name in names)]
    return html.table(header, rows, numbers=range(1, len(header)), kind="compare")
