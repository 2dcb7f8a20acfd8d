"""The directions of given rows that a linear layer keeps at the end of training by a cosine loss, by invasion.

The rates of `dcjax.collapse.forecast` hold at the start. At the end another argument holds: take the directions in
the order of the correlation of two views along them, let the embedding use the first k of them equally, and ask
whether the next one would grow from nothing. Its unused rate is positive where its correlation is above the margin of
an embedding of these k; see `dcjax.collapse.forecast`. Correlations fall with k, and the margin grows as long as the
views agree in the directions in use, so there is a k at which growth ends. All later directions collapse, however
large their variance is. An encoder that learns changes the correlations themselves; this holds for a linear layer on
fixed rows.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from dcjax.collapse.forecast import COSINES, LOSSES, check_loss, paired_rows

# Directions with a smaller share of the largest variance carry nothing that could be whitened.
NEGLIGIBLE = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class Lasting:
    """The directions that last.

    Attributes:
      correlations: `[k]`, of the two views along the directions, descending; k is the rank of the rows.
      readers: `[d, k]`, as columns the vectors a whose coordinates a.x have these correlations and variance 1, and are
        uncorrelated with each other.
      count: how many of them last, the first ones; found by bisection.
    """

    correlations: Float[np.ndarray, " k"]
    readers: Float[np.ndarray, "d k"]
    count: int

    @property
    def lost(self) -> Float[np.ndarray, "d m"]:
        """An orthonormal basis of the right directions v with W v = 0 where W reads the lasting coordinates alone."""
        return np.linalg.qr(self.readers[:, : self.count], mode="complete")[0][:, self.count :]


def lasting_directions(
    x: Any, x_prime: Any, *, loss: str = "info_nce", temperature: float, batch_size: int | None = None
) -> Lasting:
    """Finds the directions that last.

    The result depends on the rows alone, not on a W or its scale, and not on the mean of the rows, which is taken off.

    Args:
      x: `[n, d]`, rows of the first view.
      x_prime: `[n, d]`, the second view of the same images in the same order.
      loss: `info_nce` or `nt_xent`.
      temperature: of the loss.
      batch_size: how many rows compete as negatives, as in the training; the more, the smaller the margin. The
        correlations are those of all rows, and the margin is the mean over whole batches. None makes one batch.

    Returns:
      The directions, in float64.

    Raises:
      ValueError: as `forecast`; or all rows are alike, the loss has no cosines, or the batch size is not in 2..n.
    """
    if loss not in COSINES:
        raise ValueError(f"loss must be {' or '.join(COSINES)}, found {loss}")
    check_loss(loss, temperature)
    first, second = (rows - rows.mean(axis=0) for rows in paired_rows(x, x_prime)[0])
    size = len(first) if batch_size is None else batch_size
    if not 2 <= size <= len(first):
        raise ValueError(f"batch_size must be from 2 to the {len(first)} rows, found {batch_size}")
    values, vectors = np.linalg.eigh((first.T @ first + second.T @ second) / (2 * len(first)))
    kept = values > NEGLIGIBLE * values[-1]
    if not kept.any():
        raise ValueError("the rows must differ, found all of them alike")
    whitening = vectors[:, kept] / np.sqrt(values[kept])
    first, second = first @ whitening, second @ whitening
    shared = first.T @ second / len(first)
    correlations, rotation = np.linalg.eigh((shared + shared.T) / 2)
    correlations, rotation = correlations[::-1], rotation[:, ::-1]
    first, second = first @ rotation, second @ rotation

    def grows(used: int) -> bool:
        """Whether the direction after the first `used` ones grows from nothing."""
        rate = 0.0
        for start in range(0, len(first) - size + 1, size):
            x, x_prime = (view[start : start + size, : used + 1] for view in (first, second))
            _, unused, _ = LOSSES[loss](x, x_prime, x[:, :used], x_prime[:, :used], temperature)
            rate += float(unused[-1, -1])
        return rate > 0

    low, high = 1, len(correlations)  # the first direction lasts; `high` is the least count known to be enough
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if grows(middle) else (low, middle)
    return Lasting(correlations, whitening @ rotation, low)
