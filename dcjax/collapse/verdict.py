"""The verdict on an embedding: complete, dimensional or no collapse, with the reason and what to try next."""

import dataclasses
from typing import Literal

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

CAUSES = {
    "augmentation": (
        "in the collapsed directions the two views of an image differ nearly as much as two images do: this fits the "
        "paper's first cause, an augmentation stronger than the data's own variation there",
        "weaken the augmentation (crops and colour first), or put a projector between the representation and the loss",
    ),
    "depth": (
        "the two views of an image still agree in the collapsed directions: this fits the paper's second cause, the "
        "implicit regularisation that lets the small singular values of several layers lag behind",
        "compare with a run whose projector is fixed (DirectCLR) or has one layer less, and look at --weights",
    ),
    "nothing": (
        "only rounding is left there, so the cause cannot be told",
        "look for constant columns, such as channels that a ReLU keeps at zero; a lower learning rate may revive them",
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
      threshold: the eigenvalue that separates them: the larger of tolerance times the largest and `floor`.
      floor: the eigenvalue that rounding alone can leave.
      stored: the dtype whose digits the entries have.
    """

    kind: Kind
    reason: str
    next: str
    collapsed: int | None
    threshold: float
    floor: float
    stored: str


def judge(quantities: Quantities, *, tolerance: float = TOLERANCE, views: Quantities | None = None) -> Verdict:
    """Judges an embedding by the eigenvalues of its covariance.

    Complete collapse: all rows are alike, within `ALIKE` of their norm or within rounding. Dimensional collapse: at
    least one direction at or below `tolerance` of the largest, or below the floor of rounding. The default tolerance of
    1e-6, a thousandth of the largest standard deviation, lies below what trained encoders without collapse show and
    above the floor of entries in float16; in bfloat16 the floor decides. Undetermined: a single row, or no more rows
    than columns, whose covariance has zeros whatever the embedding is like.

    The verdict says nothing about the accuracy on a task; measures of this kind have been reported to correlate
    negatively with dense prediction (arXiv 2510.17299).

    Args:
      quantities: of the embedding.
      tolerance: a share of the largest eigenvalue, in [0, 1).
      views: of pairs of views, from which the verdict also tells which of the paper's two causes fits.

    Raises:
      ValueError: the tolerance is out of range.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be in [0, 1), found {tolerance}")
    n, d = quantities.count, quantities.dim
    values, stored = quantities.eigenvalues, quantities.digits.dtype.name
    squares = np.diag(quantities.covariance) + quantities.moments.mean**2  # of each column, the mean
    floor = rounding_floor(quantities, float(squares.max()))
    threshold = max(tolerance * float(values[0]), floor)

    def verdict(kind: Kind, reason: str, advice: str, collapsed: int | None) -> Verdict:
        return Verdict(kind, reason, advice, collapsed, threshold, floor, stored)

    if n == 1:
        return verdict("undetermined", "a single row has no spread", f"pass more than {d} rows", None)
    spread, norm = np.sqrt(values.sum()), np.sqrt(squares.sum())
    if spread <= ALIKE * norm or values[0] <= floor:
        reason = f"all {n} rows are alike: their distance from the mean is {_share(spread, norm)} of their norm"
        advice = "train with negatives, a predictor or a variance term, and check the learning rate and the temperature"
        return verdict("complete", reason, advice, d)
    if n <= d:
        reason = f"{n} rows cannot fill {d} dimensions, so directions without variance mean nothing"
        return verdict("undetermined", reason, f"pass more than {d} rows, better {10 * d}", None)
    collapsed = int((values <= threshold).sum())
    if not collapsed:
        reason = f"the smallest of the {d} eigenvalues is {_share(values[-1], values[0])} of the largest"
        return verdict("none", f"{reason}, above {threshold / values[0]:.1e}", "", 0)
    if floor > tolerance * values[0]:
        limit = f"the rounding of {stored} entries, {floor / values[0]:.1e} of the largest"
    else:
        limit = f"{tolerance:g} of the largest"
    cause, advice = CAUSES[likely_cause(quantities, threshold, views)]
    verb = "is" if collapsed == 1 else "are"
    reason = f"{collapsed} of {d} eigenvalues {verb} at or below {limit}" + (f"; {cause}" if cause else "")
    dead = int((np.diag(quantities.covariance) <= floor).sum())
    if dead:
        reason += f" ({dead} of the columns {'is' if dead == 1 else 'are'} constant)"
    return verdict("dimensional", reason, advice, collapsed)


def rounding_floor(quantities: Quantities, mean_square: float) -> float:
    """The largest eigenvalue that the rounding of the entries leaves to directions without variance.

    Rounding errors are nearly independent, so their covariance is nearly diagonal, with at most the rounding variance
    of the largest column; n rows widen its eigenvalues to (1 + sqrt(d / n))^2 times this (Marchenko & Pastur). The
    arithmetic of the eigenvalues themselves adds its own rounding.
    """
    n, d = quantities.count, quantities.dim
    stored = quantities.digits.rounding_variance(mean_square) * (1 + np.sqrt(d / n)) ** 2
    return max(stored, quantities.moments.noise * float(quantities.eigenvalues[0]))


def likely_cause(quantities: Quantities, threshold: float, views: Quantities | None) -> str:
    """A key of `CAUSES`, from how far the views of an image differ in the collapsed directions.

    The variance of half the difference of two views, relative to that of all views there, is near 0 where the views of
    an image agree, and 1/2 where they differ as much as those of two images.
    """
    if views is None or len(views.rows) < 2:
        return "unknown"
    values, vectors = np.linalg.eigh(quantities.covariance)
    collapsed = vectors[:, values <= threshold]
    half = (views.rows - views.rows_prime) / 2
    both = np.concatenate([views.rows, views.rows_prime])
    spread = ((both - both.mean(axis=0)) @ collapsed).var(axis=0).sum()
    rounding = views.digits.rounding_variance(float((both**2).mean(axis=0).max()))
    if spread <= rounding * collapsed.shape[1]:
        return "nothing"
    return "augmentation" if ((half @ collapsed) ** 2).mean(axis=0).sum() >= NOISE_SHARE / 2 * spread else "depth"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1e}" if whole else "0"
