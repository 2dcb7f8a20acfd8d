"""Embeddings of any library as NumPy arrays, a block of rows at a time."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

MAX_DIM = 1 << 15  # matrices [d, d] of 8 GiB
MAX_ENTRY = 1e70  # fourth powers are finite
BLOCK_BYTES = 1 << 23  # of a block in float64: enough rows for fast products, little beside a matrix [2048, 2048]


def blocks(z: Any) -> Iterator[np.ndarray]:
    """The rows of z as NumPy arrays `[m, d]` of real numbers, a block at a time.

    Args:
      z: an array of any library, or an iterable of batches; see `spectrum`.

    Raises:
      ValueError: z, or a batch, does not have the shape `[n, d]` with d >= 1, holds no real numbers, or the batches
        differ in d.
    """
    whole = as_array(z)
    dim = None
    for part in [whole] if whole is not None else z:
        batch = part if whole is not None else as_array(part)
        if batch is None or batch.ndim != 2 or batch.shape[1] < 1:
            found = type(part).__name__ if batch is None else batch.shape
            raise ValueError(f"{'z' if whole is not None else 'a batch'} must have the shape [n, d], found {found}")
        if not is_real(batch.dtype):
            raise ValueError(f"z must hold real numbers, found {batch.dtype}")
        dim = dim or batch.shape[1]
        if batch.shape[1] != dim:
            raise ValueError(f"batches must have the same d, found {dim} and {batch.shape[1]}")
        if dim > MAX_DIM:
            raise ValueError(f"d must be at most {MAX_DIM:,}, for matrices [d, d] in memory, found {dim:,}")
        rows = max(BLOCK_BYTES // (8 * dim), 64)
        for start in range(0, len(batch), rows):
            block = np.asarray(batch[start : start + rows])
            native = np.dtype(np.float64) if block.dtype == np.longdouble else block.dtype.newbyteorder("=")
            yield block.astype(native, copy=False)


def as_array(z: Any) -> np.ndarray | None:
    """z as a NumPy array without a copy where its library allows that; None for what is an iterable of batches."""
    if isinstance(z, np.ndarray):
        return z
    if hasattr(z, "detach"):  # a PyTorch tensor that is part of a graph refuses to be converted
        z = z.detach()
    if hasattr(z, "__array__"):
        try:
            return np.asarray(z)
        except (TypeError, RuntimeError):  # PyTorch: in bfloat16, or on an accelerator
            if not hasattr(z, "__dlpack__"):
                raise
    if hasattr(z, "__dlpack__"):
        import jax  # here, because it takes a second, and NumPy's DLPack knows neither bfloat16 nor accelerators

        return np.asarray(jax.dlpack.from_dlpack(z))
    if isinstance(z, list | tuple) and not any(hasattr(part, "shape") for part in z):
        try:
            return np.asarray(z)
        except ValueError as error:
            raise ValueError("z must have the shape [n, d], found rows of different lengths") from error
    if isinstance(z, Iterable):
        return None
    raise ValueError(f"z must be an array [n, d] or an iterable of batches, found {type(z).__name__}")


def is_real(dtype: np.dtype) -> bool:
    """Whether a dtype holds real numbers: integers, booleans, and floats of 16 bits or more including bfloat16."""
    return dtype.kind in "biu" or (dtype.kind == "f" and dtype.itemsize > 1) or dtype.name == "bfloat16"


def check_finite(block: np.ndarray) -> None:
    """Raises `ValueError` if a block has entries that are not finite, or so large that their powers are not."""
    if not np.isfinite(block).all():
        raise ValueError("z must be finite, found NaN or inf")
    if block.dtype == np.float64 and block.size and np.abs(block).max() > MAX_ENTRY:
        raise ValueError(f"entries must be at most {MAX_ENTRY:g} in size, found {np.abs(block).max():g}; scale them")


def unit_rows(z: np.ndarray) -> Float[np.ndarray, "n d"]:
    """The rows in float64, each divided by its norm; rows of zeros stay zeros."""
    z = np.asarray(z, np.float64)
    largest = np.abs(z).max(axis=1, keepdims=True, initial=0)
    z = np.divide(z, largest, out=np.zeros_like(z), where=largest > 0)  # squares neither overflow nor vanish
    norms = np.linalg.norm(z, axis=1, keepdims=True)
    return np.divide(z, norms, out=z, where=norms > 0)
