"""The panels of curves that a report draws, and the values that a comparison lists."""

from dcjax.report.lines import Curve
from dcjax.report.record import PARTS, Run

MAX_PANELS = 32
MAX_CURVES = 12  # of one panel
GRADIENTS = "gradient_norm/"

# What a measure is, in the caption of its figure. docs/metrics.md defines them.
ABOUT = {
    "effective_rank": "dimensions in use, from the entropy of the spectrum; higher is better",
    "rankme": "dimensions in use, from the singular values; higher is better",
    "participation_ratio": "dimensions in use, weighted to the largest; higher is better",
    "stable_rank": "squared singular values over the largest; higher is better",
    "collapsed": "directions at or below a millionth of the largest; 0 is best",
    "projector/alignment": "of its singular directions with the last convolution's, in their order; 1 is aligned",
    "projector/overlap": "of the spaces of the strongest eighth of these directions",
    "noise_share": "how much of the variance the augmentation makes; 1 if two views differ as two images do",
    "lost": "those of the collapsed directions that are no single dead column",
    "unit_std": "spread of the columns of unit rows; 1 where they spread evenly, 0 for a point",
    "mean_cosine": "of two different rows",
    "alpha_req": "exponent of the spectrum's decay; best at 1",
    "alignment": "mean squared distance of positives; low, but 0 for a point",
    "uniformity": "log of the mean Gaussian potential; lower is better",
    "positive_similarity": "mean cosine of the two views of an image",
    "negative_similarity": "mean cosine of two images",
}
HIDDEN = {"dim"}  # does not change
# The measures that a comparison draws first, before others are left out.
FIRST = (
    "effective_rank",
    "collapsed",
    "alignment",
    "uniformity",
    "positive_similarity",
    "negative_similarity",
    "lost",
    "noise_share",
)
TRAINING = {
    "online_accuracy": "of the classifier on r that is trained alongside",
    "online_loss": "of that classifier",
    "learning_rate": "of the schedule",
    "parameter_norm": "norm of all parameters",
    "statistics_norm": "norm of the batch statistics",
}


def words(name: str) -> str:
    """The name of a measure as a reader says it."""
    return name.replace("_", " ")


def about(group: str, measure: str) -> str:
    """What a measure of r, z or the projector is."""
    return ABOUT.get(measure if group in PARTS else f"{group}/{measure}", "")


def monitor_panels(run: Run) -> dict[tuple[str, str], dict[str, Curve]]:
    """The monitor's scalars by figure: (title, about) to the curves by label. Measures of r and z share a figure."""
    panels: dict[tuple[str, str], dict[str, Curve]] = {}
    for name, curve in run.monitor.items():
        group, slash, measure = name.partition("/")
        if not slash or measure in HIDDEN:
            continue
        title = words(measure) if group in PARTS else f"{words(group)}: {words(measure)}"
        panels.setdefault((title, about(group, measure)), {})[group] = curve
    return panels


def training_panels(run: Run) -> dict[tuple[str, str], dict[str, Curve]]:
    """The scalars of the training lines that have no figure of their own, one to a panel."""
    drawn = {"loss", "gradient_norm", "images_per_second"}
    found = {name: curve for name, curve in run.training.items() if name not in drawn and GRADIENTS not in name}
    return {(words(name), TRAINING.get(name, "")): {words(name): curve} for name, curve in found.items()}


def gradient_curves(run: Run) -> dict[str, Curve]:
    """The gradient's norms: of all parameters, then of each part."""
    curves = {"all": run.training["gradient_norm"]} if "gradient_norm" in run.training else {}
    return curves | {
        name.removeprefix(GRADIENTS): curve for name, curve in run.training.items() if name.startswith(GRADIENTS)
    }


def comparison_panels(runs: list[Run]) -> dict[tuple[str, str], dict[int, Curve]]:
    """The figures that overlay the runs: (title, about) to the curves by the index of the run."""
    panels: dict[tuple[str, str], dict[int, Curve]] = {}
    for name in ("online_accuracy", "gradient_norm", "images_per_second", "learning_rate"):
        curves = {index: run.training[name] for index, run in enumerate(runs) if name in run.training}
        if curves:
            panels[words(name), TRAINING.get(name, "")] = curves
    names = {name: None for run in runs for name in run.monitor if "/" in name and name.partition("/")[2] not in HIDDEN}
    order = list(dict.fromkeys([*FIRST, *(name.partition("/")[2] for name in names)]))  # r and z of one are neighbours
    for name in sorted(names, key=lambda name: order.index(name.partition("/")[2])):
        group, _, measure = name.partition("/")
        title = f"{words(measure)} of {group}" if group in PARTS else f"{words(group)}: {words(measure)}"
        curves = {index: run.monitor[name] for index, run in enumerate(runs) if name in run.monitor}
        panels[title, about(group, measure)] = curves
    return panels


def last_values(run: Run) -> dict[str, str]:
    """The last values of a run by name, for a table."""
    found = {"last step": f"{run.last_step:,}", "last loss": f"{run.training['loss'].last:.4g}"}
    if run.chance is not None:
        found["chance line of the loss"] = f"{run.chance:.4g}"
    for name in ("online_accuracy", "gradient_norm", "images_per_second"):
        if name in run.training:
            found[words(name)] = f"{run.training[name].last:,.4g}"
    for name, curve in run.monitor.items():
        if "/" in name:
            found[words(name)] = f"{curve.last:,.4g}"
    if run.probe:
        for row, scores in run.probe.scores.items():
            if "top1" in scores:
                found[f"probe, {row}, all labels, %"] = f"{100 * scores['top1']:.1f}"
            if "knn" in scores:
                found[f"probe, {row}, k-NN, %"] = f"{100 * scores['knn']:.1f}"
    return found
