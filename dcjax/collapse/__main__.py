"""Tells whether embeddings have collapsed, and by how much.

    dcjax collapse embeddings.npy                        one or more files, or folders of runs
    dcjax collapse view1.npy --views view2.npy           with the other views of the same images
    dcjax collapse r.npy --labels labels.npy --local     with measures within classes and within k-means cells
    dcjax collapse --weights model.safetensors           the matrices of a checkpoint instead

Files: .npy, .npz, .safetensors, .csv, .parquet, a row for each embedding; they are streamed. The folder of a run stands
for r and z of its test images, and of two augmented views of them.

The verdict is complete collapse (all rows are alike), dimensional collapse (at least one direction at or below
--tolerance of the largest, or below the rounding of the entries), no collapse, or undetermined (no more distinct rows
than columns, or less than 1.3 % more). Integers count as exact. The exit status is 0 for no collapse and with
--weights, 1 for collapse of any embedding, 3 if one is undetermined and none has collapsed, and 2 after a mistake. The
verdict is on the embedding, not on how well it serves a task; for dense tasks, measures of this kind have been reported
to point the wrong way.
"""

import argparse
import json
import math
import os
import pathlib
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from dcjax.collapse.arrays import BLOCK_BYTES, MAX_DIM
from dcjax.collapse.quantities import SAMPLE, Quantities
from dcjax.collapse.ranks import TOLERANCE
from dcjax.collapse.reading import Matrix, open_matrices, read_labels
from dcjax.runtime import cli
from dcjax.runtime.errors import SettingError
from dcjax.runtime.files import refusing

CELLS = 10
MAX_ARRAY_BYTES = 1 << 31  # of a matrix that the intervals hold in memory
MAX_WEIGHTS_BYTES = 1 << 32  # of the matrices of a checkpoint, which are held together


def main(argv: Sequence[str]) -> None:
    """Parses the command line, reports on every file and exits with the status of the verdicts."""
    try:
        flags = _parse(argv)
        reports = _report(flags)
    except BrokenPipeError:  # the reader of the output has gone, and no verdict reached it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        cli.leave(2, "the output was cut off")
    except OSError as error:
        raise SettingError(f"{error.filename or 'a file'} cannot be used ({error.strerror})") from error
    except ValueError as error:  # the library's, which knows no settings
        raise SettingError(str(error)) from error
    except MemoryError as error:
        raise SettingError(f"there is not enough memory ({error}); pass fewer columns or a smaller --sample") from error
    except Exception:
        traceback.print_exc()
        cli.leave(2, "an error of the program, not a verdict; the lines above say where")
    collapsed = [report.name for report in reports if report.verdict.kind in ("complete", "dimensional")]
    undetermined = [report.name for report in reports if report.verdict.kind == "undetermined"]
    found = {"collapsed": collapsed, "undetermined": undetermined}
    summary = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in found.items() if names)
    if summary:
        cli.leave(1 if collapsed else 3, summary)


def _report(flags: argparse.Namespace) -> list[Any]:
    """Prints what the flags ask for, and returns the reports on embeddings."""
    if flags.measures:
        from dcjax.collapse.metrics import markdown

        print(markdown())
        return []
    if flags.weights:
        _report_weights(flags)
        return []
    reports = [report for file in flags.files for report in _reports(file, flags)]
    if flags.plot:
        _plot(reports, flags.plot)
    if flags.json:
        from dcjax.collapse.report import as_json

        print(json.dumps([as_json(report) for report in reports]), flush=True)
    return reports


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(prog="dcjax collapse", description=__doc__ or "")
    parser.add_argument("files", nargs="*", metavar="FILE", help="a matrix file, or the folder of a run")
    parser.add_argument("--measures", action="store_true", help="list the measures in Markdown, and exit")
    parser.add_argument("--views", metavar="FILE", help="the other views of the images of the one FILE, in its order")
    parser.add_argument("--labels", metavar="FILE", help="a label for each row of the one FILE")
    parser.add_argument("--weights", action="store_true", help="report on the weight matrices of checkpoints or runs")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help=f"directions at or below this share of the largest eigenvalue count as collapsed ({TOLERANCE:g})",
    )
    parser.add_argument(
        "--local",
        metavar="CELLS",
        type=int,
        nargs="?",
        const=CELLS,
        help=f"also the spectra within so many k-means cells ({CELLS})",
    )
    parser.add_argument(
        "--intervals",
        action="store_true",
        help="also 95 %% intervals of the measures by a jackknife, of their noise, not of the bias of few rows; takes "
        "21 times as long and holds the rows in memory",
    )
    parser.add_argument(
        "--sample",
        type=int,
        default=SAMPLE,
        metavar="ROWS",
        help=f"the most rows that measures of pairs of rows look at, drawn at random ({SAMPLE:,})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--plot", metavar="FILE.png", type=pathlib.Path, help="write a plot of the spectra")
    parser.add_argument("--data_dir", help="for a run: the folder of its data, if it is not the one in its config")
    parser.add_argument("--devices", type=int, default=0, help="for a run: how many devices to use (default: all)")
    flags = parser.parse_args(argv)
    if not flags.files and not flags.measures:
        raise SettingError("name one FILE or more; found none (--help lists the flags)")
    if flags.sample < 1:
        raise SettingError(f"--sample must be at least 1, found {flags.sample}")
    named = [*flags.files, *(file for file in (flags.views, flags.labels) if file)]
    if missing := [file for file in named if not pathlib.Path(file).exists()]:
        raise SettingError(f"{', '.join(missing)}: no such file or folder")
    if flags.local is not None and flags.local < 1:
        raise SettingError(f"--local must be at least 1 cell, found {flags.local}")
    runs = [file for file in flags.files if pathlib.Path(file).is_dir()]
    if (flags.views or flags.labels) and (len(flags.files) > 1 or flags.weights or runs):
        name = "--views" if flags.views else "--labels"
        raise SettingError(f"{name} goes with one FILE of embeddings, found {' '.join(flags.files)}")
    if flags.weights and (flags.local or flags.intervals or flags.tolerance != TOLERANCE):
        raise SettingError("--weights reports on matrices; --local, --intervals and --tolerance are for embeddings")
    if (flags.data_dir or flags.devices) and (flags.weights or not runs):
        raise SettingError("--data_dir and --devices are for the embeddings of a run, found none among the files")
    if flags.plot and (flags.plot.suffix.lower() != ".png" or not flags.plot.absolute().parent.is_dir()):
        raise SettingError(f"--plot must name a .png file in an existing folder, found {flags.plot}")
    return flags


def _reports(file: str, flags: argparse.Namespace) -> Iterator[Any]:
    """The reports on the matrices of a file or on the embeddings of a run; prints each as it is made."""
    from dcjax.collapse.report import as_text

    found = _run_reports(file, flags) if pathlib.Path(file).is_dir() else _file_reports(file, flags)
    for report in found:
        if not flags.json:
            print(as_text(report), end="\n\n", flush=True)
        yield report


def _file_reports(file: str, flags: argparse.Namespace) -> Iterator[Any]:
    from dcjax.collapse.report import make_report

    matrices = open_matrices(file)
    views = open_matrices(flags.views) if flags.views else []
    labels = read_labels(flags.labels) if flags.labels else None
    if (flags.views or flags.labels) and (len(matrices) != 1 or len(views) > 1):
        names = ", ".join(matrix.name for matrix in [*matrices, *views])
        raise SettingError(f"--views and --labels need files of one matrix each, found {names}")
    for matrix in matrices:
        if matrix.columns > MAX_DIM:
            raise SettingError(f"{matrix.name} has {matrix.columns:,} columns; at most {MAX_DIM:,} can be judged")
        for part in views:
            if (part.rows, part.columns) != (matrix.rows, matrix.columns) and None not in (part.rows, matrix.rows):
                shapes = (f"{m.name} has {m.rows:,} rows of {m.columns:,}" for m in (part, matrix))
                raise SettingError(f"--views needs as many rows and columns as FILE; {', '.join(shapes)}")
        if labels is not None and matrix.rows not in (None, len(labels)):
            raise SettingError(f"--labels needs a label for each of the {matrix.rows:,} rows, found {len(labels):,}")
        other, rows = views[0] if views else None, max(BLOCK_BYTES // (8 * matrix.columns), 64)
        pair = None if other is None else other.blocks(rows)
        intervals = _intervals(matrix, other, labels, flags.sample) if flags.intervals else None
        quantities = Quantities(matrix.blocks(rows), pair, labels, sample=flags.sample, skip_nonfinite=True)
        yield make_report(
            file + matrix.name.removeprefix(pathlib.Path(file).name),
            quantities,
            dtype=matrix.dtype.name,
            tolerance=flags.tolerance,
            intervals=intervals,
            cells=flags.local or 0,
        )


def _run_reports(folder: str, flags: argparse.Namespace) -> Iterator[Any]:
    from dcjax.collapse.metrics import jackknife
    from dcjax.collapse.report import make_report
    from dcjax.evaluation.embeddings import embeddings_of_run

    embeddings = embeddings_of_run(folder, data_dir=flags.data_dir, devices=flags.devices)
    for name, found in embeddings.items():
        intervals = jackknife(found.rows, labels=found.labels, sample=flags.sample) if flags.intervals else None
        yield make_report(
            f"{folder}: {name}",
            Quantities(found.rows, labels=found.labels, sample=flags.sample),
            views=Quantities(*found.views, sample=flags.sample),
            dtype=found.rows.dtype.name,
            tolerance=flags.tolerance,
            intervals=intervals,
            cells=flags.local or 0,
        )


def _intervals(matrix: Matrix, other: Matrix | None, labels: np.ndarray | None, sample: int) -> Any:
    """The jackknife of a matrix that fits into memory, without its rows of NaN or inf."""
    from dcjax.collapse.metrics import jackknife

    rows, pairs = (None if part is None else part.array(MAX_ARRAY_BYTES) for part in (matrix, other))
    assert rows is not None
    good = np.isfinite(rows).all(axis=1)
    if pairs is not None and len(pairs) == len(rows):  # `Quantities` refuses another length in its own words
        good &= np.isfinite(pairs).all(axis=1)
    parts = [None if part is None or len(part) != len(rows) else part[good] for part in (rows, pairs, labels)]
    return jackknife(parts[0], parts[1], labels=parts[2], sample=sample)


def _report_weights(flags: argparse.Namespace) -> None:
    from dcjax.collapse.report import weights_json, weights_text
    from dcjax.collapse.weights import alignments, matrix_reports

    records, panels = [], []
    for file in flags.files:
        arrays = _weights(file)
        reports, pairs = matrix_reports(arrays), alignments(arrays)
        if not reports:
            raise SettingError(f"{file} holds no matrix with two inputs and two outputs or more")
        panels.append((file, reports))
        records.append(weights_json(file, reports, pairs))
        if not flags.json:
            print(weights_text(file, reports, pairs), end="\n\n", flush=True)
    if flags.json:
        print(json.dumps(records))
    if flags.plot:
        from dcjax.collapse.plot import draw_weights, save

        draws = [
            lambda axes, title=pathlib.Path(file).name, found=reports: draw_weights(axes, found, title=title)
            for file, reports in panels
        ]
        with refusing(flags.plot, "--plot"):
            save(draws, flags.plot)


def _weights(file: str) -> dict[str, np.ndarray]:
    if pathlib.Path(file).is_dir():
        from dcjax.evaluation.embeddings import weights_of_run

        return weights_of_run(file)
    found = open_matrices(file, ndim=(2, 4))
    stated = sum(math.prod(axis or 0 for axis in matrix.shape) * matrix.dtype.itemsize for matrix in found)
    if stated > MAX_WEIGHTS_BYTES:
        raise SettingError(f"{file} holds {stated:,} bytes of matrices; at most {MAX_WEIGHTS_BYTES:,} are read at once")
    return {matrix.name.partition(":")[2] or matrix.name: matrix.array() for matrix in found}


def _plot(reports: Iterable[Any], path: pathlib.Path) -> None:
    from dcjax.collapse.plot import draw_local, draw_spectra, save

    reports = list(reports)
    spectra = {report.name: report.eigenvalues for report in reports}
    thresholds = {report.name: report.verdict.threshold for report in reports}
    draws = [lambda axes: draw_spectra(axes, spectra, relative=True, thresholds=thresholds)]
    draws += [
        lambda axes, local=report.local, title=report.name: draw_local(axes, local, title=title)
        for report in reports
        if report.local is not None
    ]
    with refusing(path, "--plot"):
        save(draws, path)
    print(f"dcjax: spectra in {path}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
