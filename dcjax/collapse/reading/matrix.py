"""An array in a file, read block by block, and the one error for a file that cannot be used."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dcjax.runtime.errors import printable

BUFFER_BYTES = 2**25  # the most that a reader holds beside a block, unless a single row is larger


class UnreadableError(ValueError):
    """A file cannot be used; the message is one printable line, whatever names and values the file contains."""

    def __init__(self, subject: Any, problem: str):
        super().__init__(printable(f"{subject} {problem}", 500))


@contextlib.contextmanager
def one_error(subject: Any, problem: str = "cannot be read") -> Iterator[None]:
    """Turns any error of a parser into an `UnreadableError`: on damaged files, libraries raise almost every type."""
    try:
        yield
    except UnreadableError:
        raise
    except Exception as error:
        raise UnreadableError(subject, f"{problem}: {error or type(error).__name__}") from error


@dataclasses.dataclass(frozen=True)
class Matrix:
    """An array in a file. Its values are read by `blocks` and `array`, never before.

    Attributes:
      name: the name of the file, followed by `:key` if the file holds several arrays.
      shape: `[n, d]`, or other axes if `open_matrices` was asked for them. n is None where only reading tells it.
      dtype: the dtype as stored.
      read: what `blocks` and `array` call, with the most entries of the first axis that a block may have.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype
    read: Callable[[int], Iterator[np.ndarray]] = dataclasses.field(repr=False, compare=False)

    @property
    def rows(self) -> int | None:
        """The length of the first axis, n; None where only reading tells it, as for .csv."""
        return self.shape[0]

    @property
    def columns(self) -> int:
        """The length of the last axis, d."""
        return self.shape[-1] or 0

    def blocks(self, max_rows: int) -> Iterator[np.ndarray]:
        """Reads the rows in order. Each call starts at the first row.

        Args:
          max_rows: the most rows of a block, at least 1. Blocks of .csv and .parquet may have fewer.

        Returns:
          Blocks `[<= max_rows, d]` in the stored dtype. The reader holds one of them and about 32 MiB beside it; for
          .parquet, pyarrow also holds a page and the dictionary of each column.

        Raises:
          ValueError: max_rows is below 1, the array has other than two axes, or (while reading) the file is damaged.
        """
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, found {max_rows}")
        if len(self.shape) != 2:
            raise ValueError(f"{self.name} has the shape {list(self.shape)}; only [n, d] is read in blocks")
        return self._checked(max_rows)

    def array(self, max_bytes: int = 2**30) -> np.ndarray:
        """The whole array, with as many axes as `shape`.

        Raises:
          ValueError: it takes more than max_bytes, or the file is damaged.
        """
        stated = math.prod(axis or 0 for axis in self.shape) * self.dtype.itemsize
        self._refuse_over(max_bytes, stated)
        step = self.rows or max(1, BUFFER_BYTES // (self.columns * self.dtype.itemsize))
        parts, found = [], 0
        for part in self._checked(step):
            found += part.nbytes
            self._refuse_over(max_bytes, found)
            parts.append(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _refuse_over(self, max_bytes: int, found: int) -> None:
        if found > max_bytes:
            raise UnreadableError(self.name, f"takes at least {found} bytes; at most {max_bytes} are read as a whole")

    def _checked(self, max_rows: int) -> Iterator[np.ndarray]:
        count = 0
        with one_error(self.name):
            for block in self.read(max_rows):
                count += len(block)
                yield block
                del block  # otherwise it would stay while the next one is read
            if self.rows not in (None, count):
                raise ValueError(f"it states {self.rows} rows and holds {count}")
