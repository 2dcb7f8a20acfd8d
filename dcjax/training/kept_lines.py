"""The lines of a run's earlier logs: which of them are whole, and which a run that resumes keeps."""

import contextlib
import errno
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dcjax.runtime.errors import printable
from dcjax.runtime.files import reason_of
from dcjax.runtime.reading import MAX_VALUES, UnfitFileError, count_values, number, parse_json, raw_lines, whole
from dcjax.training.logs import say

_SPECTRUM = re.compile(rb'\{"step": (\d{1,15}), "[rz]": \[[^"\0]*\](?:, "[rz]": \[[^"\0]*\])*\}\n')


class KeptLines:
    """The lines of an earlier log that a run keeps when it resumes, however large the log is.

    The log is read line by line: first to see whether that is possible, then whenever the lines are wanted. One that
    cannot be read is renamed to `NAME.unreadable`, and no line is kept: a log must not end a run.

    Args:
      path: the log.
      last: the last step whose line is kept, for looks (True) and for other lines (False).

    Attributes:
      looks: the looks that are kept, in memory.
    """

    def __init__(self, path: pathlib.Path, last: Mapping[bool, int]):
        self._path, self._last = path, last
        self.looks: list[dict[str, Any]] = []
        try:
            bad, before, values = 0, False, 0
            for line in raw_lines(path):
                bad += before  # the last line may have been cut short by an interruption
                row = _row_of(line)
                before = row is None
                if row is not None and "monitor" in row and row["step"] <= last[True]:
                    self.looks.append(row)
                    values += count_values(row)
                    if values > MAX_VALUES:
                        raise UnfitFileError(f"its looks have more than {MAX_VALUES:,} values")
            if bad:
                logging.warning("%s: %d damaged lines were left out", path, bad)
        except FileNotFoundError:
            pass
        except (OSError, UnfitFileError) as error:
            self.looks = []
            self._set_aside(reason_of(error) if isinstance(error, OSError) else str(error))

    def lines(self) -> Iterator[bytes]:
        """The lines that are kept.

        Raises:
          OSError: the log cannot be read.
        """
        try:
            for line in raw_lines(self._path):
                row = _row_of(line)
                if row is not None and row["step"] <= self._last["monitor" in row]:
                    yield line
        except FileNotFoundError:
            return
        except UnfitFileError as error:
            raise OSError(errno.EINVAL, str(error)) from error

    def _set_aside(self, reason: str) -> None:
        target, count = self._path.with_name(f"{self._path.name}.unreadable"), 1
        while os.path.lexists(target):
            count += 1
            target = self._path.with_name(f"{self._path.name}.unreadable-{count}")
        with contextlib.suppress(OSError):  # a folder that cannot be changed is reported by the `LogFile`
            os.rename(self._path, target)
        say(
            printable(
                f"dcjax: {self._path.name} cannot be read ({reason}); it is {target.name} now, and a new one begins"
            )
        )


def _row_of(line: bytes) -> dict[str, Any] | None:
    """The object of a log's line, with the step alone for a line of spectra; None for a damaged line."""
    if match := _SPECTRUM.fullmatch(line):  # thousands of numbers, which need not be parsed
        return {"step": int(match[1])}
    try:
        row = parse_json(line.decode("utf-8", "replace"))
    except ValueError:
        return None
    step = whole(row.get("step")) if isinstance(row, dict) else None
    if step is None or ("monitor" in row and not is_look(row)):
        return None
    return row | {"step": step}


def is_look(row: dict[str, Any]) -> bool:
    """Whether a line has the fields by which later looks are judged; NaN counts as a number."""
    values, signs = row["monitor"], row.get("signs")
    if not isinstance(values, dict) or not isinstance(signs, list) or not all(isinstance(sign, str) for sign in signs):
        return False
    return all(isinstance(value, float) or number(value) is not None for value in values.values())
