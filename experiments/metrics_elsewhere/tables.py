"""The tables of the page: which package prints which column, and which column it should equal."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dcjax.collapse import ranks, views
from experiments.metrics_elsewhere import changes
from experiments.metrics_elsewhere.formulas import (
    entropy_rank,
    google_alpha,
    google_coherence,
    google_self_cluster,
    jax_lidar,
    lidar_values,
    lightly_std,
)
from experiments.metrics_elsewhere.matrices import Pairs
from experiments.metrics_elsewhere.peers import (
    embedding_quality,
    fitted,
    iso_score,
    reptrix_alpha,
    reptrix_alpha_again,
    reptrix_lidar,
    reptrix_rankme,
)

SAME = 1e-4  # relative difference up to which two numbers count as equal
# Columns that others are compared with.
EXACT, PAPER, EIGENVALUES = "scikit-dimension, exact distances", "paper, delta 1e-4", "reptrix, eigenvalues"


class Column(NamedTuple):
    """A column of a table.

    Attributes:
      name: of the package, with * where its formula is restated here.
      value: of the rows; None where the package does not offer it.
      against: the column that it should equal; empty where there is none.
      cause: the key of `causes.CAUSES` that explains a difference.
    """

    name: str
    value: Callable[[Any], Any]
    against: str = ""
    cause: str = ""


def ours_lidar(pairs: Pairs) -> float | None:
    """dcjax's LiDAR, which takes two views."""
    return views.lidar(pairs.z[:, 0], pairs.z[:, 1]) if pairs.z.shape[1] == 2 else None


def ours(name: str, title: str = "dcjax") -> Column:
    """The column of a measure of dcjax."""
    return Column(title, lambda rows: rows.ours(name))


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
        ours("coherence"),
        Column("google-research*", lambda rows: google_coherence(rows.svd[0]), "dcjax", "null"),
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
        ours("two_nn"),
        Column(EXACT, changes.exact_two_nn, "dcjax", "copies"),
        Column("scikit-dimension", lambda rows: fitted("TwoNN", rows.z), EXACT, "zeros"),
    ],
    "TwoNN, maximum likelihood": [
        ours("two_nn_mle"),
        Column(
            "scikit-dimension, distinct rows",
            lambda rows: fitted("TwoNN", rows.distinct.z, method="mle"),
            "dcjax",
            "censored",
        ),
    ],
}
VIEW_TABLES = {
    "LiDAR": [
        Column(PAPER, lambda pairs: entropy_rank(lidar_values(*pairs.by_image), 1e-7)),
        Column("dcjax", ours_lidar, PAPER),
        Column("stable-pretraining*", lambda pairs: entropy_rank(lidar_values(*pairs.by_image) + 1e-8, 0), PAPER),
        Column("the same in JAX*", lambda pairs: jax_lidar(*pairs.by_label), PAPER, "labels"),
        Column(EIGENVALUES, changes.lidar_of_eigenvalues, PAPER, "delta"),
        Column("reptrix", reptrix_lidar, EIGENVALUES, "PCA"),
    ],
}
TABLES = {"matrices": MATRIX_TABLES, "manifolds": MANIFOLD_TABLES, "views": VIEW_TABLES}


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
