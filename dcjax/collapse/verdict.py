"""The verdict on an embedding: complete, dimensional or no collapse, with the reason and what to try next."""

import dataclasses
from typing import Any, Literal

import numpy as np

from dcjax.collapse.quantities import Quantities
from dcjax.collapse.ranks import TOLERANCE

Kind = Literal["none", "complete", "dimensional", "undetermined"]

# Rows count as alike if their root mean square distance from the mean is at most this share of their root mean square
# norm, or the rounding of their entries. It is the spread that float32 leaves to a network that maps all images to one
# point: single outputs differ by a few units in the last place, 1e-7.
ALIKE = 1e-6

# With two views: augmentation explains collapsed directions in which it makes up this share of the variance, or more,
# that is, varies at least as much as the images themselves do. There X of Lemma 2 can be negative.
NOISE_SHARE = 0.5

# Pairs of rows with so large a share of noise, as `_noise` measures it, are not views of the same images.
UNPAIRED = 0.48

# Arithmetic leaves up to so many units in the last place in an entry, more than its own rounding. Below that, two views
# of an image differ as much as two images do, whatever the cause of the collapse.
ARITHMETIC = 30

# Rows are too few where isotropic ones would have an eigenvalue of so small a share of the largest: where they are less
# than 1.3 % more than the columns.
TOO_FEW = 1e-5

# A direction counts as spread over the columns if it has so large a share of them, as 1 / sum v^4.
SPREAD_SHARE = 0.25

# What the collapsed directions look like: the words for the reason, and what to try next.
CAUSES = {
    "columns": (
        "each is a single column",
        "look for channels that a ReLU keeps at zero; a lower learning rate or another initialisation may revive them",
    ),
    "constraint": (
        "it is one direction over most columns, as LayerNorm, softmax and centring of the rows leave it",
        "if the last layer normalises the rows so, nothing can fill this direction; compare with its input",
    ),
    "augmentation": (
        "in them the two views of an image differ nearly as much as two images do: this fits the paper's first cause, "
        "an augmentation stronger than the data's own variation there",
        "weaken the augmentation (crops and colour first), or put a projector between the representation and the loss",
    ),
    "depth": (
        "in them the two views of an image still agree: this fits the paper's second cause, the implicit "
        "regularisation that lets the small singular values of several layers lag behind",
        "compare with a run whose projector is fixed (DirectCLR) or has one layer less, and look at --weights",
    ),
    "unpaired": (
        "the rows of the two views differ as much as those of any two images, so the cause cannot be told",
        "check that both files hold the same images in the same order",
    ),
    "equal": (
        "the two views are equal, so the cause cannot be told",
        "pass two different augmentations of each image",
    ),
    "nothing": (
        "only the rounding of arithmetic is left in them, so the cause cannot be told from the views",
        "look at the rank of the last layers (--weights)",
    ),
    "unknown": (
        "",
        "pass the other views of the same images (--views) to see whether augmentation dominates these directions, and "
        "compare with an embedding of the same encoder before training",
    ),
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A verdict.

    Attributes:
      kind: "none", "complete", "dimensional" or "undetermined".
      reason: a sentence.
      next: what to try, in a sentence; empty where there is nothing to mend.
      collapsed: directions at or below `threshold`; for complete collapse d, undetermined None.
      threshold: the tolerance times the largest eigenvalue, or the largest collapsed one where rounding decides.
      floor: what rounding alone would leave in the direction of the smallest eigenvalue.
      stored: the dtype whose digits the entries have.
    """

    kind: Kind
    reason: str
    next: str
    collapsed: int | None
    threshold: float
    floor: float
    stored: str


def judge(z: Any, *, tolerance: float = TOLERANCE, views: Quantities | None = None) -> Verdict:
    """Judges an embedding by the eigenvalues of its covariance.

    Complete collapse: all rows are alike, within `ALIKE` of their norm or within rounding. Dimensional collapse: at
    least one direction at or below `tolerance` of the largest, or below the floor of rounding. The default tolerance of
    1e-6, a thousandth of the largest standard deviation, lies below what trained encoders without collapse show and
    above the floor of entries in float16; in bfloat16 the floor decides. Undetermined: too few distinct rows for the
    dimensions, so that any embedding would show eigenvalues near zero; a single row.

    The verdict says nothing about the accuracy on a task; measures of this kind have been reported to correlate
    negatively with dense prediction (arXiv 2510.17299).

    Args:
      z: `[n, d]`, as for `metrics`, or `Quantities`.
      tolerance: a share of the largest eigenvalue, in [0, 1).
      views: of pairs of views, from which the verdict also tells which of the paper's two causes fits; None for those
        of z, if it has any.

    Raises:
      ValueError: the tolerance is out of range, or z cannot be used.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be in [0, 1), found {tolerance}")
    quantities = z if isinstance(z, Quantities) else Quantities(z)
    views = quantities if views is None and quantities.paired else views
    n, d, values = quantities.count, quantities.dim, quantities.eigenvalues
    directions = Directions(quantities, tolerance)
    least, floor = tolerance * float(values[0]), float(directions.floors[-1])
    threshold = max(least, float(values[directions.collapsed].max(initial=0)))
    stored = quantities.digits.dtype.name

    def verdict(kind: Kind, reason: str, advice: str, collapsed: int | None) -> Verdict:
        return Verdict(kind, reason, advice, collapsed, threshold, floor, stored)

    more = f"pass more than {d} distinct rows, better {10 * d}"
    if n == 1:
        return verdict("undetermined", "a single row has no spread", more, None)
    spread, norm = np.sqrt(values.sum()), np.sqrt(directions.squares.sum())
    if spread <= ALIKE * norm or (values <= directions.floors).all():
        reason = f"all {n} rows are alike: their distance from the mean is {_share(spread, norm)} of their norm"
        advice = "train with negatives, a predictor or a variance term, and check the learning rate and the temperature"
        return verdict("complete", reason, advice, d)
    if quantities.distinct.count <= d:
        rows = f"{n} rows" if quantities.distinct.count == n else f"{quantities.distinct.count} distinct rows"
        return verdict("undetermined", f"{rows} cannot fill {d} dimensions", more, None)
    isotropic = ((1 - (d / n) ** 0.5) / (1 + (d / n) ** 0.5)) ** 2
    if isotropic <= TOO_FEW:
        reason = f"{n} isotropic rows of {d}, too, have an eigenvalue of {isotropic:.0e} of the largest"
        return verdict("undetermined", reason, more, None)
    collapsed = int(directions.collapsed.sum())
    if not collapsed:
        reason = f"the smallest of the {d} eigenvalues is {_share(values[-1], values[0])} of the largest"
        return verdict("none", f"{reason}, above {threshold / values[0]:.1e}", "", 0)
    limit = f"{tolerance:g} of the largest" + (f" or the rounding of {stored} entries" if threshold > least else "")
    words, advice = CAUSES[directions.cause(views)]
    reason = f"{collapsed} of {d} eigenvalues {'is' if collapsed == 1 else 'are'} at or below {limit}"
    reason += f"; {words}" if words else ""
    if count := int(directions.constant.sum()):
        reason += f" ({count} of the columns {'is' if count == 1 else 'are'} constant or nearly so)"
    return verdict("dimensional", reason, advice, collapsed)


class Directions:
    """The principal directions of an embedding beside what rounding alone would leave in them.

    Rounding errors are nearly independent, so their covariance is nearly diagonal: a direction v has sum_k v_k^2 r_k of
    it, r_k the rounding variance of column k. n rows widen this to (1 + sqrt(d / n))^2 (Marchenko & Pastur), and the
    arithmetic of the eigenvalues adds a share of the largest.

    Attributes:
      squares: `[d]`, the mean square of each column.
      floors: `[d]`, for each eigenvalue what rounding would leave in its direction.
      collapsed: `[d]`, whether the eigenvalue is at or below its floor or the tolerance.
      constant: `[d]`, whether the variance of a column is at or below its rounding or a millionth of the largest
        variance of a column. Columns of a rotated embedding have much smaller variances than its largest eigenvalue.
    """

    def __init__(self, quantities: Quantities, tolerance: float):
        self._quantities, self._least = quantities, tolerance * float(quantities.eigenvalues[0])
        n, d, values = quantities.count, quantities.dim, quantities.eigenvalues
        variances = np.diag(quantities.covariance)
        self.squares = variances + quantities.moments.mean**2
        self._rounding = quantities.digits.rounding_variance(self.squares) * (1 + np.sqrt(d / n)) ** 2
        own = quantities.moments.noise * float(values[0])
        if values[-1] > max(self._least, float(self._rounding.max()) + own):
            self.floors = np.full(d, float(self._rounding.max()) + own)  # above the floor of every direction
        else:
            self.floors = self._of(quantities.vectors, self._rounding) + own
        self.collapsed = values <= np.maximum(self._least, self.floors)
        self.constant = variances <= np.maximum(TOLERANCE * float(variances.max()), self._rounding)

    def cause(self, views: Quantities | None) -> str:
        """A key of `CAUSES`.

        In the collapsed directions that are not single columns, the variance of half the difference of two views,
        relative to that of all views, is near 0 where the views of an image agree, and 1/2 where they differ as much as
        those of two images.
        """
        kept = ~self.constant
        if kept.all():
            values, vectors = self._quantities.eigenvalues, self._quantities.vectors
        else:
            values, vectors = np.linalg.eigh(self._quantities.covariance[np.ix_(kept, kept)])
        flat = values <= np.maximum(self._least, self._of(vectors, self._rounding[kept]))
        values, vectors = values[flat], vectors[:, flat]
        if not vectors.shape[1]:
            return "columns"
        arithmetic = self._of(vectors, 12 * ARITHMETIC**2 * self._rounding[kept])
        if vectors.shape[1] == 1 and 1 / (vectors**4).sum() >= SPREAD_SHARE * kept.sum() and values[0] <= arithmetic[0]:
            return "constraint"
        if views is None or len(views.rows) < 2:
            return "unknown"
        if np.array_equal(views.rows, views.rows_prime):
            return "equal"
        if _noise(views.rows, views.rows_prime) >= UNPAIRED:
            return "unpaired"
        first, second = (rows[:, kept] @ vectors for rows in (views.rows, views.rows_prime))
        if np.concatenate([first, second]).var(axis=0).sum() <= arithmetic.sum():
            return "nothing"
        return "augmentation" if _noise(first, second) >= NOISE_SHARE / 2 else "depth"

    @staticmethod
    def _of(vectors: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
        """v^T diag v for the columns v."""
        return np.einsum("ki,k->i", vectors**2, diagonal)


def _noise(first: np.ndarray, second: np.ndarray) -> float:
    """The variance of half the difference of paired rows relative to that of all rows: 1/2 for unrelated pairs."""
    spread = np.concatenate([first, second]).var(axis=0).sum()
    return float((((first - second) / 2) ** 2).mean(axis=0).sum() / spread) if spread else 0.0


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1e}" if whole else "0"
