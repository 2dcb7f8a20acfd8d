"""The report on one embedding: shape, verdict, measures, local spectra; as text and as JSON."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dcjax.collapse.local import LocalSpectra, local_spectra
from dcjax.collapse.metrics import METRICS, Interval, chosen_names, measure
from dcjax.collapse.quantities import Quantities
from dcjax.collapse.ranks import TOLERANCE
from dcjax.collapse.verdict import Verdict, judge
from dcjax.collapse.weights import Alignment, MatrixReport

TITLES = {
    "none": "no collapse found",
    "complete": "complete collapse",
    "dimensional": "dimensional collapse",
    "undetermined": "undetermined",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """What the command says about an embedding.

    Attributes:
      name: of the file or of the embedding.
      shape: the rows that were read and their columns.
      dtype: of the entries as stored.
      skipped: rows with NaN or inf that were left out.
      sampled: the rows of the sample for measures of pairs of rows.
      eigenvalues: `[d]`, descending.
      verdict: of `judge`.
      measures: of `metrics`; `collapsed_dimensions` is the verdict's number.
      intervals, local: None unless asked for.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    skipped: int
    sampled: int
    eigenvalues: np.ndarray
    verdict: Verdict
    measures: Mapping[str, float]
    intervals: Mapping[str, Interval] | None = None
    local: LocalSpectra | None = None


def make_report(
    name: str,
    quantities: Quantities,
    *,
    views: Quantities | None = None,
    dtype: str,
    tolerance: float = TOLERANCE,
    intervals: Mapping[str, Interval] | None = None,
    cells: int = 0,
) -> Report:
    """The report on an embedding.

    Args:
      name: for its title.
      quantities: of the embedding.
      views: of pairs of views, if these are not the rows of `quantities` itself.
      dtype: of the entries as stored.
      tolerance: see `judge`.
      intervals: of the measures, if they were computed.
      cells: of the local spectra; 0 for none.

    Raises:
      ValueError: as `judge` and `local_spectra`.
    """
    pairs = views if views is not None else quantities if quantities.paired else None
    measures = measure(quantities, chosen_names(None, paired=False, labelled=quantities.labelled))
    if pairs is not None:
        measures |= measure(pairs, [name for name, metric in METRICS.items() if metric.needs == "views"])
    verdict = judge(quantities, tolerance=tolerance, views=pairs)
    if verdict.collapsed is not None:  # also those that hide below the rounding of the entries
        measures["collapsed_dimensions"] = float(verdict.collapsed)
    return Report(
        name=name,
        shape=(quantities.count + quantities.skipped, quantities.dim),
        dtype=dtype,
        skipped=quantities.skipped,
        sampled=len(quantities.rows),
        eigenvalues=quantities.eigenvalues,
        verdict=verdict,
        measures=measures,
        intervals=intervals,
        local=local_spectra(quantities, cells=cells) if cells else None,
    )


def as_text(report: Report) -> str:
    """The report for a terminal."""
    verdict = report.verdict
    rows, columns = report.shape
    stored = "" if verdict.stored == report.dtype else f", with the digits of {verdict.stored}"
    lines = [f"{report.name}: {rows:,} rows of {columns:,}, {report.dtype}{stored}"]
    if verdict.kind == "complete" and report.eigenvalues.any():
        lines.append("  the rows differ by rounding alone, so the ranks below are those of noise")
    if report.skipped:
        lines.append(f"  {report.skipped:,} rows with NaN or inf were left out")
    lines.append(f"  verdict: {TITLES[verdict.kind]}; {verdict.reason}")
    if verdict.next:
        lines.append(f"  next: {verdict.next}")
    lines += ["", *_table(report)]
    if report.local is not None:
        local = report.local
        cells = f"{len(local.sizes)} k-means cells of {local.sizes.min():,} to {local.sizes.max():,} rows"
        lines += ["", f"  local: effective rank {local.rank:.4g} within {cells}; "]
        lines[-1] += f"{local.isotropic_rank:.4g} for isotropic rows of the same number and dimension"
    return "\n".join(lines)


def _table(report: Report) -> list[str]:
    interval = ["95 % interval"] if report.intervals else []
    header = ["measure", "value", *interval, "range", "better", "if few rows", ""]
    rows = []
    for name, value in report.measures.items():
        metric = METRICS[name]
        sampled = report.sampled < report.shape[0] - report.skipped
        row = [name, f"{value:.4g}"]
        if report.intervals:
            found = report.intervals.get(name)
            row.append(f"{found.low:.4g} to {found.high:.4g}" if found else "")
        note = f"of {report.sampled:,} rows" if metric.of_sample and sampled else ""
        rows.append([*row, metric.range, metric.better, metric.by_count, note])
    return [*aligned([header, *rows]), "  dcjax collapse --measures defines them, and says how few rows bias them"]


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON can hold it."""
    record: dict[str, Any] = {
        "name": report.name,
        "rows": report.shape[0],
        "columns": report.shape[1],
        "dtype": report.dtype,
        "skipped": report.skipped,
        "sampled": report.sampled,
        "verdict": dataclasses.asdict(report.verdict),
        "metrics": dict(report.measures),
        "eigenvalues": [float(f"{value:.6g}") for value in report.eigenvalues],
    }
    if report.intervals is not None:
        record["intervals"] = {name: dataclasses.asdict(found) for name, found in report.intervals.items()}
    if report.local is not None:
        record["local"] = {
            "rank": report.local.rank,
            "isotropic_rank": report.local.isotropic_rank,
            "sizes": report.local.sizes.tolist(),
        }
    return record


def weights_text(name: str, reports: list[MatrixReport], pairs: list[Alignment]) -> str:
    """The matrices of a checkpoint for a terminal."""
    rows = [
        [
            report.name,
            " x ".join(map(str, report.shape)),
            f"{report.effective_rank:.4g}",
            f"{report.stable_rank:.4g}",
            f"{report.singular_values[-1] / report.singular_values[0]:.2g}" if report.singular_values[0] else "0",
            f"{report.collapsed}",
        ]
        for report in reports
    ]
    header = ["matrix", "shape", "effective rank", "stable rank", "s_min / s_max", "below 1e-3 of s_max"]
    lines = [f"{name}: {len(reports)} matrices", "", *aligned([header, *rows])]
    if pairs:
        found = [
            [" -> ".join(pair.names), f"{pair.mean:.3f}", f"{pair.least:.3f}", _optional(pair.dominant)]
            for pair in pairs
        ]
        header = ["alignment |V2^T U1|", "mean", "least", "where s^2 > 10 |C|"]
        lines += ["", *aligned([header, *found])]
    return "\n".join(lines)


def weights_json(name: str, reports: list[MatrixReport], pairs: list[Alignment]) -> dict[str, Any]:
    """The matrices of a checkpoint as JSON can hold them."""
    matrices = [dataclasses.asdict(report) | {"singular_values": report.singular_values.tolist()} for report in reports]
    return {"name": name, "matrices": matrices, "alignments": [dataclasses.asdict(pair) for pair in pairs]}


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines with aligned columns, indented by two."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _optional(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
