"""Streams matrices and labels from files in bounded memory, for `python -m dcjax.collapse FILE...`.

The files may come from anyone: every size that a file states is checked before memory is taken for it, nothing is
unpickled or extracted, and a file that cannot be used raises a `ValueError` of one line. For .parquet the bound is that
of pyarrow, which decodes a page whole: up to 2 GiB for a file made to do harm.
"""

import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from dcjax.collapse.reading.array_files import npy_arrays, npz_arrays, safetensors_arrays
from dcjax.collapse.reading.matrix import Matrix, UnreadableError, one_error
from dcjax.collapse.reading.table_files import cells_of, csv_matrix, lines_of, parquet_column, parquet_matrices
from dcjax.runtime.errors import printable

__all__ = ["Matrix", "open_matrices", "read_labels"]

MAX_ROW_BYTES = 2**26  # a row is the smallest block; 16 million columns of float32
MAX_LABEL_BYTES = 2**28  # labels are held whole; 33 million integers
MAX_LABEL_CHARS = 256  # NumPy takes as much for every label as for the longest

_Label = TypeVar("_Label", bound=int | str)
_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})", re.ASCII)  # fits int64; "007" stays a string
_LABEL_KEYS = ("labels", "y")
_LABEL_HEADERS = {"class", "label", "labels", "target", "targets"}  # not "y", which may be a class


def open_matrices(path: str | os.PathLike[str], ndim: tuple[int, ...] = (2,)) -> list[Matrix]:
    """Finds the matrices of a file; their values are read later, by `Matrix.blocks` or `Matrix.array`.

    Args:
      path: an .npy, .npz, .safetensors, .csv or .parquet file. A .csv file may have one line of column names. In a
        .parquet file, each column of lists of numbers is a matrix, or else all columns together are one.
      ndim: the numbers of axes that are wanted, each at least 1.

    Returns:
      The arrays of integers or floats (not bool) with so many axes, at least one; others are left out. Empty and
      infinite cells of .csv become NaN, and so do nulls of .parquet; among integers they raise an error when read.

    Raises:
      ValueError: the file is missing, damaged or of another format, or has no such array.
    """
    path = pathlib.Path(path)
    with one_error(path):
        arrays = _by_suffix(path, _ARRAY_READERS)(path)
        found = [array for array in arrays if len(array.shape) in ndim and _is_numeric(array.dtype)]
        if not found:
            axes = " or ".join(map(str, ndim))
            others = ", ".join(_described(array) for array in arrays[:8]) or "no array"
            raise UnreadableError(path, f"needs an array of integers or floats with {axes} axes ([n, d]); has {others}")
        for array in found:
            if 0 in array.shape:
                raise UnreadableError(path, f"has no rows or no columns: {_described(array)}")
            if len(array.shape) == 2 and array.columns * array.dtype.itemsize > MAX_ROW_BYTES:
                raise UnreadableError(path, f"has rows of over {MAX_ROW_BYTES} bytes: {_described(array)}")
    return found


def read_labels(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads labels, one per row of a matrix.

    Args:
      path: an .npy, .npz or .parquet file with one array of integers or strings (or several in an .npz file, one of
        which is named `labels` or `y`); a .csv file of one column; or a .txt file of one label per line. The first
        line of a .csv file is its header if it is "label" or the like, or the only one that is no integer.

    Returns:
      `[n]`, integers or strings. Those of a .csv or .txt file are integers if all of them are.

    Raises:
      ValueError: the file is missing, damaged or of another format, or has no such labels.
    """
    path = pathlib.Path(path)
    with one_error(path):
        labels = _by_suffix(path, _LABEL_READERS)(path)
        if not len(labels) or labels.dtype.kind not in "iuU":
            raise UnreadableError(path, f"needs integers or strings as labels, has {len(labels)} of {labels.dtype}")
    return labels


def _by_suffix(path: pathlib.Path, readers: dict[str, Callable[[pathlib.Path], Any]]) -> Callable[[pathlib.Path], Any]:
    """The reader of a file, once the file is known to be one."""
    if not path.exists():
        raise UnreadableError(path, "does not exist")
    if not path.is_file():  # reading a pipe would wait for ever
        raise UnreadableError(path, "is no file" + (" but a folder" if path.is_dir() else ""))
    if path.suffix.lower() not in readers:
        raise UnreadableError(path, f"has the suffix '{path.suffix}'; known: {', '.join(readers)}")
    if not path.stat().st_size:
        raise UnreadableError(path, "is empty")
    return readers[path.suffix.lower()]


def _is_numeric(dtype: np.dtype) -> bool:
    native = dtype.newbyteorder("=")
    return dtype.kind in "iu" or native in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)


def _described(array: Matrix) -> str:
    hint = " (bfloat16, without its name in this format? Save it as float32)" if array.dtype == np.dtype("V2") else ""
    return f"{array.name} {list(array.shape)} {array.dtype}{hint}"


def _array_labels(path: pathlib.Path) -> np.ndarray:
    arrays = _ARRAY_READERS[path.suffix.lower()](path)
    usable = [array for array in arrays if len(array.shape) == 1 and array.shape != (0,) and array.dtype.kind in "iuUS"]
    named = [array for array in usable if array.name.rpartition(":")[2] in _LABEL_KEYS]
    chosen = named or usable
    if len(chosen) != 1:
        found = ", ".join(_described(array) for array in arrays[:8]) or "no array"
        raise UnreadableError(path, f"needs one array [n] of integers or strings, or one named labels; has {found}")
    labels = chosen[0].array(MAX_LABEL_BYTES)
    if labels.dtype.kind == "S":
        return np.char.decode(labels, "utf-8")
    return np.array(labels.tolist()) if labels.dtype.kind == "U" else labels  # fails for bytes that are no characters


def _csv_labels(path: pathlib.Path) -> np.ndarray:
    labels = _bounded(path, (cells[0].strip() for cells in _single_cells(path)))
    rest = labels[1:]
    if labels and not _INTEGER.fullmatch(labels[0]) and (labels[0].lower() in _LABEL_HEADERS or _all_integers(rest)):
        labels = rest
    return _as_array(labels)


def _single_cells(path: pathlib.Path) -> Iterator[list[str]]:
    for number, cells in cells_of(path):
        if len(cells) != 1:
            raise UnreadableError(path, f"needs one column of labels, has {len(cells)} in line {number}")
        yield cells


def _text_labels(path: pathlib.Path) -> np.ndarray:
    return _as_array(_bounded(path, (line.strip() for _, line in lines_of(path))))


def _parquet_labels(path: pathlib.Path) -> np.ndarray:
    return np.array(_bounded(path, _checked_labels(path, parquet_column(path, MAX_LABEL_BYTES // 8))))


def _checked_labels(path: pathlib.Path, labels: Iterable[Any]) -> Iterator[int | str]:
    for label in labels:
        if type(label) not in (int, str):  # such as None and bool
            raise UnreadableError(path, f"needs integers or strings as labels, has {printable(repr(label), 30)}")
        yield label


def _bounded(path: pathlib.Path, labels: Iterable[_Label]) -> list[_Label]:
    """The labels as a list; refuses those that would take too much memory as an array."""
    kept, longest = [], 2  # an integer takes as much as two characters
    for label in labels:
        kept.append(label)
        longest = max(longest, len(label) if isinstance(label, str) else 0)
        if longest > MAX_LABEL_CHARS or 4 * longest * len(kept) > MAX_LABEL_BYTES:
            raise UnreadableError(
                path,
                f"has {len(kept)} or more labels of up to {longest} characters; allowed are {MAX_LABEL_CHARS} "
                f"characters, and {MAX_LABEL_BYTES} bytes for all",
            )
    return kept


def _all_integers(labels: list[str]) -> bool:
    return bool(labels) and all(map(_INTEGER.fullmatch, labels))


def _as_array(labels: list[str]) -> np.ndarray:
    return np.array([int(label) for label in labels] if _all_integers(labels) else labels)


# A format is one reader and one row here.
_ARRAY_READERS = {
    ".npy": npy_arrays,
    ".npz": npz_arrays,
    ".safetensors": safetensors_arrays,
    ".csv": csv_matrix,
    ".parquet": parquet_matrices,
}
_LABEL_READERS = {
    ".npy": _array_labels,
    ".npz": _array_labels,
    ".csv": _csv_labels,
    ".parquet": _parquet_labels,
    ".txt": _text_labels,
}
