"""Batches that several threads fill together, each thread a chunk of the rows."""

import math
import threading
import weakref

import numpy as np

Batch = dict[str, np.ndarray]

ALIGNMENT = 64  # bytes


class SharedBatch:
    """The arrays of one batch, in an object that can be referred to weakly."""

    def __init__(self, arrays: Batch):
        self.arrays = arrays


class Assembly:
    """The batches that are being read. Chunks are read into their places, since joining them later costs a fifth more.

    A batch stays known for as long as a chunk of it, being read or already read, refers to it. So all chunks of a batch
    share its arrays, and a batch that a seek drops leaves nothing behind.

    Args:
      rows: rows of a batch.
      arrays: the shape of a row and the dtype, by name.
    """

    def __init__(self, rows: int, **arrays: tuple[tuple[int, ...], type]):
        self._rows = rows
        self._arrays = arrays
        self._open: weakref.WeakValueDictionary[int, SharedBatch] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def open(self, batch: int, start: int, count: int) -> tuple[SharedBatch, Batch]:
        """The batch of a number, and `count` of its rows from `start` on as views of its arrays."""
        with self._lock:
            shared = self._open.get(batch)
            if shared is None:
                arrays = {key: _empty((self._rows, *shape), kind) for key, (shape, kind) in self._arrays.items()}
                shared = self._open[batch] = SharedBatch(arrays)
        return shared, {key: array[start : start + count] for key, array in shared.arrays.items()}


def chunk_of(rows: int, largest: int) -> int:
    """The rows of a chunk: the largest divisor of a batch's rows that is useful, so that no chunk spans two batches."""
    divisors = [d for d in range(largest // 8, largest + 1) if rows % d == 0]
    return max(divisors, default=rows)


def _empty(shape: tuple[int, ...], kind: type) -> np.ndarray:
    """`np.empty`, aligned so that JAX's CPU device uses the array without a copy."""
    size = math.prod(shape) * np.dtype(kind).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(kind).reshape(shape)
