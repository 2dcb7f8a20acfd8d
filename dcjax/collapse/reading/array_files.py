"""The arrays of .npy, .npz and .safetensors files. Headers are checked against the file; nothing is unpickled."""

import contextlib
import functools
import io
import math
import pathlib
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, cast

import ml_dtypes
import numpy as np

from dcjax.collapse.reading.matrix import BUFFER_BYTES, Matrix, UnreadableError, one_error
from dcjax.runtime.errors import printable
from dcjax.runtime.reading import parse_json

PIECE_BYTES = 2**20  # asked of a file at a time: a zip member copies what it reads
# The largest headers that are parsed. Those of real files stay far below, and take many times their size once parsed.
MAX_NPY_HEADER_BYTES = 10_000  # NumPy considers longer ones unsafe
MAX_SAFETENSORS_HEADER_BYTES = 2**23
MAX_ZIP_READ_BYTES = 2**24  # also the directory's limit; `zipfile` skips this many bytes at a time
ZIP_END_BYTES = 2**17  # no less than a zip's last record and its comment
MAX_DEFLATE_RATIO = 1032  # the format allows no more
MAX_AXES = 32
# Every 32 MiB of rows are a pass over a whole array in Fortran order, which a deflated one inflates again.
MAX_DEFLATED_COLUMNS = 2**30

SAFETENSORS_DTYPES = {
    **{f"{kind}{8 * size}": np.dtype(f"{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)},
    **{"F16": np.dtype("f2"), "F32": np.dtype("f4"), "F64": np.dtype("f8"), "BF16": np.dtype(ml_dtypes.bfloat16)},
    # `open_matrices` leaves these out, but a file that has them can be opened.
    **{"BOOL": np.dtype(bool), "C64": np.dtype("c8")},
    **{"F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2)},
}

_Open = Callable[[], contextlib.AbstractContextManager[io.BufferedIOBase]]


def npy_arrays(path: pathlib.Path) -> list[Matrix]:
    """The array of an .npy file, whatever its shape and dtype."""
    with path.open("rb") as stream:
        return [_npy_array(stream, str(path), path.name, path.stat().st_size, functools.partial(path.open, "rb"))]


def npz_arrays(path: pathlib.Path) -> list[Matrix]:
    """The arrays of an .npz file, whatever their shapes and dtypes."""
    arrays = []
    with _archive(path) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        for info in members:
            key = info.filename.removesuffix(".npy")
            _check_member(f"{path}:{key}", info)
            opened = functools.partial(_member, path, info)
            with one_error(f"{path}:{key}"), _stream(archive, info) as stream:
                name = _name(path, key, len(members))
                most = MAX_DEFLATED_COLUMNS if info.compress_type == zipfile.ZIP_DEFLATED else None
                arrays.append(_npy_array(stream, f"{path}:{key}", name, info.file_size, opened, most))
    return arrays


def safetensors_arrays(path: pathlib.Path) -> list[Matrix]:
    """The arrays of a .safetensors file, in the order of their bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        most = min(size - 8, MAX_SAFETENSORS_HEADER_BYTES)
        if length > most:
            raise UnreadableError(
                path, f"states a header of {length} bytes; of this file at most {max(most, 0)} are read"
            )
        header = parse_json(file.read(length).decode("utf-8"), constants=False)
    if not isinstance(header, dict):
        raise UnreadableError(path, f"has a {type(header).__name__} as its header; a JSON object is needed")
    header.pop("__metadata__", None)
    entries = [(*_tensor(f"{path}:{key}", entry), key) for key, entry in header.items()]
    arrays, end = [], 0
    for start, stop, shape, dtype, key in sorted(entries, key=lambda entry: entry[:2]):
        if start != end:  # the reference reader refuses gaps, too
            raise UnreadableError(f"{path}:{key}", f"starts at byte {start} of the data; the one before ends at {end}")
        end = stop
        opened = functools.partial(path.open, "rb")
        reader = functools.partial(_rows, opened, 8 + length + start, shape, dtype, False)
        arrays.append(Matrix(_name(path, key, len(entries)), shape, dtype, reader))
    if end != size - 8 - length:
        raise UnreadableError(path, f"holds {size - 8 - length} bytes of data; its header states {end}")
    return arrays


def _name(path: pathlib.Path, key: str, arrays: int) -> str:
    return printable(f"{path.name}:{key}", 200) if arrays > 1 else path.name


def _check_size(subject: str, shape: tuple[int, ...], dtype: np.dtype, held: int) -> None:
    if len(shape) > MAX_AXES or any(not 0 <= axis < 2**63 for axis in shape) or not dtype.itemsize:
        raise UnreadableError(subject, f"cannot hold an array {dtype} of shape {list(shape[:MAX_AXES])}")
    stated = math.prod(shape) * dtype.itemsize
    if stated != held:
        raise UnreadableError(subject, f"states {list(shape)} {dtype}, which is {stated} bytes, but holds {held} bytes")


def _npy_array(
    stream: io.BufferedIOBase, subject: str, name: str, size: int, opened: _Open, most_fortran: int | None = None
) -> Matrix:
    """Reads the header of an array; `size` counts its bytes with the header, `most_fortran` bounds it by columns."""
    # NumPy's parser reads a header of any stated length, so it gets no more than the longest that is allowed.
    head = io.BytesIO(stream.read(MAX_NPY_HEADER_BYTES))
    with one_error(subject, f"has no .npy header of up to {MAX_NPY_HEADER_BYTES} bytes"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about headers written by Python 2
        # Version 3 is for the field names of structured arrays.
        parsers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        version = np.lib.format.read_magic(head)
        if version not in parsers:
            raise ValueError(f"its version is {version}; known: {', '.join(map(str, parsers))}")
        shape, fortran, dtype = parsers[version](head)
    shape = tuple(map(int, shape))
    if not dtype.hasobject:  # a pickle has any size, and is not read
        _check_size(subject, shape, dtype, size - head.tell())
    if fortran and len(shape) > 1 and most_fortran is not None and size > most_fortran:
        raise UnreadableError(subject, f"holds {size} bytes by columns, deflated; store them by rows (C order)")
    return Matrix(name, shape, dtype, functools.partial(_rows, opened, head.tell(), shape, dtype, fortran))


class _SmallReads(io.BufferedReader):
    """A file that refuses large reads: `zipfile` would load a directory of any stated size."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:  # the end of the file, which `zipfile` searches for the directory
            size = ZIP_END_BYTES
        if size > MAX_ZIP_READ_BYTES:
            raise ValueError(f"its directory takes {size} bytes; at most {MAX_ZIP_READ_BYTES} are read")
        return super().read(size)


@contextlib.contextmanager
def _archive(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    with _SmallReads(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        yield archive


@contextlib.contextmanager
def _member(path: pathlib.Path, info: zipfile.ZipInfo) -> Iterator[io.BufferedIOBase]:
    with _archive(path) as archive, _stream(archive, info) as stream:
        yield stream


def _stream(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> io.BufferedIOBase:
    return cast(io.BufferedIOBase, archive.open(info))  # which `ZipFile` promises less precisely


def _check_member(subject: str, info: zipfile.ZipInfo) -> None:
    if info.flag_bits & 1:
        raise UnreadableError(subject, "is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnreadableError(subject, f"has the zip compression {info.compress_type}; known: 0 (none), 8 (deflate)")
    most = info.compress_size * (MAX_DEFLATE_RATIO if info.compress_type == zipfile.ZIP_DEFLATED else 1)
    if info.file_size > most:
        raise UnreadableError(subject, f"states {info.file_size} bytes; its bytes in the zip give {most} at most")


def _tensor(subject: str, entry: Any) -> tuple[int, int, tuple[int, ...], np.dtype]:
    """First byte, end, shape and dtype of an entry of the header."""
    match entry:
        case {"dtype": str(code), "shape": [*axes], "data_offsets": [int(start), int(stop)]}:
            if code not in SAFETENSORS_DTYPES:
                raise UnreadableError(subject, f"has the dtype '{code[:20]}'; known: {', '.join(SAFETENSORS_DTYPES)}")
            if all(type(axis) is int for axis in axes):
                _check_size(subject, tuple(axes), SAFETENSORS_DTYPES[code], stop - start)
                return start, stop, tuple(axes), SAFETENSORS_DTYPES[code]
    raise UnreadableError(subject, f"needs dtype, shape and two data_offsets in the header, found {str(entry)[:80]}")


def _rows(
    opened: _Open, start: int, shape: tuple[int, ...], dtype: np.dtype, fortran: bool, max_rows: int
) -> Iterator[np.ndarray]:
    """Reads an array whose bytes begin at `start`."""
    read = _fortran_rows if fortran and len(shape) > 1 else _c_rows
    with opened() as stream:
        yield from read(stream, start, shape, dtype, max_rows)


def _c_rows(
    stream: io.BufferedIOBase, start: int, shape: tuple[int, ...], dtype: np.dtype, max_rows: int
) -> Iterator[np.ndarray]:
    stream.seek(start)
    for first in range(0, shape[0], max_rows):
        yield _filled(stream, (min(max_rows, shape[0] - first), *shape[1:]), dtype)


def _fortran_rows(
    stream: io.BufferedIOBase, start: int, shape: tuple[int, ...], dtype: np.dtype, max_rows: int
) -> Iterator[np.ndarray]:
    """Gathers as many blocks as fit into the buffer at once, because each gathering passes over the whole array."""
    columns = math.prod(shape[1:])
    at_once = max_rows * max(1, BUFFER_BYTES // (columns * dtype.itemsize * max_rows))
    for first in range(0, shape[0], at_once):
        panel = np.empty((columns, min(at_once, shape[0] - first)), dtype)
        for column in range(columns):
            stream.seek(start + (column * shape[0] + first) * dtype.itemsize)
            panel[column] = _filled(stream, panel.shape[1:], dtype)
        for row in range(0, panel.shape[1], max_rows):
            block = panel[:, row : row + max_rows]  # [d, rows], the transpose of the rows
            yield block.reshape(*reversed(shape[1:]), block.shape[1]).T
            del block
        del panel  # otherwise it would stay while the next one is gathered


def _filled(stream: io.BufferedIOBase, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The next bytes of a stream as an array."""
    array = np.empty(shape, dtype)
    rest = array.reshape(-1).view(np.uint8).data
    while rest:
        piece = stream.read(min(len(rest), PIECE_BYTES))
        if not piece:
            raise ValueError(f"{len(rest)} bytes are missing at its end")
        rest[: len(piece)] = piece
        rest = rest[len(piece) :]
    return array
