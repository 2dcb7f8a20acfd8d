"""A look at an embedding during its training: spectra, measures, a verdict, and a warning when collapse sets in."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dcjax.collapse.arrays import unit_rows
from dcjax.collapse.metrics import measure
from dcjax.collapse.quantities import Quantities
from dcjax.collapse.verdict import judge
from dcjax.collapse.weights import projector_alignment

# Of r and of z; cheap ones, which differ in what they see.
MEASURES = (
    "effective_rank", "rankme", "participation_ratio", "stable_rank", "alpha_req", "collapsed_dimensions", "unit_std",
    "mean_cosine", "uniformity", "alignment",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Look:
    """What the monitor saw at a step.

    Attributes:
      step: optimiser steps taken.
      values: measures by `r/...`, `z/...`, `projector/...`; not finite ones are left out.
      verdicts: kind of collapse by "r" and "z", as `judge` names it.
      advice: reason and next step by "r" and "z", for a warning.
      spectra: eigenvalues `[d]` of the covariance (eq. 1) of the rows divided by their norms, by "r" and "z".
    """

    step: int
    values: dict[str, float]
    verdicts: dict[str, str]
    advice: dict[str, str]
    spectra: dict[str, Float[np.ndarray, " d"]]


def look(
    step: int,
    views: Mapping[str, Float[np.ndarray, "n d"]],
    *,
    values: Mapping[str, float] | None = None,
    matrices: Sequence[np.ndarray] | None = None,
) -> Look:
    """Measures r and z of two views of n images.

    Args:
      step: optimiser steps taken.
      views: "r", "r_prime", "z" and "z_prime", `[n, d]` each.
      values: further values to record.
      matrices: the last convolution's kernel `[inputs, d]` and the projector's matrix `[d, e]`, for their alignment.

    Raises:
      ValueError: some rows are not finite.
    """
    found, verdicts, advice, spectra = dict(values or {}), {}, {}, {}
    same = np.array_equal(views["r"], views["z"])  # without a projector
    for name in ("r", "z"):
        if name == "z" and same:
            found |= {key.replace("r/", "z/", 1): value for key, value in found.items() if key.startswith("r/")}
            for part in (verdicts, advice, spectra):
                part["z"] = part["r"]
            break
        rows, others = views[name], views[f"{name}_prime"]
        quantities = Quantities(rows, others)
        found |= {f"{name}/{key}": value for key, value in measure(quantities, MEASURES).items()}
        found |= {f"{name}/{key}": value for key, value in similarities(rows, others).items()}
        verdict = judge(quantities)
        verdicts[name] = verdict.kind
        advice[name] = f"{verdict.reason}; {verdict.next}" if verdict.next else verdict.reason
        spectra[name] = quantities.unit_eigenvalues
    if matrices is not None:
        found |= {f"projector/{key}": value for key, value in projector_alignment(*matrices).items()}
    finite = {key: float(value) for key, value in found.items() if np.isfinite(value)}
    return Look(step, finite, verdicts, advice, spectra)


def similarities(rows: np.ndarray, rows_prime: np.ndarray) -> dict[str, float]:
    """The mean cosine of positives, and that of negatives, across the two views."""
    units, others = unit_rows(np.asarray(rows, np.float64)), unit_rows(np.asarray(rows_prime, np.float64))
    count = len(units)
    positive = float((units * others).sum())
    total = float(units.sum(axis=0) @ others.sum(axis=0))
    negative = (total - positive) / (count * (count - 1)) if count > 1 else float("nan")
    return {"positive_similarity": positive / count, "negative_similarity": negative}


def warnings_of(history: Sequence[Mapping[str, Any]], seen: Look) -> list[str]:
    """Warnings in words at a look.

    Args:
      history: the rows of earlier looks, in their order: "step", "monitor", "verdict" and "warnings".
      seen: the look.
    """
    return []
