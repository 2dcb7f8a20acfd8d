"""What the measures of collapse are computed from: moments of all rows, and a sample of rows for pairs of rows."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dcjax.collapse.arrays import MAX_ENTRY, blocks, check_finite, unit_rows
from dcjax.collapse.moments import Moments, moments_for
from dcjax.collapse.running import SEED, ClassSums, Digits, Distinct, FourthMoment, Sample

SAMPLE = 5000  # rows that measures of pairs of rows look at: their time grows with the square
NEIGHBOURS = 10
DIRECTIONS = 1024  # random directions that rows are projected on
CLUSTERS = 10
# The quantities that are of the sample, not of all rows.
OF_SAMPLE = {
    "rows", "rows_prime", "units", "units_prime", "neighbours", "distinct_neighbours", "clusters", "classes",
}  # fmt: skip


class Quantities:
    """The quantities that the measures take, by the names of their parameters; each is computed once, when asked for.

    Moments are of all rows. Measures of single rows and of pairs of rows take a sample: all rows where they are at most
    `sample`, else as many of them, drawn without replacement by a fixed seed, in their order.

    Args:
      z: `[n, d]`, or an iterable of batches; read once.
      z_prime: the rows of the other views, in the same order; None for none.
      labels: `[n]`, the classes of the rows; None for none.
      sample: the most rows of the sample.
      skip_nonfinite: whether rows with NaN or inf are left out, with their pairs and labels, and counted in `skipped`,
        rather than refused.

    Raises:
      ValueError: as `spectrum`; the views or labels do not have as many rows as z; or there are no rows.
    """

    def __init__(
        self,
        z: Any,
        z_prime: Any = None,
        labels: Any = None,
        *,
        sample: int = SAMPLE,
        skip_nonfinite: bool = False,
    ):
        self.skipped = 0
        self.paired = z_prime is not None
        self._moments: Moments | None = None
        self._unit_moments: Moments | None = None
        self._fourth = FourthMoment()
        self._sums = ClassSums()
        self.digits = Digits()
        chosen = Sample(sample)
        count, largest = 0, 0.0
        for block, other, classes in _aligned(z, z_prime, labels):
            if skip_nonfinite:
                good = np.isfinite(block).all(axis=1)
                if other is not None:
                    good &= np.isfinite(other).all(axis=1)
                self.skipped += int((~good).sum())
                block = block[good]
                other, classes = (None if part is None else part[good] for part in (other, classes))
            check_finite(block)
            if other is not None:
                check_finite(other)
            if self._moments is None or self._unit_moments is None:
                self._moments, self._unit_moments = (moments_for(block.dtype, block.shape[1]) for _ in range(2))
                self.distinct = Distinct(block.shape[1] + 1)
            if not len(block):
                continue
            count += len(block)
            unit = unit_rows(block)
            self._moments.update(block)
            self._unit_moments.update(unit)
            self._fourth.update(block)
            self.digits.update(block)
            self.distinct.update(block)
            largest = max(largest, float(np.abs(block).max()))
            if classes is not None:
                self._sums.update(block, classes)
            chosen.update(block, other, classes)
        if not count:
            found = f"{self.skipped} rows, all with NaN or inf" if self.skipped else "none"
            raise ValueError(f"z must have at least one finite row, found {found}")
        if 0 < largest < 1 / MAX_ENTRY:
            raise ValueError(f"entries must be 0 or reach {1 / MAX_ENTRY:g} in size, found {largest:g}; scale them")
        self.count = count
        self._rows, self._rows_prime, self._labels = chosen.parts()

    @property
    def moments(self) -> Moments:
        assert self._moments is not None  # there are rows
        return self._moments

    @functools.cached_property
    def dim(self) -> int:
        """d."""
        return len(self.moments.mean)

    @functools.cached_property
    def eigenvalues(self) -> Float[np.ndarray, " d"]:
        """Of the covariance of all rows, divisor n, descending."""
        return self.moments.eigenvalues()

    @functools.cached_property
    def vectors(self) -> Float[np.ndarray, "d d"]:
        """The eigenvectors of `covariance` as columns, in the order of `eigenvalues`."""
        return np.linalg.eigh(self.covariance)[1][:, ::-1]

    @functools.cached_property
    def singular_values(self) -> Float[np.ndarray, " k"]:
        """Of all rows, not centred, descending; k = min(n, d)."""
        return self.moments.uncentered_singular_values()

    @functools.cached_property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Of all rows, divisor n."""
        return self.moments.covariance()

    @functools.cached_property
    def fourth_moment(self) -> float:
        """The sum of |z_i - mean|^4 over all rows."""
        return self._fourth.about_mean(self.count, self.moments.mean, self.covariance)

    @functools.cached_property
    def unit_mean(self) -> Float[np.ndarray, " d"]:
        """The mean of all rows divided by their norms."""
        assert self._unit_moments is not None
        return self._unit_moments.mean

    @functools.cached_property
    def unit_covariance(self) -> Float[np.ndarray, "d d"]:
        """The covariance of all rows divided by their norms, divisor n."""
        assert self._unit_moments is not None
        return self._unit_moments.covariance()

    @functools.cached_property
    def unit_eigenvalues(self) -> Float[np.ndarray, " d"]:
        """Of `unit_covariance`, descending."""
        assert self._unit_moments is not None
        return self._unit_moments.eigenvalues()

    @functools.cached_property
    def rows(self) -> Float[np.ndarray, "m d"]:
        """The sample in float64."""
        return np.asarray(self._rows, np.float64)

    @functools.cached_property
    def rows_prime(self) -> Float[np.ndarray, "m d"]:
        """The other views of the sample in float64."""
        return np.asarray(self._rows_prime, np.float64)

    @functools.cached_property
    def units(self) -> Float[np.ndarray, "m d"]:
        """The sample, each row divided by its norm."""
        return unit_rows(self.rows)

    @functools.cached_property
    def units_prime(self) -> Float[np.ndarray, "m d"]:
        """The other views of the sample, each divided by its norm."""
        return unit_rows(self.rows_prime)

    @property
    def class_sizes(self) -> Float[np.ndarray, " c"]:
        """How many rows each class has."""
        return self._sums.sizes()

    @functools.cached_property
    def class_means(self) -> Float[np.ndarray, "c d"]:
        """The means of the classes, over all rows."""
        return self._sums.means()

    @functools.cached_property
    def class_variances(self) -> Float[np.ndarray, " c"]:
        """E |z - mean of the class|^2 of each class, over all rows."""
        return self._sums.variances()

    @functools.cached_property
    def clusters(self) -> Int[np.ndarray, " m"]:
        """The k-means cells of the sample, 10 or as many as there are rows."""
        return k_means(self.rows, CLUSTERS)

    @functools.cached_property
    def classes(self) -> Int[np.ndarray, " m"]:
        """The sample's labels as 0, 1, ..."""
        return np.unique(self._labels, return_inverse=True)[1].reshape(-1)

    @functools.cached_property
    def neighbours(self) -> tuple[Float[np.ndarray, "m k"], Int[np.ndarray, "m k"]]:
        """Distances to the nearest other rows of the sample, ascending, and their indices; k is at most 10."""
        return nearest(self.rows, NEIGHBOURS)

    @functools.cached_property
    def distinct_neighbours(self) -> Float[np.ndarray, "p k"]:
        """Distances to the nearest other rows among the distinct rows of the sample, ascending."""
        distinct = np.unique(self.rows, axis=0)
        return self.neighbours[0] if len(distinct) == len(self.rows) else nearest(distinct, 2)[0]

    @functools.cached_property
    def directions(self) -> Float[np.ndarray, "c d"]:
        """Random directions of norm 1, the same for every embedding of d entries."""
        return unit_rows(np.random.default_rng(SEED).standard_normal((DIRECTIONS, self.dim)))

    @property
    def labelled(self) -> bool:
        return self._labels is not None


def _aligned(z: Any, z_prime: Any, labels: Any) -> Iterator[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]]:
    """Blocks of rows with their other views and labels, cut alike."""
    labels = None if labels is None else np.asarray(labels)
    if labels is not None and labels.ndim != 1:
        raise ValueError(f"labels must have the shape [n], found {labels.shape}")
    start, others, rest = 0, None if z_prime is None else blocks(z_prime), None
    for block in blocks(z):
        other = None
        if others is not None:
            parts, missing = [] if rest is None else [rest], len(block) - (0 if rest is None else len(rest))
            while missing > 0:
                part = next(others, None)
                if part is None:
                    raise ValueError(f"z_prime must have as many rows as z, found {start + len(block) - missing}")
                parts.append(part)
                missing -= len(part)
            joined = np.concatenate(parts) if len(parts) > 1 else parts[0]
            if joined.shape[1] != block.shape[1]:
                raise ValueError(f"z_prime must have as many columns as z, {block.shape[1]}, found {joined.shape[1]}")
            other, rest = joined[: len(block)], joined[len(block) :]
        classes = None if labels is None else labels[start : start + len(block)]
        start += len(block)
        if labels is not None and start > len(labels):
            raise ValueError(f"labels must be as many as the rows, found {len(labels)}")
        yield block, other, classes
    more = (0 if rest is None else len(rest)) + sum(len(part) for part in others or ())
    if more:
        raise ValueError(f"z_prime must have as many rows as z, {start}, found {start + more}")
    if labels is not None and len(labels) != start:
        raise ValueError(f"labels must be as many as the rows, {start}, found {len(labels)}")


def nearest(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances `[n, k]` to the nearest other rows, ascending, and their indices; k is `count`, or all there are."""
    from sklearn.neighbors import NearestNeighbors  # here, because it takes a second

    count = min(count, len(rows) - 1)
    if count < 1:
        return np.zeros((len(rows), 0)), np.zeros((len(rows), 0), np.int64)
    # About the mean, so that a large one costs the distances no digits.
    return NearestNeighbors(n_neighbors=count, algorithm="brute").fit(rows - rows.mean(axis=0)).kneighbors()


def k_means(rows: np.ndarray, clusters: int) -> Int[np.ndarray, " n"]:
    """The cell of each row, by k-means from a fixed seed; at most as many cells as there are different rows."""
    from sklearn.cluster import KMeans  # here, because it takes a second

    distinct = len(np.unique(rows, axis=0))
    options: Any = {"n_init": 1, "random_state": SEED}
    return np.asarray(KMeans(min(clusters, distinct), **options).fit_predict(rows))
