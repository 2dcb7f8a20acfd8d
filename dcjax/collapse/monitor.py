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

# When a look warns; how near small healthy runs come is in experiments/results/monitor.md.
CHANCE_MARGIN = 0.01  # the loss is at its chance line if it lies less than this share below it
FALLEN = 0.5  # share of the highest effective rank so far
DEAD = 0.25  # share of directions that have collapsed, single dead channels of a ReLU included
LOST = 0.05  # the same without these
SAID = 2  # looks without a sign after which its warning is given again

RANK = 1e-6  # of a projector's singular values: below that there is rounding alone


@dataclasses.dataclass(frozen=True)
class Look:
    """What the monitor saw at a step.

    Attributes:
      step: optimiser steps taken.
      values: measures by `r/...`, `z/...`, `projector/...`, those that are finite. `dim` is d or, for z, the rank that
        the projector allows; `collapsed` the directions of these that the verdict counts; `lost` those that are no
        single dead columns.
      verdicts: kind of collapse by "r" and "z", as `judge` names it.
      advice: reason and next step by "r" and "z", for a warning.
      spectra: eigenvalues `[d]` of the covariance (eq. 1) of the rows divided by their norms, by "r" and "z".
      image: the spectra as a picture.
    """

    step: int
    values: dict[str, float] = dataclasses.field(default_factory=dict)
    verdicts: dict[str, str] = dataclasses.field(default_factory=dict)
    advice: dict[str, str] = dataclasses.field(default_factory=dict)
    spectra: dict[str, Float[np.ndarray, " d"]] = dataclasses.field(default_factory=dict)
    image: UInt8[np.ndarray, "h w 3"] | None = None


def look(
    step: int,
    views: Mapping[str, Float[np.ndarray, "n d"]],
    *,
    values: Mapping[str, float] | None = None,
    matrix: np.ndarray | None = None,
    kernel: np.ndarray | None = None,
) -> Look:
    """Measures r and z of two views of n images.

    Args:
      step: optimiser steps taken.
      views: "r", "r_prime", "z" and "z_prime", `[n, d]` each.
      values: further values to record.
      matrix: `[d, e]`, of a linear projector. Directions of z outside of its range are not counted as collapsed.
      kernel: `[inputs, d]`, of the last convolution, for its alignment with the projector.

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
        kind, unused = verdict.kind, 0 if name == "r" or matrix is None else quantities.dim - _rank(matrix)
        if verdict.collapsed is not None:  # otherwise the rows are too few to tell
            collapsed = max(verdict.collapsed - unused, 0)
            constant = int(Directions(quantities, TOLERANCE).constant.sum())
            lost = max(verdict.collapsed - max(constant, unused), 0)
            found |= {f"{name}/dim": quantities.dim - unused, f"{name}/collapsed": collapsed, f"{name}/lost": lost}
            kind = "none" if kind == "dimensional" and not collapsed else kind
        verdicts[name] = kind
        advice[name] = f"{verdict.reason}; {verdict.next}" if verdict.next else verdict.reason
        spectra[name] = quantities.unit_eigenvalues
    if matrix is not None and kernel is not None:
        found |= {f"projector/{key}": value for key, value in projector_alignment(kernel, matrix).items()}
    return Look(step, finite(found), verdicts, advice, spectra, spectra_image(spectra))


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """The values that are finite, as JSON has no others."""
    return {name: float(value) for name, value in values.items() if np.isfinite(value)}


def _rank(matrix: np.ndarray) -> int:
    """The rank of a projector: singular values that float32 tells from 0. Collapse shows long before this."""
    values = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    return int((values > RANK * values[0]).sum())


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


def signs_of(history: Sequence[Mapping[str, Any]], seen: Look, *, warmup_steps: int = 0) -> dict[str, str]:
    """The signs of collapse at a look, by their kind, each with words that say what to try next.

    A loss at its chance line and lost directions have to be there at two looks in a row. But for complete collapse,
    looks before the end of the warm-up do not count: features begin with few directions, and the look before the first
    step shows running statistics that are not yet those of the activations.

    Args:
      history: the rows of the earlier looks, in their order: "step", "monitor", "verdict", "signs" and "warnings".
      seen: the look.
      warmup_steps: the warm-up of the learning rate.
    """
    found = {}
    if not seen.spectra and seen.advice:
        found["unmeasured"] = seen.advice["z"]
    for name in ("r", "z"):
        if seen.step > 0 and seen.verdicts.get(name) == "complete":
            found[f"{name}/complete"] = f"{name} has collapsed to a point: {seen.advice[name]}"
    rows = [row for row in history if row["step"] >= max(warmup_steps, 1)]
    if rows:
        found |= _signs_after_warmup(rows, seen)
    if "z" in seen.spectra and seen.spectra["z"] is seen.spectra.get("r"):  # without a projector, said once
        found = {kind: text for kind, text in found.items() if not kind.startswith("r/")}
    return found


def warnings_of(history: Sequence[Mapping[str, Any]], signs: Mapping[str, str]) -> dict[str, str]:
    """The signs that are news: those that none of the last two looks had."""
    known = {kind for row in history[-SAID:] for kind in row["signs"]}
    return {kind: text for kind, text in signs.items() if kind not in known}


def _signs_after_warmup(rows: Sequence[Mapping[str, Any]], seen: Look) -> dict[str, str]:
    found, before, values = {}, rows[-1]["monitor"], seen.values
    if _at_chance(before) and _at_chance(values):
        found["chance"] = (
            f"the loss of the views, {values['loss']:.3f}, has been at its chance line of {values['loss_chance']:.3f} "
            f"since step {rows[-1]['step']}: the embedding tells no images apart. Try a lower learning rate or a "
            "longer warm-up, a temperature from 0.05 to 0.5, or weaker crops and colours"
        )
    for name in ("r", "z"):
        if seen.verdicts.get(name) != "complete" and all(_few_directions(part, name) for part in (before, values)):
            dim, count = values[f"{name}/dim"], values[f"{name}/collapsed"]
            reason = seen.advice[name].partition(";")[0]
            found[f"{name}/dimensional"] = (
                f"{name} has lost {count:.0f} of its {dim:.0f} directions ({reason}). Try a lower learning rate, "
                "weaker crops and colours, or another projector; dcjax collapse RUN tells more of the cause"
            )
        best, step = max((row["monitor"].get(f"{name}/effective_rank", 0.0), row["step"]) for row in rows)
        now = values.get(f"{name}/effective_rank", best)
        if now < FALLEN * best:
            found[f"{name}/rank"] = (
                f"the effective rank of {name} has fallen from {best:.1f} at step {step} to {now:.1f}: fewer and fewer "
                "directions are used. Try a lower learning rate, weaker crops and colours, or a projector between r "
                "and the loss"
            )
    return found


def _at_chance(values: Mapping[str, float]) -> bool:
    return values.get("loss", 0.0) > (1 - CHANCE_MARGIN) * values.get("loss_chance", np.inf)


def _few_directions(values: Mapping[str, float], name: str) -> bool:
    dim = values.get(f"{name}/dim", np.inf)
    return values.get(f"{name}/collapsed", 0) >= DEAD * dim or values.get(f"{name}/lost", 0) >= max(LOST * dim, 1)
