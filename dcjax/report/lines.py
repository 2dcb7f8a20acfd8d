"""Reads files that hold one JSON object per line, within bounds, and keeps numbers that can be drawn."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from dcjax.runtime.errors import SettingError

MAX_BYTES = 200_000_000  # of a file that is read at all
MAX_NUMBER = 1e60  # larger ones would overflow in a figure; float32 ends at 3e38
MAX_NAMED = 5  # line numbers that a note lists


@dataclasses.dataclass(frozen=True)
class Curve:
    """A scalar over the steps: `steps [n]` ascending, `values [n]` finite."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float:
        """The value at the last step."""
        return float(self.values[-1])


def read_text(file: pathlib.Path) -> str:
    """The text of a regular file of at most `MAX_BYTES`; bytes that are not UTF-8 are replaced.

    Raises:
      SettingError: the file is missing, too large, not a regular file, or cannot be read.
    """
    try:
        if not file.is_file():
            raise SettingError(f"{file} {'is not a regular file' if file.exists() else 'is missing'}")
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise SettingError(
                f"{file} has {size / 1e6:,.0f} MB; a report reads files of at most {MAX_BYTES // 10**6} MB"
            )
        return file.read_bytes().decode("utf-8", "replace")
    except (OSError, ValueError) as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"{file} cannot be read ({error})") from error


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
      ValueError: the text is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def number(value: Any) -> float | None:
    """The value as a float if it is a number (not a bool) of at most `MAX_NUMBER`, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= MAX_NUMBER else None  # no comparison with NaN holds


def whole(value: Any) -> int | None:
    """The value as an int if it is a whole number from 0 to 2^53, else None."""
    found = number(value)
    return int(found) if found is not None and found == int(found) and 0 <= found <= 2**53 else None


def read_lines(file: pathlib.Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The objects with a step in a file of JSON lines, in the order of their steps, and notes on what was left out.

    An unfinished last line, which an interruption or a run that is still writing leaves, is ignored.

    Raises:
      SettingError: as `read_text`.
    """
    rows, bad, notes = [], [], []
    lines = read_text(file).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for index, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
        except ValueError:
            if index == len(lines):
                notes.append(f"The last line of {file.name} is cut short and was ignored.")
            else:
                bad.append(index)
            continue
        step = whole(row.get("step")) if isinstance(row, dict) else None
        if step is None:
            bad.append(index)
        else:
            rows.append(row | {"step": step})
    if bad:
        notes.append(f"{file.name}: {of_lines(bad)} no JSON object with a step; left out.")
    rows.sort(key=lambda row: row["step"])
    return rows, notes


def of_lines(numbers: list[int]) -> str:
    """The subject of a note on some lines of a file, with its verb: "line 3 is", "lines 3, 4 are"."""
    if len(numbers) == 1:
        return f"line {numbers[0]} is"
    more = f" and {len(numbers) - MAX_NAMED} more" if len(numbers) > MAX_NAMED else ""
    return f"lines {', '.join(map(str, numbers[:MAX_NAMED]))}{more} are"


def curves(rows: Iterable[dict[str, Any]], file: str) -> tuple[dict[str, Curve], list[str]]:
    """The curve of every number in rows that have a step, and a note where values are not finite numbers.

    Args:
      rows: objects with a step, ascending; of two rows with one step the later one counts.
      file: the name of their file, for the note.
    """
    points: dict[str, dict[int, float]] = {}
    steps: set[int] = set()
    names: set[str] = set()
    for row in rows:
        for name, value in row.items():
            found = number(value)
            if name != "step" and found is None:
                steps.add(row["step"])
                names.add(name)
            elif name != "step" and found is not None:
                points.setdefault(name, {})[row["step"]] = found
    notes = []
    if steps:
        shown = ", ".join(name[:60] for name in sorted(names)[:MAX_NAMED])
        where = f"{min(steps)} to {max(steps)}" if len(steps) > 1 else str(min(steps))
        notes.append(
            f"{file}: values that are not finite numbers were left out ({shown}; {len(steps)} lines, step {where})."
        )
    return {name: Curve(np.array(list(found)), np.array(list(found.values()))) for name, found in points.items()}, notes
