"""What a report says of a run in words: which embedding has collapsed, and what to try next."""

import dataclasses
from typing import Literal

import numpy as np

from dcjax.report.figures import collapsed
from dcjax.report.record import Run

Tone = Literal["good", "bad", "unknown"]

WORDS = {
    "none": "has not collapsed",
    "dimensional": "has collapsed in some dimensions",
    "unwarned": "has collapsed in some dimensions, without a warning of the monitor",
    "rank": "has lost half of its effective rank",
    "complete": "has collapsed completely",
    "undetermined": "cannot be judged from so few rows",
}
PART_WORDS = {"r": "the representation r", "z": "the embedding z"}
MAX_ADVICE = 3
POINT = 1e-12  # variance of rows of norm 1 that are alike: the square of the tolerance of `dcjax.collapse.judge`
LEARNT = 0.99  # as the monitor's warning: a loss above this share of its chance line tells hardly more than nothing


@dataclasses.dataclass(frozen=True)
class Finding:
    """The verdict on a run.

    Attributes:
      tone: whether it is a good or a bad one, or there is none.
      short: a few words, for tables and the terminal.
      parts: part to a word or two, as in `short`.
      headline: a sentence.
      reasons: sentences with the numbers behind it.
      next: what to try.
    """

    tone: Tone
    short: str
    parts: dict[str, str]
    headline: str
    reasons: tuple[str, ...]
    next: tuple[str, ...]


def finding(run: Run) -> Finding:
    """The verdict on a run: its monitor's last one, or else the one that the last spectra give, or "not known"."""
    source = "the monitor's last verdict"
    kinds = {part: _said(run, part, kind) for part, kind in run.kinds.items()}
    if not kinds:
        source = "the spectra alone"
        kinds = {part: _kind(values) for part, values in run.final.items()}
    look_closer = f"dcjax collapse {run.folder}"
    reasons = [*_progress(run), *_counts(run), *_dead_channels(run, kinds), _loss(run)]
    if not kinds:
        advice = f"{look_closer} judges the embeddings of the run's last checkpoint."
        headline = "Not known: the run has neither a monitor's verdict nor spectra."
        return Finding("unknown", "not known", {}, headline, tuple(reasons), (advice,))
    parts = [f"{PART_WORDS.get(part, part)} {WORDS[kind]}" for part, kind in kinds.items()]
    headline = "; ".join(parts)
    bad = [part for part, kind in kinds.items() if kind in ("dimensional", "complete", "rank")]
    at_chance = "chance" in run.signs or (_at_chance(run) and _past_warmup(run))
    if at_chance:
        headline = f"the embedding tells no images apart: the loss is at its chance line; {headline}"
        bad.append("loss")
    if "unmeasured" in run.signs:
        headline = "the embedding could not be measured"
        bad.append("z")
    tone: Tone = "bad" if bad else "unknown" if "undetermined" in kinds.values() else "good"
    advice = list(run.advice)
    if not advice:  # the monitor gives a warning only once
        given = list(run.warnings.items())[-MAX_ADVICE:]
        advice = [f"Warning at step {steps[-1]:,}: {words}" for words, steps in given]
    if not advice and at_chance:
        advice = ["Try a lower learning rate or a longer warm-up, a temperature from 0.05 to 0.5, or weaker crops."]
    if not advice and bad:
        advice = [f"{look_closer} shows the collapsed directions and names the cause where it can be told."]
    if not advice and tone == "unknown":
        advice = [f"{look_closer} with more rows than dimensions (a larger test split) can tell."]
    if not advice and run.ended and not run.probe:
        advice = [f"dcjax probe {run.folder} scores the frozen encoder."]
    if source == "the spectra alone":
        reasons.insert(0, "No monitor's verdict is in the log, so this one rests on the spectra alone.")
    words = {part: _SHORT[kind] for part, kind in kinds.items()}
    short = ", ".join(f"{part}: {word}" for part, word in words.items())
    if at_chance:
        short = f"at its chance line, {short}"
    return Finding(tone, short, words, headline[0].upper() + headline[1:] + ".", tuple(reasons), tuple(advice))


_SHORT = {
    "none": "no collapse",
    "dimensional": "dimensional",
    "unwarned": "dimensional, no warning",
    "rank": "rank has fallen",
    "complete": "complete",
    "undetermined": "undetermined",
}


def _said(run: Run, part: str, kind: str) -> str:
    """A key of `WORDS` for the monitor's last verdict.

    Any network with a ReLU has dead channels, which a verdict counts. Here it counts only with the monitor's own sign,
    which is that of z alone where z is r.
    """
    shown = "z" if run.config.projector.name == "none" else part
    if kind == "dimensional" and f"{shown}/dimensional" not in run.signs:
        kind = "unwarned"
    if kind in ("none", "unwarned") and f"{shown}/rank" in run.signs:
        kind = "rank"
    return kind if kind in WORDS else "undetermined"


def _kind(values: np.ndarray) -> str:
    """The kind of collapse that eigenvalues of rows of norm 1 show; those of a point are rounding."""
    if values.sum() <= POINT:
        return "complete"
    return "dimensional" if collapsed(values) else "none"


def _counts(run: Run) -> list[str]:
    """A sentence on the directions of each part that carry nothing."""
    found = [f"{collapsed(values)} of {len(values)} of {part}" for part, values in run.final.items()]
    if not found:
        return []
    where = "in the spectra of the finished run" if run.ended else f"at step {run.looks[-1].step:,}"
    return [f"Directions at or below a millionth of the largest eigenvalue, {where}: {', '.join(found)}."]


def _dead_channels(run: Run, kinds: dict[str, str]) -> list[str]:
    """A sentence where the monitor counted collapsed directions of r, all of them single columns, and did not warn."""
    lost = run.monitor.get("r/lost")
    if kinds.get("r") != "unwarned" or lost is None or lost.last > 0:
        return []
    return [
        "Those of r are single channels that stay at zero, as some do in most networks with a ReLU. dcjax collapse "
        "calls even one of them dimensional collapse."
    ]


def _progress(run: Run) -> list[str]:
    """A sentence where the run has not ended."""
    total = run.config.total_steps
    of = f" of {total:,}" if total else ""
    return [] if run.ended else [f"The run has not ended: it stands at step {run.last_step:,}{of}."]


def _past_warmup(run: Run) -> bool:
    """Whether the learning rate has been higher than it is: before, a loss may still be at its chance line."""
    rate = run.training.get("learning_rate")
    return rate is not None and rate.last < rate.values.max()


def _at_chance(run: Run) -> bool:
    """Whether the last training loss tells the candidates hardly apart."""
    return run.chance is not None and run.training["loss"].last > LEARNT * run.chance


def _loss(run: Run) -> str:
    """A sentence on the last loss and its chance line."""
    loss, chance = run.training["loss"].last, run.chance
    words = f"The loss is {loss:.3f} at step {run.last_step:,}."
    if chance is None:
        return words
    words = f"{words[:-1]}; a run that learns nothing stays at {chance:.3f}."
    if _at_chance(run):
        words += " This run is there: the loss tells the candidates hardly apart."
    return words
