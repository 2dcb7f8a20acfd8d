"""Running statistics of a stream of rows that are no moments: a sample, the digits of the entries, sums of classes."""

import hashlib
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

SEED = 0
MAX_CLASSES = 1 << 15


class ClassSums:
    """Running sizes, means and variances of classes, whose labels may come in any order."""

    def __init__(self) -> None:
        self._shift: np.ndarray | None = None
        self._sums: dict[Any, list[Any]] = {}

    def update(self, rows: np.ndarray, labels: np.ndarray) -> None:
        """Adds rows `[m, d]`, m >= 1, with their labels `[m]`."""
        rows = np.asarray(rows, np.float64)
        if self._shift is None:
            self._shift = rows.mean(axis=0)
        y = rows - self._shift
        for label in np.unique(labels):
            own = y[labels == label]
            terms = (len(own), own.sum(axis=0), float((own**2).sum()))
            old = self._sums.get(label.item(), [0, 0.0, 0.0])
            if len(self._sums) >= MAX_CLASSES and label.item() not in self._sums:
                raise ValueError(f"labels must name at most {MAX_CLASSES:,} classes, found more")
            self._sums[label.item()] = [total + term for total, term in zip(old, terms, strict=True)]

    def sizes(self) -> np.ndarray:
        """`[c]`, in the order of the sorted labels."""
        return np.array([float(self._sums[label][0]) for label in sorted(self._sums)])

    def means(self) -> np.ndarray:
        """`[c, d]`."""
        return np.stack([self._shift + self._sums[label][1] / self._sums[label][0] for label in sorted(self._sums)])

    def variances(self) -> np.ndarray:
        """`[c]`, E |z - mean of the class|^2."""
        sums = [self._sums[label] for label in sorted(self._sums)]
        return np.array([max(squares / n - float(((total / n) ** 2).sum()), 0.0) for n, total, squares in sums])


class Distinct:
    """Counts distinct rows, up to a number beyond which no more are counted."""

    def __init__(self, most: int):
        self._most = most
        self._hashes: set[bytes] = set()

    def update(self, rows: np.ndarray) -> None:
        """Looks at rows `[m, d]`."""
        for row in rows:
            if len(self._hashes) >= self._most:
                return
            self._hashes.add(hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest())

    @property
    def count(self) -> int:
        """The number, at most `most`."""
        return len(self._hashes)


class FourthMoment:
    """The running sum of |z_i - mean|^4, although the mean is known at the end only."""

    def __init__(self) -> None:
        self._shift: np.ndarray | None = None
        self._cubes: Any = 0.0  # sum of |y|^2 y, y = z - shift
        self._quartics = 0.0  # sum of |y|^4

    def update(self, rows: np.ndarray) -> None:
        """Adds rows `[m, d]`, m >= 1."""
        rows = np.asarray(rows, np.float64)
        if self._shift is None:
            self._shift = rows.mean(axis=0)
        y = rows - self._shift
        squares = np.einsum("ij,ij->i", y, y)
        self._cubes = self._cubes + squares @ y
        self._quartics += float(squares @ squares)

    def about_mean(self, n: int, mean: np.ndarray, covariance: np.ndarray) -> float:
        """The sum, from the number, the mean and the covariance (divisor n) of the same rows."""
        if self._shift is None:
            return 0.0
        # |y - a|^4 with a = mean - shift, multiplied out; sum y = n a and sum y y^T = n (C + a a^T).
        a = mean - self._shift
        aa, trace, along = a @ a, np.trace(covariance), a @ covariance @ a
        return float(
            self._quartics - 4 * self._cubes @ a + 4 * n * (along + aa**2) + 2 * n * aa * (trace + aa) - 3 * n * aa**2
        )


class Sample:
    """A uniform sample of rows from a stream: those with the smallest random numbers, in their order."""

    def __init__(self, size: int):
        self._size = size
        self._random = np.random.default_rng(SEED)
        self._seen = 0
        self._keys = np.zeros(0)
        self._order = np.zeros(0, np.int64)
        self._parts: list[Any] = []

    def update(self, *parts: np.ndarray | None) -> None:
        """Adds rows; each part `[m, ...]` is cut alike, and a part may be None throughout."""
        count = next(len(part) for part in parts if part is not None)
        keys, order = self._random.random(count), self._seen + np.arange(count)
        self._seen += count
        if self._parts and len(self._keys) == self._size:
            keep = keys < self._keys.max()
            keys, order, parts = keys[keep], order[keep], tuple(None if p is None else p[keep] for p in parts)
        keys, order = np.concatenate([self._keys, keys]), np.concatenate([self._order, order])
        if self._parts:
            pairs = zip(self._parts, parts, strict=True)
            parts = tuple(None if new is None else np.concatenate([old, new]) for old, new in pairs)
        chosen = np.sort(np.argsort(keys, kind="stable")[: self._size])
        self._keys, self._order = keys[chosen], order[chosen]
        self._parts = [None if part is None else np.array(part[chosen]) for part in parts]

    def parts(self) -> list[Any]:
        """The chosen rows of each part."""
        return self._parts


class Digits:
    """Recognises entries that were rounded to fewer digits than their array holds, such as bfloat16 in a float32 file.

    Entries count as rounded to a dtype if all of them are equal to their rounding, and if the last digit of a tenth or
    more of those that are not zero is set, which round numbers do not have. Integers, also in an array of floats, count
    as exact.
    """

    NARROW: ClassVar = (ml_dtypes.bfloat16, np.float16, np.float32)

    def __init__(self) -> None:
        self._dtype: np.dtype | None = None
        self._possible: dict[np.dtype, int] = {}
        self._nonzero = 0
        self._integral = True

    def update(self, block: np.ndarray) -> None:
        """Looks at a block of finite entries."""
        if self._dtype is None:
            self._dtype = block.dtype
            if block.dtype in (np.float32, np.float64):
                narrower = (np.dtype(dtype) for dtype in self.NARROW if np.dtype(dtype).itemsize < block.dtype.itemsize)
                self._possible = dict.fromkeys(narrower, 0)
        self._integral = self._integral and bool((np.rint(block) == block).all())
        self._nonzero += int(np.count_nonzero(block)) if self._possible else 0
        for dtype in list(self._possible):
            with np.errstate(over="ignore"):
                rounded = block.astype(dtype)
            if (rounded.astype(block.dtype) == block).all():
                bits = rounded.view(f"u{dtype.itemsize}")
                self._possible[dtype] += int(np.count_nonzero((bits & 1).astype(bool)))
            else:
                del self._possible[dtype]

    @property
    def dtype(self) -> np.dtype:
        """The dtype whose digits the entries have."""
        assert self._dtype is not None
        if self._integral:
            return self._dtype
        found = [dtype for dtype, odd in self._possible.items() if self._nonzero and odd >= self._nonzero / 10]
        return found[0] if found else self._dtype

    def rounding_variance(self, mean_square: Any) -> Any:
        """The variance of the rounding of entries of a mean square, at most: a unit in the last place squared / 12."""
        if self._integral:
            return 0.0 * mean_square
        info = ml_dtypes.finfo(self.dtype)
        return (float(info.eps) ** 2 * mean_square + float(info.smallest_subnormal) ** 2) / 12
