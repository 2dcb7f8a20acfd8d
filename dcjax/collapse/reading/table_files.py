"""The matrices and columns of .csv, .txt and .parquet files."""

import csv
import functools
import itertools
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from dcjax.collapse.reading.matrix import BUFFER_BYTES, Matrix, UnreadableError
from dcjax.runtime.errors import printable

MAX_LINE_CHARS = 2**22


def lines_of(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Yields the number and the text of each line of a text file; blank lines may stand at its end only."""
    blank = 0
    with path.open(encoding="utf-8-sig") as file:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE_CHARS + 1)
            if len(line) > MAX_LINE_CHARS:
                raise UnreadableError(path, f"has over {MAX_LINE_CHARS} characters in line {number}")
            if not line:
                return
            if not line.strip(" \n"):  # tabs may separate empty cells
                blank = blank or number
            elif blank:  # leaving it out would shift the rows against their labels
                raise UnreadableError(path, f"has the blank line {blank} before its end")
            else:
                yield number, line.rstrip("\n")


def cells_of(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the number and the cells of each line of a .csv file, and checks that all have as many."""
    columns, separator = 0, ","
    for number, line in lines_of(path):
        if not columns:
            separator = next((s for s in "\t;" if s in line), ",")  # a comma may also be the decimal sign
        try:  # one line at a time, because a quote that is not closed would swallow all that follow
            cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True))
        except csv.Error as error:
            raise UnreadableError(path, f"is no CSV in line {number}: {error}") from error
        columns = columns or len(cells)
        if len(cells) != columns:
            raise UnreadableError(path, f"has {len(cells)} cells in line {number}; the lines before have {columns}")
        yield number, cells


def csv_matrix(path: pathlib.Path) -> list[Matrix]:
    """The matrix of a .csv file, in float64."""
    first = next(_csv_rows(path), None)
    if first is None:
        raise UnreadableError(path, "has no row of numbers")
    return [Matrix(path.name, (None, len(first)), first.dtype, functools.partial(_csv_blocks, path, len(first)))]


def _csv_blocks(path: pathlib.Path, columns: int, max_rows: int) -> Iterator[np.ndarray]:
    rows = _csv_rows(path)
    while block := list(itertools.islice(rows, _rows_at_once(columns, np.dtype(np.float64), max_rows))):
        yield np.stack(block)


def _rows_at_once(columns: int, dtype: np.dtype, max_rows: int) -> int:
    return min(max_rows, max(1, BUFFER_BYTES // (columns * dtype.itemsize)))


def _csv_rows(path: pathlib.Path) -> Iterator[np.ndarray]:
    for index, (number, cells) in enumerate(cells_of(path)):
        if index or not _is_header(path, cells):
            yield _numbers(path, number, cells)


def _is_header(path: pathlib.Path, cells: list[str]) -> bool:
    """Whether the first line names the columns: by text only, or by the numbers 0 to d-1, as pandas does."""
    names = [cell.strip() for cell in cells]
    indexed = len(names) > 1 and not names[0]
    names = names[1:] if indexed else names
    counted = len(names) > 3 and names == [str(i) for i in range(len(names))]  # [0, 1, 2] may well be a row
    if not counted and (not any(names) or any(map(_is_number, names))):
        return False
    if indexed:
        raise UnreadableError(path, "starts with a column without a name, an index of the rows; write it without")
    return True


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(path: pathlib.Path, number: int, cells: list[str]) -> np.ndarray:
    try:
        row = np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:  # an empty cell, or text
        row = np.array([_number(path, number, cell) for cell in cells])
    row[~np.isfinite(row)] = np.nan
    return row


def _number(path: pathlib.Path, number: int, cell: str) -> float:
    if cell.strip() and not _is_number(cell):
        raise UnreadableError(path, f"has '{printable(cell, 30)}' in line {number}, where a number is needed")
    return float(cell) if cell.strip() else math.nan


def parquet_matrices(path: pathlib.Path) -> list[Matrix]:
    """The columns of lists of numbers, one matrix each; or else all columns, which must be numbers, as one matrix."""
    with _parquet_file(path) as file:
        fields = _fields(file)
        lists = [field for field in fields if _list_dtype(field.type) is not None]
        if lists:
            return [_list_matrix(path, file, field, len(fields)) for field in lists]
        dtypes = {field.name: _dtype(field.type) for field in fields}
        if len(dtypes) < len(fields):
            raise UnreadableError(path, f"has {len(fields)} columns, of which two or more share a name")
        others = [f"{field.name} {field.type}" for field in fields if dtypes[field.name] is None]
        if others or not fields:
            found = ", ".join(others[:8]) or "no columns"
            raise UnreadableError(path, f"needs columns of numbers only, or one of lists of numbers; has {found}")
        dtype = np.result_type(*[dtype for dtype in dtypes.values() if dtype is not None])
        shape = (file.metadata.num_rows, len(fields))
    read = functools.partial(_table_blocks, path, list(dtypes), dtype)
    return [Matrix(path.name, shape, dtype, read)]


def parquet_column(path: pathlib.Path, most: int) -> Iterator[Any]:
    """Yields the entries of a .parquet file of one column, of which it may have so many."""
    with _parquet_file(path) as file:
        fields = _fields(file)
        if len(fields) != 1 or file.metadata.num_rows > most:
            found = f"{file.metadata.num_rows} rows of {len(fields)} columns"
            raise UnreadableError(path, f"needs one column of at most {most} labels, has {found}")
        for batch in file.iter_batches(batch_size=512, columns=[fields[0].name]):
            yield from batch.column(0).to_pylist()


def _parquet_file(path: pathlib.Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UnreadableError(path, "needs pyarrow to be read: pip install pyarrow") from error
    # Otherwise pyarrow would load the columns of a whole row group at once. Each column has such a buffer.
    return pyarrow.parquet.ParquetFile(path, buffer_size=2**16, pre_buffer=False)


def _fields(file: Any) -> list[Any]:
    """The columns without the row index that pandas adds."""
    return [field for field in file.schema_arrow if not field.name.startswith("__index_level_")]


def _dtype(column_type: Any) -> np.dtype | None:
    """The dtype of a column of numbers; None for other columns."""
    import pyarrow as pa

    is_numeric = pa.types.is_integer(column_type) or pa.types.is_floating(column_type)
    return np.dtype(column_type.to_pandas_dtype()) if is_numeric else None


def _list_dtype(column_type: Any) -> np.dtype | None:
    """The dtype of the numbers in a column of lists; None for other columns."""
    import pyarrow as pa

    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return _dtype(column_type.value_type) if any(is_kind(column_type) for is_kind in kinds) else None


def _table_blocks(path: pathlib.Path, names: list[str], dtype: np.dtype, max_rows: int) -> Iterator[np.ndarray]:
    with _parquet_file(path) as file:
        for batch in file.iter_batches(_rows_at_once(len(names), dtype, max_rows), columns=names):
            rows = np.empty((batch.num_rows, len(names)), dtype)
            for i, column in enumerate(batch.columns):
                rows[:, i] = _values(path, column, dtype)
            yield rows


def _list_matrix(path: pathlib.Path, file: Any, field: Any, columns: int) -> Matrix:
    dtype = _list_dtype(field.type)
    assert dtype is not None  # `parquet_matrices` chose such columns
    length = _list_length(file, field)
    name = printable(f"{path.name}:{field.name}", 200) if columns > 1 else path.name
    read = functools.partial(_list_blocks, path, field.name, dtype, length)
    return Matrix(name, (file.metadata.num_rows, length), dtype, read)


def _list_length(file: Any, field: Any) -> int:
    """The length of the first list that is not null."""
    import pyarrow as pa

    if pa.types.is_fixed_size_list(field.type):
        return field.type.list_size
    batches = file.iter_batches(batch_size=16, columns=[field.name])
    lengths = (_lengths(batch.column(0)).drop_null().to_pylist() for batch in batches)
    return next(itertools.chain.from_iterable(lengths), 0)


def _lengths(lists: Any) -> Any:
    """The length of each list, null for lists that are null."""
    import pyarrow.compute

    return pyarrow.compute.call_function("list_value_length", [lists])


def _list_blocks(path: pathlib.Path, column: str, dtype: np.dtype, length: int, max_rows: int) -> Iterator[np.ndarray]:
    done = 0
    with _parquet_file(path) as file:
        for batch in file.iter_batches(_rows_at_once(length, dtype, max_rows), columns=[column]):
            lists = batch.column(0)
            lengths = _lengths(lists).fill_null(length).to_numpy(zero_copy_only=False)
            ragged = np.flatnonzero(lengths != length)
            if len(ragged):
                row, found = done + ragged[0], lengths[ragged[0]]
                raise UnreadableError(path, f"has {found} numbers in row {row} of {column}; the first has {length}")
            if lists.null_count:
                _refuse_integers(path, dtype)
            rows = np.full((len(lists), length), np.nan if dtype.kind == "f" else 0, dtype)
            present = lists.is_valid().to_numpy(zero_copy_only=False)  # `flatten` leaves out lists that are null
            rows[present] = _values(path, lists.flatten(), dtype).reshape(-1, length)
            done += len(rows)
            yield rows


def _values(path: pathlib.Path, column: Any, dtype: np.dtype) -> np.ndarray:
    """A column as NumPy's array, nulls as NaN."""
    if column.null_count:
        _refuse_integers(path, dtype)
    return column.to_numpy(zero_copy_only=False)


def _refuse_integers(path: pathlib.Path, dtype: np.dtype) -> None:
    # The metadata may count the nulls, but pyarrow ends the process when it meets damaged ones (26.0: `row_group`), so
    # whether the dtype must be a float is not known before the values are read.
    if dtype.kind != "f":
        raise UnreadableError(path, f"has nulls in a column of {dtype}, where no NaN can stand; store floats")
