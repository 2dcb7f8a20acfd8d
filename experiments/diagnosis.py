"""Embeddings whose collapse is known, and trained encoders, told apart by `dcjax.collapse`.

Claim:     the verdict finds each of Figure 1's three kinds in every precision; the measures separate encoders that
           were trained with different projectors.
Command:   python -m experiments.diagnosis                                      (the embeddings made by hand)
           python -m experiments.diagnosis --runs RUN... --data_dir=DIR         (and trained runs, grouped by projector)
Cost:      seconds; 40 s of one CPU core for a run at the laptop scale.
Look for:  the verdicts in the first table; in the second, intervals over seeds that do not overlap.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from dcjax.collapse import Quantities, Verdict, effective_rank, judge
from dcjax.collapse.plot import draw_spectra, save
from dcjax.collapse.report import as_json, make_report
from dcjax.config import read_config
from dcjax.evaluation.embeddings import embeddings_of_run
from dcjax.runtime import cli
from dcjax.runtime.files import replace_text
from experiments.grid import markdown, mean_of
from experiments.records import RESULTS, rounded

ROWS, DIM, KEPT = 2000, 64, 48
PRECISIONS = {"float32": np.float32, "float16": np.float16, "bfloat16 in float32": ml_dtypes.bfloat16}
SHOWN = (
    "effective_rank", "rankme", "participation_ratio_corrected", "alpha_req", "local_rank", "collapsed_dimensions",
    "mean_cosine", "alignment", "lidar",
)  # fmt: skip
KEPT_KEYS = ("name", "verdict", "metrics", "eigenvalues")


class Judged(NamedTuple):
    """An embedding made by hand."""

    name: str
    verdict: Verdict
    eigenvalues: np.ndarray


def made_by_hand() -> dict[str, np.ndarray]:
    """Figure 1's three kinds, `[2000, 64]` in float64, around a mean that is not zero."""
    rng = np.random.default_rng(0)
    full = rng.standard_normal((ROWS, DIM))
    mixing = rng.standard_normal((KEPT, DIM - KEPT)) / np.sqrt(KEPT)
    flat = np.concatenate([full[:, :KEPT], full[:, :KEPT] @ mixing], axis=1)
    point = rng.standard_normal(DIM) * (1 + 1e-7 * full)
    return {"no collapse": full + 1, "dimensional collapse": flat + 1, "complete collapse": point}


def judge_by_hand() -> list[Judged]:
    """The verdicts on all kinds in all precisions."""
    found = []
    for kind, z in made_by_hand().items():
        for label, dtype in PRECISIONS.items():
            stored = z.astype(dtype)
            quantities = Quantities(stored.astype(np.float32) if dtype == ml_dtypes.bfloat16 else stored)
            found.append(Judged(f"{kind}, {label}", judge(quantities), quantities.eigenvalues))
    return found


def measure_runs(folders: Sequence[pathlib.Path], data_dir: str | None) -> dict[str, list[dict[str, Any]]]:
    """The measures and the spectrum of r and of z for every run, by projector and embedding."""
    found: dict[str, list[dict[str, Any]]] = {}
    for folder in folders:
        projector = read_config(folder).projector.name
        for name, embedding in embeddings_of_run(folder, data_dir=data_dir).items():
            views = Quantities(*embedding.views)
            report = make_report(folder.name, Quantities(embedding.rows), views=views, dtype=embedding.rows.dtype.name)
            record = as_json(report)
            found.setdefault(f"{projector}: {name}", []).append({key: record[key] for key in KEPT_KEYS})
            print(f"{folder.name}: {name}", flush=True)
    return dict(sorted(found.items(), key=lambda item: item[0].split(": ")[::-1]))


def main(argv: Sequence[str]) -> None:
    flags = _parse(argv)
    write(judge_by_hand(), measure_runs(flags.runs, flags.data_dir), flags.results)


def write(reports: Sequence[Judged], runs: dict[str, list[dict[str, Any]]], folder: pathlib.Path) -> None:
    """Prints the tables, and writes them with the numbers and the figure."""
    rows = [
        [r.name, r.verdict.kind, r.verdict.collapsed, f"{effective_rank(np.sqrt(r.eigenvalues)):.1f}"] for r in reports
    ]
    text = markdown(["made by hand", "verdict", f"collapsed of {DIM}", "effective rank"], rows)
    if runs:
        text += "\n\n" + _run_table(runs) + "\n\nMeans with 95 % intervals over seeds."
    print(text)
    record = {"by_hand": {r.name: {"verdict": r.verdict.kind, "collapsed": r.verdict.collapsed} for r in reports}}
    replace_text(folder / "diagnosis.json", json.dumps(rounded(record | {"runs": runs})) + "\n")
    replace_text(folder / "diagnosis.md", text + "\n")
    panels = [lambda axes: _draw_by_hand(axes, reports)]
    for name, title in (("r", "representation r, one run of each projector"), ("z", "embedding z")):
        first = {
            key.split(":")[0]: np.array(items[0]["eigenvalues"])
            for key, items in runs.items()
            if key.endswith(f": {name}")
        }
        if first:
            panels.append(lambda axes, first=first, title=title: _draw_runs(axes, first, title))
    save(panels, folder / "diagnosis.png")


def _draw_runs(axes: Any, spectra: dict[str, np.ndarray], title: str) -> None:
    draw_spectra(axes, spectra, relative=True)
    axes.set_title(title, fontsize=9)


def _run_table(runs: dict[str, list[dict[str, Any]]]) -> str:
    rows = []
    for key, items in runs.items():
        kinds = sorted({item["verdict"]["kind"] for item in items})
        rows.append(
            [
                key,
                len(items),
                " or ".join(kinds),
                *(_cell([item["metrics"].get(name) for item in items]) for name in SHOWN),
            ]
        )
    return markdown(["projector: embedding", "runs", "verdict", *SHOWN], rows)


def _cell(values: list[float | None]) -> str:
    """The mean with its 95 % interval; empty where a measure is not defined."""
    found = mean_of([value for value in values if value is not None]) if None not in values else None
    if found is None:
        return ""
    return f"{found.mean:.3g}" + (f" ± {found.half_width:.2g}" if found.count > 1 else "")


def _draw_by_hand(axes: Any, reports: Sequence[Judged]) -> None:
    spectra = {report.name: report.eigenvalues for report in reports if not report.name.startswith("complete")}
    thresholds = {report.name: report.verdict.threshold for report in reports}
    draw_spectra(axes, spectra, relative=True, thresholds=thresholds)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(prog="python -m experiments.diagnosis", description=__doc__ or "")
    parser.add_argument("--runs", nargs="+", type=pathlib.Path, default=[], metavar="RUN", help="folders of runs")
    parser.add_argument("--data_dir", help="the folder of their images, if it is not the one in their configs")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="where the results go")
    return parser.parse_args(argv)


if __name__ == "__main__":
    cli.run(main)
