"""Why numbers differ: a sentence for the page, and the change that makes two numbers equal."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dcjax.collapse import ranks
from experiments.metrics_elsewhere import changes
from experiments.metrics_elsewhere.formulas import entropy_rank, jax_lidar, lidar_values, lightly_std
from experiments.metrics_elsewhere.matrices import DIM, Rows
from experiments.metrics_elsewhere.peers import embedding_quality, iso_score, reptrix_alpha_again, reptrix_rankme

EXPLAINED = 1e-6  # difference up to which a change explains another one: relative, and absolute for numbers below 1


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
        "singular values of the rows as they are. With eigenvalues 1 / j it reads [[RankMe|lam_j = 1 / j|reptrix]] "
        "instead of [[RankMe|lam_j = 1 / j|dcjax]].",
        "dcjax's `rankme` of the eigenvalues",
        "matrices",
        reptrix_rankme,
        lambda rows: ranks.rankme(rows.quantities.eigenvalues[: min(rows.z.shape)]),
    ),
    "columns": Cause(
        "Participation ratio, dimensionality: its default also treats the columns as a sample of infinitely many "
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
        changes.cut_alpha,
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
        changes.fitted_alpha,
        lambda rows: rows.ours("alpha_req"),
    ),
    "null": Cause(
        "Coherence, google-research: it takes min(n, d) left singular vectors whatever the rank, and those of the "
        "singular values 0 are arbitrary. Rank 1 reads [[Coherence|rank 1|google-research*]] instead of Candes & "
        "Recht's [[Coherence|rank 1|dcjax]].",
        "the vectors up to the rank",
        "matrices",
        changes.cut_coherence,
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
        "TwoNN with duplicates, scikit-dimension: it leaves out rows that have a duplicate, with a warning, but other "
        "rows still find both copies at one distance, a ratio of 1. Where a third of the rows are there twice it reads "
        "[[TwoNN, linear fit|8 columns, a third of the rows twice|scikit-dimension]] instead of the "
        "[[TwoNN, linear fit|8 columns, a third of the rows twice|dcjax]] of the distinct rows.",
        "the distinct rows",
        "manifolds",
        changes.distinct_two_nn,
        lambda rows: rows.ours("two_nn"),
    ),
    "zeros": Cause(
        "TwoNN with duplicates in more than 25 columns, scikit-dimension: it computes distances from squares, whose "
        "rounding leaves many duplicates a little above 0 apart, so they are not left out and have huge ratios: "
        "[[TwoNN, linear fit|8 of 512 directions, a third of the rows twice|scikit-dimension]] instead of the "
        "[[TwoNN, linear fit|8 columns, a third of the rows twice|scikit-dimension]] of the same points in 8 columns.",
        "distances from differences of rows; on the other side the same points in 8 columns",
        "manifolds",
        changes.exact_two_nn,
        changes.low_two_nn,
    ),
    "censored": Cause(
        "TwoNN by maximum likelihood, scikit-dimension: it censors the largest tenth of the ratios and corrects the "
        "bias: [[TwoNN, maximum likelihood|8 columns|scikit-dimension, distinct rows]] instead of "
        "[[TwoNN, maximum likelihood|8 columns|dcjax]].",
        "`discard_fraction=0`, times n / (n - 1)",
        "manifolds",
        changes.uncensored,
        lambda rows: rows.ours("two_nn_mle"),
    ),
    "labels": Cause(
        "LiDAR, stable-pretraining in JAX: its classes are the labels, not the images, so it is at most the number of "
        "labels less 1: [[LiDAR|10 views|the same in JAX*]] instead of [[LiDAR|10 views|paper, delta 1e-4]].",
        "each image its own label",
        "views",
        lambda pairs: jax_lidar(*pairs.by_image),
        lambda pairs: entropy_rank(lidar_values(*pairs.by_image) + 1e-8, 0),
    ),
    "delta": Cause(
        "LiDAR, reptrix: it divides S_w by n, where the paper takes the unbiased n (q - 1), and it adds a delta of "
        "1e-6, not 1e-4. Where rows have norm 1 the paper's delta is not small, and with the eigenvalues of reptrix's "
        "matrix LiDAR reads [[LiDAR|2 views, norm 1|reptrix, eigenvalues]] instead of "
        "[[LiDAR|2 views, norm 1|paper, delta 1e-4]].",
        "`del_sigma_augs=1e-4 * (q - 1)`, and the eigenvalues of its matrix",
        "views",
        changes.lidar_of_equal_delta,
        lambda pairs: entropy_rank(lidar_values(*pairs.by_image), 1e-7),
    ),
    "PCA": Cause(
        "LiDAR, reptrix: it runs a PCA on the rows of the LiDAR matrix in place of taking the matrix's eigenvalues, so "
        "its shares are about those of the squared eigenvalues: [[LiDAR|10 views|reptrix]] instead of "
        "[[LiDAR|10 views|reptrix, eigenvalues]].",
        "the eigenvalues of its matrix; on the other side delta 1e-6 / (q - 1)",
        "views",
        changes.lidar_of_eigenvalues,
        changes.lidar_of_small_delta,
    ),
}


def check(name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """How many pairs of numbers a cause's change makes equal, and their largest difference.

    Raises:
      ValueError: the change no longer makes two numbers equal.
    """
    cause = CAUSES[name]
    pairs = [(cause.one(rows), cause.other(rows)) for rows in inputs.values()]
    found = np.array([pair for pair in pairs if None not in pair], float)
    errors = np.abs(found[:, 0] - found[:, 1]) / np.maximum(np.abs(found[:, 1]), 1)
    if not errors.max() <= EXPLAINED:
        raise ValueError(f"'{name}' no longer explains a difference: {found[errors.argmax()]} should be equal")
    return {"compared": len(found), "largest difference": float(f"{errors.max():.1g}")}
