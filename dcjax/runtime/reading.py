"""Bounded reading of files that anyone may have written: regular files only, so many bytes, JSON of so many levels."""

import dataclasses
import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from dcjax.runtime.errors import SettingError, printable

MAX_DEPTH = 64  # of JSON; code that walks a value recursively stays far below Python's limit
MAX_LINE = 2**24  # bytes of one line of a log
MAX_LINES = 2**20
MAX_VALUES = 2**24  # of a log: some 100 bytes of memory each at most, and its text may have two
MAX_NUMBER = 1e60  # larger ones would overflow in a figure or a product; float32 ends at 3e38


class UnfitFileError(SettingError):
    """A path names no regular file, or one that is too large; the message is one line that names it."""


@dataclasses.dataclass(frozen=True)
class Log:
    """The lines of a log.

    Attributes:
      rows: the objects with a whole number as their step, in the order of the file.
      bad: the numbers of the other lines, from 1.
      cut_short: whether the last line is no JSON, which an interruption or a run that is still writing leaves. It is
        in neither list.
    """

    rows: list[dict[str, Any]]
    bad: list[int]
    cut_short: bool


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file for reading.

    Raises:
      UnfitFileError: it is a pipe, device, socket or folder.
      OSError: it cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for a process that writes to it.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise UnfitFileError(printable(f"{path} is not a regular file")) from error
        raise
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        os.close(file)
        kind = "a folder, " if stat.S_ISDIR(found.st_mode) else ""
        raise UnfitFileError(printable(f"{path} is {kind}not a regular file"))
    return open(file, "rb")


def read_file(path: str | os.PathLike[str], most: int) -> bytes:
    """The bytes of a regular file.

    Args:
      path: the file.
      most: bytes that it may have.

    Raises:
      UnfitFileError: it is a pipe, device, socket or folder, or has more bytes.
      OSError: it cannot be read.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise UnfitFileError(printable(f"{path} has {size:,} bytes; at most {most:,} are read"))
        return file.read(size)  # a file that grows meanwhile is read as long as it was


def read_text(path: str | os.PathLike[str], most: int) -> str:
    """The text of a regular file; bytes that are not UTF-8 are replaced.

    Args:
      path: the file.
      most: bytes that it may have.

    Raises:
      SettingError: the file is missing, too large, not a regular file, or cannot be read.
    """
    try:
        return read_file(path, most).decode("utf-8", "replace")
    except FileNotFoundError as error:
        raise SettingError(printable(f"{path} is missing")) from error
    except OSError as error:
        raise SettingError(printable(f"{path} cannot be read ({error.strerror})")) from error


def parse_json(text: str, *, constants: bool = True) -> Any:
    """The value of a JSON text of at most `MAX_DEPTH` levels.

    Args:
      text: the text.
      constants: whether NaN and Infinity, which JSON does not have but Python writes, may stand in it.

    Raises:
      ValueError: the text is not JSON, is nested too deeply, or has a whole number of thousands of digits.
    """
    try:
        value = json.loads(text, parse_constant=None if constants else _refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _deeper(value, MAX_DEPTH):
        raise ValueError(f"nested too deeply, more than {MAX_DEPTH} levels")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _deeper(value: Any, most: int) -> bool:
    """Whether lists and objects are nested more than `most` levels deep."""
    level = [value]
    for _ in range(most + 1):
        level = [part for part in level if isinstance(part, dict | list)]
        if not level:
            return False
        level = [part for whole in level for part in _parts(whole)]
    return True


def read_json(path: str | os.PathLike[str], most: int) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
      path: the file.
      most: bytes that it may have.

    Raises:
      SettingError: as `read_text`, or the file holds no JSON object.
    """
    try:
        value = parse_json(read_text(path, most))
    except SettingError:
        raise
    except ValueError as error:
        raise SettingError(printable(f"{path} cannot be read ({error})")) from error
    if not isinstance(value, dict):
        raise SettingError(printable(f"{path} cannot be read (not a JSON object)"))
    return value


def read_log(path: str | os.PathLike[str], most: int) -> Log:
    """The lines of a log, a JSON object with a "step" in each; blank lines at the end do not count.

    Args:
      path: the file.
      most: bytes that it may have.

    Raises:
      SettingError: the file is missing, too large, not a regular file, or cannot be read; or it has more than
        `MAX_LINES` lines or `MAX_VALUES` values.
    """
    rows: list[dict[str, Any]] = []
    bad: list[int] = []
    open_end: list[int] = []  # the last lines, while they are blank, or one that is no JSON and then blank ones
    cut_short, values = False, 0
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
        if size > most:
            raise UnfitFileError(printable(f"{path} has {size:,} bytes; at most {most:,} are read"))
        for number, line in enumerate(raw_lines(path), 1):
            if number > MAX_LINES:
                raise UnfitFileError(printable(f"{path} has more than {MAX_LINES:,} lines; no more are read"))
            if not line.strip():
                open_end.append(number)
                continue
            bad += open_end
            open_end, cut_short = [], False
            try:
                row = parse_json(line.decode("utf-8", "replace"))
            except ValueError:
                open_end, cut_short = [number], True
                continue
            step = whole(row.get("step")) if isinstance(row, dict) else None
            if not isinstance(row, dict) or step is None:
                bad.append(number)
                continue
            rows.append(row | {"step": step})
            values += count_values(row)
            if values > MAX_VALUES:
                raise UnfitFileError(printable(f"{path} has more than {MAX_VALUES:,} values; no more are read"))
    except FileNotFoundError as error:
        raise SettingError(printable(f"{path} is missing")) from error
    except OSError as error:
        raise SettingError(printable(f"{path} cannot be read ({error.strerror})")) from error
    return Log(rows, bad, cut_short)


def count_values(value: Any) -> int:
    """The number of values, lists and objects in a JSON value, which its memory goes with, and its size does not."""
    level, count = [value], 0
    while level:
        count += len(level)
        level = [part for whole in level if isinstance(whole, dict | list) for part in _parts(whole)]
    return count


def _parts(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def raw_lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The lines of a file of any size, one after another, each with its line break; one is added to the last.

    A line of more than `MAX_LINE` bytes is given as one that is no JSON.

    Raises:
      UnfitFileError: it is a pipe, device, socket or folder.
      OSError: it cannot be read.
    """
    with open_file(path) as file:
        while line := file.readline(MAX_LINE + 1):
            long = len(line) > MAX_LINE
            while long and not line.endswith(b"\n") and line:
                line = file.readline(MAX_LINE + 1)
            yield b"?\n" if long else line if line.endswith(b"\n") else line + b"\n"


def number(value: Any) -> float | None:
    """The value as a float if it is a number (not a bool) of at most `MAX_NUMBER`, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= MAX_NUMBER else None  # no comparison with NaN holds


def whole(value: Any) -> int | None:
    """The value as an int if it is a whole number from 0 to 2^53, else None."""
    found = number(value)
    return int(found) if found is not None and found == int(found) and 0 <= found <= 2**53 else None
