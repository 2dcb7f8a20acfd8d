"""The matrices that all packages get."""

import functools
from typing import Any, NamedTuple

import numpy as np

from dcjax.collapse import unit_rows
from dcjax.collapse.metrics import measure
from dcjax.collapse.quantities import Quantities

DIM, LIDAR_DIM, LABELS = 512, 128, 10


class Rows:
    """Rows `[n, d]` and what several columns need of them.

    Args:
      z: `[n, d]`.
      known: the eigenvalues of their covariance `[d]`, descending, where z was made from them and has mean 0.
      low: the same points `[n, k]` in fewer columns, where z was made from them.
    """

    def __init__(self, z: np.ndarray, known: np.ndarray | None = None, low: np.ndarray | None = None):
        self.z, self.known, self.low = z, known, low
        self.quantities = Quantities(z)

    @functools.cached_property
    def svd(self) -> tuple[np.ndarray, np.ndarray]:
        """The left singular vectors and the singular values of the rows."""
        return np.linalg.svd(self.z, full_matrices=False)[:2]

    @functools.cached_property
    def rank(self) -> int:
        """How many singular values exceed the rounding."""
        return int((self.svd[1] > max(self.z.shape) * np.finfo(np.float64).eps * self.svd[1][0]).sum())

    @functools.cached_property
    def ratios(self) -> dict[str, float]:
        """The participation ratios of `dimensionality`."""
        from dimensionality import participation_ratio

        return participation_ratio(self.z, return_all=True)

    @functools.cached_property
    def distinct(self) -> "Rows":
        """The rows without their duplicates."""
        return Rows(np.unique(self.z, axis=0))

    def ours(self, name: str) -> float:
        """A measure of dcjax; nan where it is not defined."""
        return measure(self.quantities, [name]).get(name, float("nan"))


def exact(random: np.random.Generator, eigenvalues: np.ndarray) -> Rows:
    """1,024 rows with mean 0 whose covariance has these eigenvalues."""
    count = 1024
    left = random.standard_normal((count, DIM))
    left = np.linalg.qr(left - left.mean(axis=0))[0]
    right = np.linalg.qr(random.standard_normal((DIM, DIM)))[0]
    known = np.zeros(DIM)
    known[: len(eigenvalues)] = eigenvalues
    return Rows(np.sqrt(count) * left * np.sqrt(known) @ right.T, known)


def make_matrices() -> dict[str, Rows]:
    """The embeddings, by name."""
    random = np.random.default_rng(0)
    normal = random.standard_normal((2048, DIM))
    return {
        "N(0, I), n = 2,048": Rows(normal),
        "N(3, I), n = 2,048": Rows(normal + 3),
        "ReLU of N(0, I), n = 2,048": Rows(np.maximum(normal, 0)),
        "N(0, I), n = 128": Rows(random.standard_normal((128, DIM))),
        "rank 1": exact(random, np.ones(1)),
        "rank 30": exact(random, np.ones(30)),
        "rank 90": exact(random, np.ones(90)),
        "half collapsed": exact(random, np.ones(DIM // 2)),
        "lam_j = 1 / j": exact(random, 1 / np.arange(1, DIM + 1)),
    }


def make_manifolds() -> dict[str, Rows]:
    """Normal rows in 8 directions, with and without duplicates, for TwoNN."""
    random = np.random.default_rng(1)
    low = random.standard_normal((1500, 8))
    high = low @ np.linalg.qr(random.standard_normal((DIM, 8)))[0].T
    twice = random.permutation(np.r_[np.arange(1500), np.arange(500)])  # a third of the rows are there twice
    return {
        "8 columns": Rows(low),
        "8 columns, a third of the rows twice": Rows(low[twice]),
        "8 of 512 directions": Rows(high, low=low),
        "8 of 512 directions, a third of the rows twice": Rows(high[twice], low=low[twice]),
    }


class Pairs(NamedTuple):
    """Views `[n, q, d]` of n images, and the images' labels `[n]`."""

    z: np.ndarray
    labels: np.ndarray

    def grouped(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All views as rows `[n q, d]`, and the group of each from those of the images `[n]`."""
        return self.z.reshape(-1, self.z.shape[2]), np.repeat(groups, self.z.shape[1])

    @property
    def by_image(self) -> tuple[np.ndarray, np.ndarray]:
        """Views of one image are a group, as in the paper."""
        return self.grouped(np.arange(len(self.z)))

    @property
    def by_label(self) -> tuple[np.ndarray, np.ndarray]:
        """Views of all images of a label are a group."""
        return self.grouped(self.labels)


def make_views() -> dict[str, Pairs]:
    """2 and 10 views of 1,000 images of 10 labels, as they are and with norm 1."""
    random = np.random.default_rng(2)
    scales = np.arange(1, LIDAR_DIM + 1) ** -0.5
    labels = np.arange(1000) % LABELS
    images = (random.standard_normal((LABELS, LIDAR_DIM))[labels] + random.standard_normal((1000, LIDAR_DIM))) * scales
    found = {}
    for count in (2, 10):
        z = images[:, None] + 0.1 * random.standard_normal((1000, count, LIDAR_DIM))
        found[f"{count} views"] = Pairs(z, labels)
        found[f"{count} views, norm 1"] = Pairs(unit_rows(z.reshape(-1, LIDAR_DIM)).reshape(z.shape), labels)
    return found


def make_inputs() -> dict[str, dict[str, Any]]:
    """The inputs of all tables, by kind and name."""
    return {"matrices": make_matrices(), "manifolds": make_manifolds(), "views": make_views()}
