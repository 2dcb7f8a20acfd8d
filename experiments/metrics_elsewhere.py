"""The same matrices through other packages: the numbers that they print, and why some differ.

Claim:     packages that cite one paper print different numbers, and one change to each explains its difference.
Command:   python -m experiments.metrics_elsewhere      (in an environment of its own, made by the two lines below)
               python -m venv peers && . peers/bin/activate
               pip install -e . torch==2.13.0 embedding-quality==0.1.1 dimensionality==0.1.4 IsoScore==2.0.1 \
                   scikit-dimension==0.5.0 reptrix==0.1.0
Cost:      a minute on one core.
Look for:  experiments/metrics_elsewhere.md, which this command writes; the last table holds the changes and how closely
           they agree. The command fails where a change no longer explains a difference.
"""

import functools
import importlib.metadata
import importlib.util
import json
import pathlib
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import scipy.linalg

from dcjax.collapse import ranks, unit_rows, views
from dcjax.collapse.metrics import measure
from dcjax.collapse.quantities import Quantities
from dcjax.runtime import cli
from dcjax.runtime.errors import SettingError
from dcjax.runtime.files import replace_text
from experiments.records import RESULTS, rounded

PAGE = pathlib.Path(__file__).with_suffix(".md")
# Module to distribution, of the packages that are run.
PEERS = {
    "embedding_quality": "embedding-quality==0.1.1",
    "dimensionality": "dimensionality==0.1.4",
    "IsoScore": "IsoScore==2.0.1",
    "skdim": "scikit-dimension==0.5.0",
    "reptrix": "reptrix==0.1.0",
    "torch": "torch==2.13.0",
}
DIM, LIDAR_DIM, LABELS = 512, 128, 10
SAME = 1e-4  # relative difference up to which two numbers count as equal
EXPLAINED = 1e-6  # the same for a number after the change that explains its difference


class Column(NamedTuple):
    """A column of a table.

    Attributes:
      name: of the package, with * where its formula is restated here.
      value: of the rows; None where the package does not offer it.
      against: the column that it should equal; empty for no judgement.
      cause: the key of `CAUSES` that explains a difference.
    """

    name: str
    value: Callable[[Any], Any]
    against: str = ""
    cause: str = ""


class Rows:
    """Rows `[n, d]` and what several columns need of them.

    Args:
      z: `[n, d]`.
      known: the eigenvalues of their covariance `[d]`, descending, where z was made from them and has mean 0.
    """

    def __init__(self, z: np.ndarray, known: np.ndarray | None = None):
        self.z, self.known = z, known
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

    @property
    def repeats(self) -> bool:
        """Whether some rows are duplicates."""
        return len(self.distinct.z) < len(self.z)

    def leverage(self, rank: int | None = None) -> float:
        """The largest squared norm of a row of the first left singular vectors, or of all of them."""
        return (self.svd[0][:, :rank] ** 2).sum(axis=1).max()

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
        "8 of 512 directions": Rows(high),
        "8 of 512 directions, a third of the rows twice": Rows(high[twice]),
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
    """What the tables of `TABLES` are of."""
    return {"matrices": make_matrices(), "manifolds": make_manifolds(), "views": make_views()}


# Formulas of code that is not run, restated from the sources that the page names.


def entropy_rank(values: np.ndarray, eps: float) -> float:
    """exp(-sum p ln p), p = values / sum + eps."""
    p = values / values.sum() + eps
    return float(np.exp(-np.sum(p * np.log(p, out=np.zeros_like(p), where=p > 0))))


def google_alpha(s: np.ndarray) -> float:
    """The slope of ln s over an index that falls evenly from 1 to 0."""
    return float(np.polyfit(np.linspace(1, 0, len(s)), np.log(s + 1e-12), 1)[0])


def google_self_cluster(z: np.ndarray) -> float:
    """(|Z Z^T|_F^2 - e) / (n^2 - e) of unit rows, e = n + n (n - 1) / d."""
    n, d = z.shape
    unit, expected = z / np.linalg.norm(z, axis=1, keepdims=True), n + n * (n - 1) / d
    return float((((unit @ unit.T) ** 2).sum() - expected) / (n**2 - expected))


def lightly_std(z: np.ndarray) -> float:
    """The mean over columns of the standard deviation of unit rows, divisor n - 1."""
    return float(unit_rows(z).std(axis=0, ddof=1).mean())


def lidar_values(z: np.ndarray, groups: np.ndarray, *, delta: float = 1e-4, unbiased: bool = True) -> np.ndarray:
    """The eigenvalues of S_w^-1/2 S_b S_w^-1/2, with delta I added to S_w, of rows `[n q, d]` in groups `[n q]`."""
    sizes = np.bincount(groups)
    means = np.stack([z[groups == g].mean(axis=0) for g in range(len(sizes))])
    between, within = means - means.mean(axis=0), z - means[groups]
    counts = (len(sizes) - 1, len(z) - len(sizes)) if unbiased else (len(sizes), len(z))
    within = within.T @ within / counts[1] + delta * np.eye(z.shape[1])
    return np.maximum(scipy.linalg.eigh(between.T @ between / counts[0], within, eigvals_only=True), 0)


def jax_lidar(z: np.ndarray, groups: np.ndarray) -> float:
    """LiDAR of stable-pretraining's code in JAX."""
    values = lidar_values(z, groups)
    return entropy_rank(values / values.sum() + 1e-12, 0)


# Packages that are run.


def embedding_quality(name: str, rows: Rows) -> Any:
    """A measure of embedding-quality."""
    from embedding_quality.evaluation import UnsupervisedEmbeddingQualityEvaluation

    return getattr(UnsupervisedEmbeddingQualityEvaluation, name)(rows.z)


def reptrix_rankme(rows: Rows) -> float:
    """RankMe of reptrix."""
    import torch
    from reptrix.rankme import get_rankme

    return get_rankme(torch.from_numpy(rows.z))


def reptrix_alpha(rows: Rows, fit_range: np.ndarray | None = None) -> float:
    """alpha of reptrix, by default fitted to the zero-based indices 10..99; it changes `fit_range`."""
    import torch
    from reptrix.alpha import get_alpha

    return get_alpha(torch.from_numpy(rows.z), fit_range=fit_range)[0]


def reptrix_alpha_again(rows: Rows) -> float | None:
    """The second of two calls with the same array as the range of the fit."""
    if rows.rank < 100:
        return None
    fit_range = np.arange(10, 100)
    reptrix_alpha(rows, fit_range)
    return reptrix_alpha(rows, fit_range)


def reptrix_lidar(pairs: Pairs) -> float:
    """LiDAR of reptrix."""
    import torch
    from reptrix.lidar import get_lidar

    return get_lidar(torch.from_numpy(pairs.z), *pairs.z.shape[:2])


def iso_score(z: np.ndarray) -> float | None:
    """IsoScore; None beyond 1,024 columns, where it takes long."""
    import torch
    from IsoScore.IsoScore import IsoScore

    return float(IsoScore(torch.from_numpy(z))) if z.shape[1] <= 1024 else None


def fitted(name: str, z: np.ndarray, **settings: Any) -> float:
    """The dimension that an estimator of scikit-dimension finds."""
    import skdim

    return getattr(skdim.id, name)(**settings).fit(z).dimension_


def censored(rows: Rows) -> float | None:
    """scikit-dimension's TwoNN by maximum likelihood; only where no duplicates change it as well."""
    return None if rows.repeats else fitted("TwoNN", rows.z, method="mle")


def ours_lidar(pairs: Pairs) -> float | None:
    """dcjax's LiDAR, which takes two views."""
    return views.lidar(pairs.z[:, 0], pairs.z[:, 1]) if pairs.z.shape[1] == 2 else None


def ours(name: str, title: str = "dcjax", against: str = "", cause: str = "") -> Column:
    """The column of a measure of dcjax."""
    return Column(title, lambda rows: rows.ours(name), against, cause)


def closed(function: Callable[[np.ndarray], float], title: str = "closed form") -> Column:
    """The column of a function of the known eigenvalues."""
    return Column(title, lambda rows: None if rows.known is None else function(rows.known))


# * marks a restated formula.
MATRIX_TABLES = {
    "RankMe": [
        closed(lambda lam: entropy_rank(np.sqrt(lam), 0), "closed form, eps 0"),
        ours("rankme"),
        ours("rankme_centered", "dcjax, centred"),
        Column("embedding-quality", lambda rows: embedding_quality("RankMe", rows), "dcjax"),
        Column("google-research*", lambda rows: entropy_rank(rows.svd[1], 1e-12), "dcjax", "eps"),
        Column("stable-pretraining*", lambda rows: entropy_rank(rows.svd[1], 1e-5), "dcjax", "eps"),
        Column("reptrix", reptrix_rankme, "dcjax", "eigenvalues"),
    ],
    "Participation ratio": [
        closed(ranks.participation_ratio),
        ours("participation_ratio"),
        Column("scikit-dimension", lambda rows: fitted("lPCA", rows.z, ver="participation_ratio"), "dcjax"),
        Column("dimensionality, naive", lambda rows: rows.ratios["naive"], "dcjax"),
        ours("participation_ratio_corrected", "dcjax, corrected"),
        Column("dimensionality, row", lambda rows: rows.ratios["row"], "dcjax, corrected"),
        Column("dimensionality, default", lambda rows: rows.ratios["both"], "dcjax, corrected", "columns"),
    ],
    "NESum": [
        closed(ranks.nesum),
        ours("nesum"),
        Column("embedding-quality", lambda rows: embedding_quality("NESum", rows), "dcjax", "complex"),
        Column("google-research*", lambda rows: ranks.nesum(np.linalg.eigvalsh(np.cov(rows.z.T))[::-1]), "dcjax"),
    ],
    "IsoScore": [
        closed(ranks.iso_score),
        ours("iso_score"),
        Column("IsoScore", lambda rows: iso_score(rows.z), "dcjax"),
        Column("IsoScore of Z^T", lambda rows: iso_score(rows.z.T), "dcjax", "orientation"),
    ],
    "alpha-ReQ": [
        closed(lambda lam: ranks.alpha_req(lam, len(lam))),
        ours("alpha_req"),
        Column("reptrix", reptrix_alpha, "dcjax", "rounding"),
        Column("reptrix, second call", reptrix_alpha_again, "dcjax", "in place"),
        Column("google-research*", lambda rows: google_alpha(rows.svd[1]), "dcjax", "linear index"),
    ],
    "Coherence": [
        Column("n / rank max", lambda rows: len(rows.z) / rows.rank * rows.leverage(rows.rank)),
        ours("coherence"),
        Column("google-research*", lambda rows: len(rows.z) / min(rows.z.shape) * rows.leverage(), "dcjax", "null"),
    ],
    "Standard deviation of unit rows": [
        ours("unit_std"),
        Column("lightly*", lambda rows: lightly_std(rows.z), "dcjax", "scale"),
    ],
    "Stable rank": [
        ours("stable_rank"),
        Column("embedding-quality", lambda rows: embedding_quality("Stable_rank", rows), "dcjax"),
        Column("google-research*", lambda rows: (rows.z**2).sum() / rows.svd[1][0] ** 2, "dcjax"),
    ],
    "SelfCluster": [
        ours("self_cluster"),
        Column("google-research*", lambda rows: google_self_cluster(rows.z), "dcjax"),
    ],
    "Pseudo-condition number": [
        ours("pseudo_condition_number"),
        Column("google-research*", lambda rows: rows.svd[1][-1] / rows.svd[1][0], "dcjax"),
    ],
}
MANIFOLD_TABLES = {
    "TwoNN, linear fit": [
        Column("distinct rows", lambda rows: rows.distinct.ours("two_nn")),
        ours("two_nn", "dcjax", "distinct rows", "copies"),
        Column("scikit-dimension", lambda rows: fitted("TwoNN", rows.z), "dcjax", "zeros"),
    ],
    "TwoNN, maximum likelihood": [
        Column("dcjax", lambda rows: None if rows.repeats else rows.ours("two_nn_mle")),
        Column("scikit-dimension", censored, "dcjax", "censored"),
    ],
}
PAPER = "paper, delta 1e-4"
VIEW_TABLES = {
    "LiDAR": [
        Column(PAPER, lambda pairs: entropy_rank(lidar_values(*pairs.by_image), 1e-7)),
        Column("dcjax", ours_lidar, PAPER, "divisor"),
        Column("stable-pretraining*", lambda pairs: entropy_rank(lidar_values(*pairs.by_image) + 1e-8, 0), PAPER),
        Column("the same in JAX*", lambda pairs: jax_lidar(*pairs.by_label), PAPER, "labels"),
        Column("reptrix", reptrix_lidar, PAPER, "PCA"),
    ],
}
TABLES = {"matrices": MATRIX_TABLES, "manifolds": MANIFOLD_TABLES, "views": VIEW_TABLES}


class Cause(NamedTuple):
    """Why numbers differ.

    Attributes:
      text: one sentence or two; [[table|row|column]] stands for a cell.
      change: what makes two numbers equal.
      inputs: what these numbers are of, a key of `make_inputs`.
      one, other: the numbers; either is None where the change does not apply.
    """

    text: str
    change: str
    inputs: str
    one: Callable[[Any], Any]
    other: Callable[[Any], Any]


def cut_alpha(rows: Rows) -> float | None:
    """reptrix's alpha, fitted to the eigenvalues above the rounding."""
    return reptrix_alpha(rows, np.arange(10, min(100, rows.rank))) if rows.rank > 12 else None


def fitted_alpha(rows: Rows) -> float | None:
    """google-research's fit, of ln lam_j on ln j in place of ln s_j on an even index, weights 1/j, j = 11..100."""
    j = np.arange(11, min(100, rows.rank) + 1)
    y = np.log(rows.quantities.eigenvalues[j - 1])
    return -float(np.polyfit(np.log(j), y, 1, w=j**-0.5)[0]) if len(j) > 2 else None


def kept_two_nn(rows: Rows) -> float:
    """scikit-dimension's TwoNN of the distances of the rows whose nearest row is further than the rounding."""
    distances = rows.quantities.neighbours[0][:, :2]
    return fitted("TwoNN", distances[distances[:, 0] > 1e-7 * distances.max()], dist=True)


def uncensored(rows: Rows) -> float | None:
    """scikit-dimension's TwoNN by maximum likelihood, of all ratios and with its bias."""
    n = len(rows.z)
    return None if rows.repeats else fitted("TwoNN", rows.z, method="mle", discard_fraction=0) * n / (n - 1)


def lidar_of_eigenvalues(pairs: Pairs) -> float:
    """reptrix's LiDAR with the eigenvalues of its matrix in place of a PCA of the matrix's rows."""

    def eigenvalues(activations_np: np.ndarray, **_: Any) -> np.ndarray:
        return np.linalg.eigvals(activations_np).real

    with mock.patch("reptrix.utils.get_eigenspectrum", eigenvalues):
        return reptrix_lidar(pairs)


def lidar_of_half_delta(pairs: Pairs) -> float | None:
    """dcjax's LiDAR with half of its delta."""
    with mock.patch.object(views, "LIDAR_DELTA", views.LIDAR_DELTA / 2):
        return ours_lidar(pairs)


# In the order of the page, which leaves out those that explain no difference in its tables.
CAUSES = {
    "eps": Cause(
        "RankMe, stable-pretraining and google-research: they add 1e-5 and 1e-12 to each share, not the paper's 1e-7. "
        "With 1e-5 the directions without variance count: rank 30 of 2,048 reads "
        "[[RankMe|rank 30 of 2,048|stable-pretraining*]] instead of [[RankMe|rank 30 of 2,048|dcjax]].",
        "eps 1e-7",
        "matrices",
        lambda rows: entropy_rank(rows.svd[1], 1e-7),
        lambda rows: rows.ours("rankme"),
    ),
    "eigenvalues": Cause(
        "RankMe, reptrix: it takes the eigenvalues of the covariance of the centred rows, where the paper takes the "
        "singular values of the rows as they are: [[RankMe|lam_j = 1 / j|reptrix]] instead of "
        "[[RankMe|lam_j = 1 / j|dcjax]].",
        "dcjax's `rankme` of the eigenvalues",
        "matrices",
        reptrix_rankme,
        lambda rows: ranks.rankme(rows.quantities.eigenvalues[: min(rows.z.shape)]),
    ),
    "columns": Cause(
        "Participation ratio, dimensionality: its default also treats the columns as a sample, of infinitely many "
        "neurons, but an embedding has all its columns. For isotropic rows the default divides by noise around 0: "
        "[[Participation ratio|N(0, I), n = 2,048|dimensionality, default]] instead of "
        "[[Participation ratio|N(0, I), n = 2,048|dimensionality, row]].",
        '`return_all=True` and its entry "row"',
        "matrices",
        lambda rows: rows.ratios["row"],
        lambda rows: rows.ours("participation_ratio_corrected"),
    ),
    "complex": Cause(
        "NESum, embedding-quality: it calls `numpy.linalg.eig`, which does not know that a covariance is symmetric, so "
        "the result is complex where the covariance is singular: [[NESum|N(0, I), n = 128|embedding-quality]] instead "
        "of [[NESum|N(0, I), n = 128|dcjax]].",
        "the real part",
        "matrices",
        lambda rows: embedding_quality("NESum", rows).real,
        lambda rows: rows.ours("nesum"),
    ),
    "orientation": Cause(
        "IsoScore: release 2.0.1 takes samples as rows, but the authors' first code takes dimensions as rows. A matrix "
        "made for one and given to the other reads [[IsoScore|N(0, I), n = 128|IsoScore of Z^T]] instead of "
        "[[IsoScore|N(0, I), n = 128|dcjax]], without an error.",
        "dcjax's `iso_score` of the transposed rows",
        "matrices",
        lambda rows: iso_score(rows.z.T),
        lambda rows: Rows(rows.z.T).ours("iso_score"),
    ),
    "rounding": Cause(
        "alpha-ReQ, reptrix: it fits ranks 11..100 whatever the rank, so below rank 100 it fits rounding errors: "
        "[[alpha-ReQ|rank 30|reptrix]] instead of 0 for 30 equal eigenvalues.",
        "a range of the fit that ends at the rank",
        "matrices",
        cut_alpha,
        lambda rows: rows.ours("alpha_req"),
    ),
    "in place": Cause(
        "alpha-ReQ, reptrix: `get_alpha` adds 1 to the caller's `fit_range` in place, so a second call with the same "
        "array fits ranks 12..101: it reads [[alpha-ReQ|N(0, I), n = 128|reptrix, second call]] after "
        "[[alpha-ReQ|N(0, I), n = 128|reptrix]].",
        "dcjax's `alpha_req` of ranks 12..101",
        "matrices",
        reptrix_alpha_again,
        lambda rows: ranks.alpha_req(rows.quantities.eigenvalues, len(rows.z), ranks=(12, 101)),
    ),
    "linear index": Cause(
        "alpha-ReQ, google-research: it regresses ln s_j of the rows as they are on an index that falls evenly from 1 "
        "to 0, not ln lam_j on ln j. N(0, I) reads [[alpha-ReQ|N(0, I), n = 2,048|google-research*]], near the 1 that "
        "counts as best, instead of [[alpha-ReQ|N(0, I), n = 2,048|dcjax]].",
        "ln lam_j on ln j, weights 1/j, j = 11..100",
        "matrices",
        fitted_alpha,
        lambda rows: rows.ours("alpha_req"),
    ),
    "null": Cause(
        "Coherence, google-research: it takes min(n, d) left singular vectors whatever the rank, and those of the "
        "singular values 0 are arbitrary. Rank 1 reads [[Coherence|rank 1|google-research*]]; dcjax stops at the rank "
        "and reads [[Coherence|rank 1|dcjax]] with the factor n / d, and with Candes & Recht's n / rank it would read "
        "[[Coherence|rank 1|n / rank max]].",
        "the vectors up to the rank, times n / d",
        "matrices",
        lambda rows: len(rows.z) / DIM * rows.leverage(rows.rank),
        lambda rows: rows.ours("coherence"),
    ),
    "scale": Cause(
        "Standard deviation of unit rows, lightly: it is not multiplied by sqrt d, so isotropic rows read 1 / sqrt d "
        "([[Standard deviation of unit rows|N(0, I), n = 2,048|lightly*]] instead of "
        "[[Standard deviation of unit rows|N(0, I), n = 2,048|dcjax]]), and its divisor is n - 1.",
        "times sqrt(d (n - 1) / n)",
        "matrices",
        lambda rows: lightly_std(rows.z) * np.sqrt(DIM * (1 - 1 / len(rows.z))),
        lambda rows: rows.ours("unit_std"),
    ),
    "copies": Cause(
        "TwoNN with duplicates, dcjax and scikit-dimension: they leave out rows that have a duplicate, but other rows "
        "still find both copies at one distance, a ratio of 1: "
        "[[TwoNN, linear fit|8 columns, a third of the rows twice|dcjax]] instead of "
        "[[TwoNN, linear fit|8 columns, a third of the rows twice|distinct rows]].",
        "distinct rows",
        "manifolds",
        lambda rows: fitted("TwoNN", rows.distinct.z),
        lambda rows: rows.distinct.ours("two_nn"),
    ),
    "zeros": Cause(
        "TwoNN with duplicates, scikit-dimension: it leaves out distances of exactly 0, but in many columns they are "
        "roots of rounded differences of squares, often not 0: "
        "[[TwoNN, linear fit|8 of 512 directions, a third of the rows twice|scikit-dimension]] instead of "
        "[[TwoNN, linear fit|8 of 512 directions, a third of the rows twice|dcjax]].",
        "distances above the rounding",
        "manifolds",
        kept_two_nn,
        lambda rows: rows.ours("two_nn"),
    ),
    "censored": Cause(
        "TwoNN by maximum likelihood, scikit-dimension: it censors the largest tenth of the ratios and corrects the "
        "bias: [[TwoNN, maximum likelihood|8 columns|scikit-dimension]] instead of "
        "[[TwoNN, maximum likelihood|8 columns|dcjax]].",
        "`discard_fraction=0`, times n / (n - 1)",
        "manifolds",
        uncensored,
        lambda rows: rows.ours("two_nn_mle"),
    ),
    "divisor": Cause(
        "LiDAR, dcjax: it divides S_w by n q, where the paper takes unbiased estimates, n (q - 1). For two views that "
        "doubles delta, which is not small where rows have norm 1: [[LiDAR|2 views, norm 1|dcjax]] instead of "
        "[[LiDAR|2 views, norm 1|paper, delta 1e-4]].",
        "half of delta",
        "views",
        lidar_of_half_delta,
        lambda pairs: entropy_rank(lidar_values(*pairs.by_image), 1e-7),
    ),
    "labels": Cause(
        "LiDAR, stable-pretraining in JAX: its classes are the labels, not the images, so it is at most the number of "
        "labels less 1: [[LiDAR|10 views|the same in JAX*]] instead of [[LiDAR|10 views|paper, delta 1e-4]].",
        "each image its own label",
        "views",
        lambda pairs: jax_lidar(*pairs.by_image),
        lambda pairs: entropy_rank(lidar_values(*pairs.by_image) + 1e-8, 0),
    ),
    "PCA": Cause(
        "LiDAR, reptrix: it runs a PCA on the rows of the LiDAR matrix, so its shares are about those of the squared "
        "eigenvalues: [[LiDAR|10 views|reptrix]] instead of [[LiDAR|10 views|paper, delta 1e-4]].",
        "its matrix's eigenvalues; delta 1e-6 / q and divisors n and n q on the other side",
        "views",
        lidar_of_eigenvalues,
        lambda pairs: entropy_rank(lidar_values(*pairs.by_image, delta=1e-6 / pairs.z.shape[1], unbiased=False), 1e-7),
    ),
}


def wide_rankme() -> dict[str, dict[str, float]]:
    """RankMe of 2,048 singular values of which some are 1 and the others 0."""
    eps = {"closed form, eps 0": 0, "google-research*": 1e-12, "stable-pretraining*": 1e-5}
    found = {}
    for rank in (1, 30, 360):
        s = (np.arange(2048) < rank).astype(float)
        found[f"rank {rank} of 2,048"] = {name: entropy_rank(s, e) for name, e in eps.items()} | {
            "dcjax": ranks.rankme(s)
        }
    return found


def cells(columns: Sequence[Column], rows: Any) -> dict[str, Any]:
    """The columns' numbers of some rows, as JSON can hold them."""
    found = {}
    for column in columns:
        value = column.value(rows)
        if value is None:
            continue
        if np.iscomplexobj(value):
            found[column.name] = f"{value.real:.6g}{value.imag:+.0e}j"
        else:
            found[column.name] = float(value) if np.isfinite(value) else str(value)
    return found


def compute() -> dict[str, Any]:
    """All numbers of the page.

    Raises:
      ValueError: a change no longer makes two numbers equal.
    """
    inputs = make_inputs()
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for kind, titles in TABLES.items():
        for title, columns in titles.items():
            rows = {name: cells(columns, one) for name, one in inputs[kind].items()}
            tables[title] = {name: row for name, row in rows.items() if row}
    tables["RankMe"] |= wide_rankme()
    checks = {}
    for name, cause in CAUSES.items():
        ones = [(cause.one(rows), rows) for rows in inputs[cause.inputs].values()]
        found = np.array([(one, cause.other(rows)) for one, rows in ones if one is not None], float)
        errors = np.abs(found[:, 0] - found[:, 1]) / np.maximum(np.abs(found[:, 1]), 1)
        if not errors.max() <= EXPLAINED:
            raise ValueError(f"'{name}' no longer explains a difference: {found[errors.argmax()]} should be equal")
        checks[name] = {"compared": len(found), "largest difference": float(f"{errors.max():.1g}")}
    versions = {peer.split("==")[0]: importlib.metadata.version(peer.split("==")[0]) for peer in PEERS.values()}
    return {"versions": versions, "tables": tables, "checks": checks}


INTRO = """# The measures of collapse in other packages

`python -m experiments.metrics_elsewhere` writes this page; its docstring has the command for its environment. The same
float64 matrices go to dcjax and to
{versions}.
Columns with * hold formulas that were restated from the sources named at the end; that code was not run. A row agrees
where its numbers differ by no more than 1e-4 of themselves; for other rows the last column names entries of this list.

## Where they differ, and why
"""
MATRICES = """## What each prints

The matrices have 512 columns. Those with n in their names are draws, and N(3, I) is the first one plus 3. "rank k" (k
equal eigenvalues), "half collapsed" (256) and "lam_j = 1 / j" have 1,024 rows, mean 0 and exactly these eigenvalues,
from which the closed forms are computed. Rows "of 2,048" are singular values alone."""
NOTES = {
    "RankMe": "The paper does not centre its rows; `rankme_centered` shows the number without their mean.",
    "Participation ratio": "The corrected ratios estimate that of infinitely many rows, so they exceed the closed "
    "form. The naive one of 128 rows should be near 1 / (1/512 + 1/128) = 102.4.",
    "Coherence": '"n / rank max" is Candes & Recht\'s n / rank max_i |U_i|^2.',
    "TwoNN, linear fit": 'Normal rows in 8 directions: 1,500, or 500 of them again as well. "Distinct rows" is dcjax '
    "without the copies.",
    "LiDAR": "1,000 images of 10 labels in 128 columns. dcjax takes two views, with which LiDAR reads higher than with "
    "ten, because S_w is estimated from fewer differences.",
}
CHANGES = (
    "One change each; the command fails where the numbers then differ by more than 1e-6 of the larger of them and 1."
)
SOURCES = """## Sources

- stable-pretraining 0.1.8: `callbacks/rankme.py`, `callbacks/lidar.py` and `jax/callbacks/lidar.py` below
  `stable_pretraining` of the release; the first two are also in sami-bg/stable-SSL, at 016447d and 1879d1d. The first
  two compute in float32, which changes the fifth digit.
- google-research/google-research: `graph_embedding/metrics/metrics.py` at 8d8a4f1. At 0d140c5 five of its functions
  fail when they are called without a singular value decomposition, because a test for None was inverted.
- lightly 1.6.0: `lightly/utils/debug.py` of the release.
- The first code of IsoScore: bcbi-edu/p_eickhoff_isoscore, `IsoScore.py` at 4715aa4.
- LiDAR with unbiased estimates: arXiv 2312.04000, as quoted in NVlabs/RADIO, pull request 22.
- reptrix keeps eigenvalues on purpose: BARL-SSL/reptrix, issue 16."""


def equal(value: Any, other: Any) -> bool:
    """Whether two cells agree; those that are no real number are strings."""
    if isinstance(value, str) or isinstance(other, str):
        return value == other
    return abs(value - other) <= SAME * max(abs(other), 1e-3)


def differences(columns: Sequence[Column], row: dict[str, Any]) -> list[str]:
    """The causes of a row's differences.

    Raises:
      ValueError: a difference has no cause.
    """
    found = []
    for column in columns:
        pair = row.get(column.name), row.get(column.against)
        if None not in pair and not equal(*pair):
            if not column.cause:
                raise ValueError(f"{column.name} is {pair[0]} and {column.against} {pair[1]}, and no cause is known")
            found.append(column.cause)
    return list(dict.fromkeys(found))


def shown(value: Any) -> str:
    """A cell of the page."""
    if isinstance(value, str):
        return value.replace("nan", "undefined")
    return "" if value is None else f"{value + 0:.6g}"  # + 0: no -0


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *body)]


def render(results: dict[str, Any]) -> str:
    """The page, from what `compute` found."""
    tables = results["tables"]
    columns = {title: found for titles in TABLES.values() for title, found in titles.items()}
    causes = {title: {n: differences(columns[title], row) for n, row in rows.items()} for title, rows in tables.items()}
    used = {cause for rows in causes.values() for found in rows.values() for cause in found}
    number = {cause: str(i) for i, cause in enumerate((cause for cause in CAUSES if cause in used), 1)}
    versions = [f"{name} {version}" for name, version in results["versions"].items() if name != "torch"]
    lines = [INTRO.format(versions=", ".join(versions))]
    for cause, i in number.items():
        text = re.sub(r"\[\[(.*?)\|(.*?)\|(.*?)\]\]", lambda m: shown(tables[m[1]][m[2]][m[3]]), CAUSES[cause].text)
        lines.append(f"{i}. {text}")
    lines += ["", MATRICES]
    agreeing = []
    for title, rows in tables.items():
        names = [column.name for column in columns[title] if any(column.name in row for row in rows.values())]
        if not any(causes[title].values()):
            agreeing.append(f"{title} ({', '.join(name for name in names if name != 'dcjax')})")
            continue
        lines += ["", f"### {title}", "", *([NOTES[title], ""] if title in NOTES else [])]
        body = []
        for name, row in rows.items():
            differing = ", ".join(number[cause] for cause in causes[title][name]) or "agrees"
            body.append([name, *(shown(row.get(column)) for column in names), differing])
        lines += markdown(["", *names, "differs by"], body)
    lines += ["", f"All agree, on every matrix: {'; '.join(agreeing)}."]
    lines += ["", "## What makes them equal", "", CHANGES, ""]
    body = [
        [i, CAUSES[cause].change, str(check["compared"]), f"{check['largest difference']:.0e}"]
        for cause, i in number.items()
        if (check := results["checks"][cause])
    ]
    lines += [*markdown(["", "change", "matrices", "largest difference"], body), "", SOURCES, ""]
    return "\n".join(lines)


def check_peers() -> None:
    """Raises `SettingError` unless all packages are installed."""
    missing = [peer for module, peer in PEERS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise SettingError(
            f"the packages to compare with must be installed, missing {', '.join(missing)}; "
            f"pip install {' '.join(PEERS.values())}"
        )


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser(prog="python -m experiments.metrics_elsewhere", description=__doc__ or "")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="where the numbers go")
    flags = parser.parse_args(argv)
    check_peers()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of other packages
        results = rounded(compute())
    replace_text(flags.results / "metrics_elsewhere.json", json.dumps(results, indent=1) + "\n")
    replace_text(PAGE, render(results))
    print(PAGE)


if __name__ == "__main__":
    cli.run(main)
