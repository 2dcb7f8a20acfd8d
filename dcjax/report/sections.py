"""The section of one run."""

import dataclasses
import json
import math
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from dcjax.report import html, measures
from dcjax.report.escape import text
from dcjax.report.figures import SIZE, WIDE, Level, evenly, heat_map, line, mappable, spectrum_figure, steps_figure
from dcjax.report.finding import Finding
from dcjax.report.lines import Curve
from dcjax.report.record import PARTS, Run
from dcjax.report.svg import Sheet
from dcjax.schema import KEYS

MAX_WARNINGS, MAX_ROWS = 30, 80


@dataclasses.dataclass(frozen=True)
class Detail:
    """How finely the runs of a page are drawn, so that it stays small.

    Attributes:
      points: of a curve.
      looks: spectra over time, as small figures.
      map_steps, map_ranks: pixels of a heat map.
      panels: whether each run's section draws the panels that the comparison draws too.
      compared: panels of the comparison.
    """

    points: int
    looks: int
    map_steps: int
    map_ranks: int
    panels: bool
    compared: int = measures.MAX_PANELS


def detail_for(runs: int) -> Detail:
    """The detail for a number of runs on one page."""
    if runs <= 2:
        return Detail(points=240, looks=7, map_steps=80, map_ranks=96, panels=True)
    if runs <= 4:
        return Detail(points=180, looks=4, map_steps=64, map_ranks=80, panels=False)
    return Detail(points=600 // runs, looks=2, map_steps=40, map_ranks=48, panels=False, compared=14)


def run_section(sheet: Sheet, run: Run, name: str, found: Finding, detail: Detail, *, index: int) -> str:
    """The section of a run, but for its raw data.

    Args:
      sheet: the page's figures.
      run: the run.
      name: its name on the page.
      found: the verdict on it.
      detail: how finely it is drawn.
      index: its place on the page, for the section's id.
    """
    parts = [
        f'<section id="run-{index + 1}"><h2>{text(name, 80)}</h2>',
        verdict(found),
        _reproduce(run),
        _training(sheet, run, detail),
        _measures(sheet, run, detail),
        _spectra(sheet, run, detail),
        _probe(run),
        _warnings(run),
        _notes(run),
    ]
    return "\n".join(parts)


def verdict(found: Finding) -> str:
    """The verdict in a card."""
    lines = [f'<div class="verdict {found.tone}">{html.paragraph(found.headline)}']
    lines += map(html.paragraph, found.reasons)
    if found.next:
        lines += ["<p><strong>Next:</strong></p><ul>", *(f"<li>{text(line)}</li>" for line in found.next), "</ul>"]
    return "".join([*lines, "</div>"])


def _reproduce(run: Run) -> str:
    again = f"runs/{pathlib.Path(run.folder).absolute().name}-again"  # in its own folder the run would resume
    if run.command:
        code, why = f"{run.command.text} --workdir={shlex.quote(again)}", ""
        base = run.command.config
        same = f"The config is {base} as it stands."
    else:
        code = (
            "import pathlib\nfrom dcjax.config import read_config\nfrom dcjax.pretrain import pretrain\n\n"
            f"pretrain(read_config(pathlib.Path({json.dumps(run.folder)})), {json.dumps(again)})"
        )
        why = (
            "<p>The run was begun from Python, or by a version that did not record its command; this trains its config "
            "again:</p>"
        )
        base, same = "the defaults", "The config is that of the defaults."
    intro = f"<h3>Reproduce</h3>{why}<pre><code>{text(code, 4000)}</code></pre>"
    changed = run.differences
    if not changed:
        return intro + html.paragraph(same)
    rows = [
        [f"<code>{text(key, 80)}</code>", html.value_text(old), html.value_text(new), text(_help(key))]
        for key, (old, new) in list(changed.items())[:MAX_ROWS]
    ]
    found = html.table(["key", f"in {text(base, 60)}", "in this run", "meaning"], rows)
    count = f"{len(changed)} key{'s differ' if len(changed) > 1 else ' differs'} from {base}"
    # Without a command the list is long, because the defaults are the paper's recipe.
    opened = " open" if len(changed) <= 12 else ""
    return intro + f"<details{opened}><summary>{text(count)}</summary>{found}</details>"


def _help(key: str) -> str:
    return KEYS[key].rule.help if key in KEYS else ""


def panel(
    sheet: Sheet,
    title: str,
    about: str,
    curves: Mapping[str, Curve],
    points: int,
    *,
    levels: tuple[Level, ...] = (),
    norms: bool = False,
    size: tuple[float, float] = SIZE,
) -> str:
    """A figure of a few curves over steps, with a legend if there is more than one; arguments as `steps_figure`."""
    shown = list(curves.items())[: measures.MAX_CURVES]
    order = {part: index for index, part in enumerate(PARTS)} if set(curves) <= set(PARTS) else {}
    lines = [line(label, curve, order.get(label, i), points) for i, (label, curve) in enumerate(shown)]
    entries: list[tuple[str, int | None]] = [(item.label, item.index) for item in lines]
    entries += [(level.label, level.index) for level in levels]
    names = html.legend(entries) if len(entries) > 1 or order else ""
    if len(curves) > len(shown):
        names += html.paragraph(f"{len(curves) - len(shown)} more curves are not drawn.", "soft")
    return html.figure(title, about, steps_figure(sheet, title, lines, levels=levels, norms=norms, size=size), names)


def chance_level(chance: float) -> Level:
    """The chance line of a loss."""
    return Level(f"chance, ln({round(math.exp(min(chance, 30))):,}) = {chance:.3f}", chance)


def _training(sheet: Sheet, run: Run, detail: Detail) -> str:
    levels = () if run.chance is None else (chance_level(run.chance),)
    about = "a run at its chance line learns nothing" if levels else ""
    wide: dict[str, Any] = {"size": WIDE}
    figures = [panel(sheet, "loss", about, {"loss": run.training["loss"]}, detail.points, levels=levels, **wide)]
    gradients = measures.gradient_curves(run)
    if gradients:
        about = "by part of the network" if len(gradients) > 1 else "of all parameters; the log has none by part"
        figures.append(panel(sheet, "gradient norm", about, gradients, detail.points, norms=True, **wide))
    rate = run.training.get("images_per_second")
    if rate is not None:
        about = f"images a second; median {np.median(rate.values):,.4g}"
        figures.append(panel(sheet, "throughput", about, {"images per second": rate}, detail.points, **wide))
    panels = list(measures.training_panels(run).items())[: measures.MAX_PANELS] if detail.panels else []
    others = html.grid([panel(sheet, *names, curves, detail.points) for names, curves in panels])
    return f"<h3>Loss, gradient norms and throughput</h3>{html.grid(figures, wide=True)}{others}"


def _measures(sheet: Sheet, run: Run, detail: Detail) -> str:
    panels = measures.monitor_panels(run)
    if not panels:
        return "<h3>Measures over time</h3><p>The log has no lines of the monitor.</p>"
    if not detail.panels:
        return '<h3>Measures over time</h3><p>The <a href="#comparison">comparison</a> draws them for all runs.</p>'
    figures = [
        panel(sheet, *names, curves, detail.points) for names, curves in list(panels.items())[: measures.MAX_PANELS]
    ]
    left = len(panels) - len(figures)
    if "loss" in run.monitor:
        chance = run.monitor.get("loss_chance")
        levels = () if chance is None else (chance_level(chance.last),)
        about = "without an effect on the training"
        curves = {"loss of the looks": run.monitor["loss"]}
        figures.append(panel(sheet, "loss of the looks", about, curves, detail.points, levels=levels))
    more = html.paragraph(f"{left} more measures are not drawn.", "soft") if left > 0 else ""
    return f"<h3>Measures over time</h3>{html.grid(figures)}{more}"


def _spectra(sheet: Sheet, run: Run, detail: Detail) -> str:
    if not run.final:
        return (
            "<h3>Spectra</h3><p>The run has written no spectra yet; "
            f"<code>dcjax collapse {text(run.folder)}</code> computes them from its last checkpoint.</p>"
        )
    chosen = [run.looks[i] for i in evenly(len(run.looks), detail.looks)]
    shown: list[tuple[str, dict[str, np.ndarray]]] = [(f"step {look.step:,}", look.spectra) for look in chosen]
    if run.ended:
        shown.append(("end of the run", run.final))
    figures = []
    for title, spectra in shown:
        curves = {part: (values, PARTS.index(part)) for part, values in spectra.items()}
        svg = spectrum_figure(sheet, f"Spectra at {title}", curves, min(detail.points, 120))
        figures.append(html.figure(title, "", svg))
    parts = html.legend((f"{part} ({len(values)}-d)", PARTS.index(part)) for part, values in run.final.items())
    thinned = f" {len(chosen)} of {len(run.looks)} looks are drawn." if len(chosen) < len(run.looks) else ""
    maps = [
        html.figure(
            f"{part} over time",
            "rank upwards; the line counts the directions above 1e-6",
            heat_map(sheet, part, looks, most_steps=detail.map_steps, most_ranks=detail.map_ranks),
        )
        for part in PARTS
        if (looks := mappable(run.looks, part))
    ]
    key = "<p>The same spectra as heat maps; the colour is the share of the largest eigenvalue:</p>" + html.colour_key()
    return (
        "<h3>Spectra over time</h3><p>Eigenvalues of the covariance of rows of norm 1, as shares of the largest. "
        f"Directions at or below the dotted line, a millionth, count as collapsed.{thinned}</p>"
        f"{parts}{html.grid(figures)}{key + html.grid(maps, wide=True) if maps else ''}"
    )


def _probe(run: Run) -> str:
    if not run.probe or not run.probe.scores:
        return (
            "<h3>Probe</h3><p>The run has not been probed; "
            f"<code>dcjax probe {text(run.folder)}</code> scores its frozen encoder.</p>"
        )
    probe = run.probe
    columns = {
        "few_label": f"{probe.labels_per_class} labels per class", "top1": "all labels", "best_top1": "best epoch",
        "top5": "top-5", "knn": "k-NN", "effective_rank": "effective rank",
    }  # fmt: skip
    used = [measure for measure in columns if any(measure in row for row in probe.scores.values())]

    def cell(row: Mapping[str, float], measure: str) -> str:
        if measure not in row:
            return "&ndash;"
        if measure == "effective_rank":
            return f"{row[measure]:.1f}"
        spread = (
            f" &plusmn; {100 * row['few_label_std']:.1f}" if measure == "few_label" and "few_label_std" in row else ""
        )
        return f"{100 * row[measure]:.1f}{spread}"

    rows = []
    for name, row in list(probe.scores.items())[:MAX_ROWS]:
        label = text(name, 60) + (" (not converged)" if name in probe.unconverged else "")
        rows.append([label, *(cell(row, measure) for measure in used)])
    found = html.table(["frozen representation", *(columns[m] for m in used)], rows, numbers=range(1, len(used) + 1))
    at = "" if probe.step is None else f" at step {probe.step:,}"
    return f"<h3>Probe</h3><p>Top-1 accuracy on the test images{at}, in %, unless a column says otherwise.</p>{found}"


def _warnings(run: Run) -> str:
    if not run.warnings:
        none = "The monitor gave none." if run.monitor else "The log has no lines of the monitor."
        return f"<h3>Warnings</h3><p>{none}</p>"
    rows = [[text(steps_words(steps)), text(words)] for words, steps in list(run.warnings.items())[:MAX_WARNINGS]]
    left = len(run.warnings) - len(rows)
    more = html.paragraph(f"{left} more warnings are not listed.", "soft") if left > 0 else ""
    return f"<h3>Warnings</h3>{html.table(['steps', 'warning'], rows)}{more}"


def steps_words(steps: list[int]) -> str:
    """The steps of a warning in words."""
    if len(steps) <= 3:
        return ", ".join(f"{step:,}" for step in steps)
    return f"{steps[0]:,} to {steps[-1]:,} ({len(steps)} times)"


def _notes(run: Run) -> str:
    if not run.notes:
        return ""
    return f"<h3>Notes</h3><ul>{''.join(f'<li>{text(note)}</li>' for note in run.notes)}</ul>"


def raw_data(run: Run, most: int) -> str:
    """The run's files as JSON, with as many lines of its metrics as `most` characters hold, evenly spaced."""
    values: dict[str, Any] = {"config": dataclasses.asdict(run.config)}
    if run.command:
        values["command"] = dataclasses.asdict(run.command)
    if run.probe:
        values["probe"] = dataclasses.asdict(run.probe)
    head, rows = json.dumps(values, default=str), [json.dumps(row) for row in run.rows]
    kept = len(rows)
    while True:
        found = text("\n".join([head, *(rows[i] for i in evenly(len(rows), kept))]), 10**9)
        if len(found) <= most or not kept:
            break
        kept = min(kept - 1, int(kept * most / len(found)))
    if len(found) > most:
        found = text(head, max(most // 8, 0))  # a character has at most 8 after it is escaped
    thinned = f"{kept} of {len(rows)}" if kept < len(rows) else "all"
    words = f"Config, command, probe, {thinned} lines of metrics.jsonl"
    return f'<h3>Raw data</h3><details><summary>{words}</summary><pre class="raw" tabindex="0">{found}</pre></details>'
