"""A look at an embedding during its training: spectra, measures, a verdict, and a warning when collapse sets in."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from dcjax.collapse.arrays import unit_rows
from dcjax.collapse.metrics import measure
from dcjax.collapse.plot import spectra_image
from dcjax.collapse.quantities import Quantities
from dcjax.collapse.ranks import TOLERANCE
from dcjax.collapse.verdict import Directions, judge
from dcjax.collapse.weights import projector_alignment

# Of r and of z; cheap ones, which differ in what they see.
MEASURES = (
    "effective_rank", "rankme", "participation_ratio", "stable_rank", "alpha_req", "unit_std", "mean_cosine",
    "uniformity", "alignment",
)  # fmt: skip

# When a look warns. Healthy runs of small ResNets stay on the other side of each with a margin
# (experiments/results/monitor.md).
CHANCE_MARGIN = 0.01  # the loss is at its chance line if it lies less than this share below it
FALLEN = 0.5  # share of the highest effective rank so far
DEAD = 0.25  # share of directions that have collapsed, single dead channels of a ReLU included
LOST = 0.05  # the same without these


@dataclasses.dataclass(frozen=True)
class Look:
    """What the monitor saw at a step.

    Attributes:
      step: optimiser steps taken.
      values: measures by `r/...`, `z/...`, `projector/...`; not finite ones are left out. `dim` is d, `collapsed` the
        directions that the verdict counts, `lost` those of them that are no single dead columns.
      verdicts: kind of collapse by "r" and "z", as `judge` names it.
      advice: reason and next step by "r" and "z", for a warning.
      spectra: eigenvalues `[d]` of the covariance (eq. 1) of the rows divided by their norms, by "r" and "z".
      image: the spectra as a picture.
    """

    step: int
    values: dict[str, float]
    verdicts: dict[str, str]
    advice: dict[str, str]
    spectra: dict[str, Float[np.ndarray, " d"]]
    image: UInt8[np.ndarray, "h w 3"] | None = None


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
        found[f"{name}/noise_share"] = noise_share(rows, others)
        verdict = judge(quantities)
        if verdict.collapsed is not None:  # otherwise the rows are too few to tell
            constant = int(Directions(quantities, TOLERANCE).constant.sum())
            lost = max(verdict.collapsed - constant, 0)
            found |= {f"{name}/dim": quantities.dim, f"{name}/collapsed": verdict.collapsed, f"{name}/lost": lost}
        verdicts[name] = verdict.kind
        advice[name] = f"{verdict.reason}; {verdict.next}" if verdict.next else verdict.reason
        spectra[name] = quantities.unit_eigenvalues
    if matrices is not None:
        found |= {f"projector/{key}": value for key, value in projector_alignment(*matrices).items()}
    finite = {key: float(value) for key, value in found.items() if np.isfinite(value)}
    return Look(step, finite, verdicts, advice, spectra, spectra_image(spectra))


def similarities(rows: np.ndarray, rows_prime: np.ndarray) -> dict[str, float]:
    """The mean cosine of positives, and that of negatives, across the two views."""
    units, others = unit_rows(np.asarray(rows, np.float64)), unit_rows(np.asarray(rows_prime, np.float64))
    count = len(units)
    positive = float((units * others).sum())
    total = float(units.sum(axis=0) @ others.sum(axis=0))
    negative = (total - positive) / (count * (count - 1)) if count > 1 else float("nan")
    return {"positive_similarity": positive / count, "negative_similarity": negative}


def noise_share(rows: np.ndarray, rows_prime: np.ndarray) -> float:
    """How much of the variance the augmentation makes: half the mean squared distance of two views, over the variance.

    0 where the views of an image agree, 1 where they differ as much as those of two images; nan without any variance.
    """
    both = np.concatenate([rows, rows_prime]).astype(np.float64)
    spread = both.var(axis=0).sum()
    noise = ((both[: len(rows)] - both[len(rows) :]) ** 2).sum(axis=1).mean() / 2
    return float(noise / spread) if spread else float("nan")


def warnings_of(history: Sequence[Mapping[str, Any]], seen: Look, *, warmup_steps: int = 0) -> dict[str, str]:
    """The warnings at a look that no earlier look had, by their kind, each with what to try next.

    A warning needs the same sign at two looks in a row, but for complete collapse and a fallen rank. The look before
    the first step only shows the initialisation, whose running statistics are not yet those of its activations.

    Args:
      history: the rows of the earlier looks, in their order: "step", "monitor", "verdict" and "warnings".
      seen: the look.
      warmup_steps: the warm-up of the learning rate, during which a loss may still be at its chance line.
    """
    if seen.step == 0:
        return {}
    rows = [row for row in history if row["step"] > 0]
    known = {kind for row in rows for kind in row["warnings"]}
    found = {}
    if not seen.spectra and seen.advice:
        found["unmeasured"] = seen.advice["z"]
    before = rows[-1]["monitor"] if rows else {}
    if rows and rows[-1]["step"] >= warmup_steps and _at_chance(before) and _at_chance(seen.values):
        found["chance"] = (
            f"the loss of the views, {seen.values['loss']:.3f}, has been at its chance line of "
            f"{seen.values['loss_chance']:.3f} since step {rows[-1]['step']}: the embedding tells no images apart. Try "
            "a lower learning rate or a longer warm-up, a temperature from 0.05 to 0.5, or weaker crops and colours"
        )
    for name in ("r", "z"):
        if seen.verdicts.get(name) == "complete":
            found[f"{name}/complete"] = f"{name} has collapsed to a point: {seen.advice[name]}"
        elif _few_directions(before, name) and _few_directions(seen.values, name):
            dim, count = seen.values[f"{name}/dim"], seen.values[f"{name}/collapsed"]
            found[f"{name}/dimensional"] = (
                f"{name} has lost {count:.0f} of its {dim:.0f} directions: {seen.advice[name]}"
            )
        ranks = [(row["monitor"].get(f"{name}/effective_rank", 0.0), row["step"]) for row in rows]
        best, step = max(ranks, default=(0.0, 0))
        now = seen.values.get(f"{name}/effective_rank", best)
        if now < FALLEN * best:
            found[f"{name}/rank"] = (
                f"the effective rank of {name} has fallen from {best:.1f} at step {step} to {now:.1f}: fewer and fewer "
                "directions are used. Try a lower learning rate, weaker crops and colours, or a projector between r "
                "and the loss"
            )
    if seen.verdicts and seen.spectra.get("z") is seen.spectra.get("r"):  # without a projector, said once
        found = {kind: text for kind, text in found.items() if not kind.startswith("r/")}
    return {kind: text for kind, text in found.items() if kind not in known}


def _at_chance(values: Mapping[str, float]) -> bool:
    return values.get("loss", 0.0) > (1 - CHANCE_MARGIN) * values.get("loss_chance", np.inf)


def _few_directions(values: Mapping[str, float], name: str) -> bool:
    dim = values.get(f"{name}/dim", np.inf)
    return values.get(f"{name}/collapsed", 0) >= DEAD * dim or values.get(f"{name}/lost", 0) >= max(LOST * dim, 1)
