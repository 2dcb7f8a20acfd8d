"""Batches that several threads fill, each a chunk of the rows."""

import math
import threading
import weakref

import numpy as np

Batch = dict[str, np.ndarray]

ALIGNMENT = 64  # bytes


class SharedBatch:
    """The arrays of one batch, which several threads fill."""

    def __init__(self, arrays: Batch):
        self.arrays = arrays


class Assembly:
    """Batches that are being read, each chunk into its place: to join chunks later costs a fifth of the reading.

    A batch is known here for as long as a reader or the result of one refers to it, so what is read ahead and then
    dropped by a seek leaves nothing behind, and every chunk of a batch that is delivered went into the same arrays.

    Args:
      rows: of a batch.
      arrays: name to the shape of a row and the dtype.
    """

    def __init__(self, rows: int, **arrays: tuple[tuple[int, ...], type]):
        self._rows = rows
        self._arrays = arrays
        self._open: weakref.WeakValueDictionary[int, SharedBatch] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def open(self, batch: int, start: int, count: int) -> tuple[SharedBatch, Batch]:
        """A batch, and the views of `count` of its rows."""
        with self._lock:
            shared = self._open.get(batch)
            if shared is None:
                arrays = {key: _empty((self._rows, *shape), kind) for key, (shape, kind) in self._arrays.items()}
                shared = self._open[batch] = SharedBatch(arrays)
        return shared, {key: array[start : start + count] for key, array in shared.arrays.items()}


def chunk_of(rows: int, largest: int) -> int:
    """The largest useful divisor of the rows of a batch, so that chunks do not reach across batches."""
    divisors = [d for d in range(largest // 8, largest + 1) if rows % d == 0]
    return max(divisors, default=rows)


def _empty(shape: tuple[int, ...], kind: type) -> np.ndarray:
    """As `np.empty`, but begun where JAX can take it over for its CPU device without a copy."""
    size = math.prod(shape) * np.dtype(kind).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(kind).reshape(shape)
