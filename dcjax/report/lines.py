"""Reads files that hold one JSON object per line, within bounds, and keeps numbers that can be drawn."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from dcjax.runtime.reading import number, read_log

MAX_BYTES = 200_000_000  # of a file that is read at all
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


def read_lines(file: pathlib.Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The objects with a step in a file of JSON lines, in the order of their steps, and notes on what was left out.

    An unfinished last line, which an interruption or a run that is still writing leaves, is ignored.

    Raises:
      SettingError: the file is missing, too large, not a regular file, or cannot be read.
    """
    found, notes = read_log(file, MAX_BYTES), []
    if found.cut_short:
        notes.append(f"The last line of {file.name} is cut short and was ignored.")
    if found.bad:
        notes.append(f"{file.name}: {of_lines(found.bad)} no JSON object with a step; left out.")
    return sorted(found.rows, key=lambda row: row["step"]), notes


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
