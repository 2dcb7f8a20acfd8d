"""The table that a probe prints, and a line about the loss."""

import dataclasses
import pathlib

from dcjax.runtime.errors import SettingError
from dcjax.runtime.reading import number
from dcjax.training.metrics import METRICS_FILE, read_metrics


@dataclasses.dataclass(frozen=True)
class Score:
    """Scores of one representation, accuracies as shares of the test images; None if one was not measured."""

    top1: float | None = None
    top5: float | None = None
    best_top1: float | None = None  # over the epochs of SGD
    few_label: float | None = None  # mean over the draws
    few_label_std: float | None = None
    knn: float | None = None
    effective_rank: float | None = None
    converged: bool = True  # whether the logistic regressions reached their optimum


def score_table(scores: dict[str, Score], *, classes: int, per_class: int) -> str:
    """The scores as text, one row for each representation.

    Args:
      scores: row name to scores.
      classes: number of classes; up to 5, the table has no column for top-5.
      per_class: labels of a class in the few-label column; 0 for no such column.
    """
    best = any(row.best_top1 is not None for row in scores.values())
    top5 = classes > 5
    header = ["linear probe", *([f"{per_class} labels/class"] if per_class else []), "all labels"]
    header += [*(["best epoch"] if best else []), *(["top-5"] if top5 else []), "k-NN", "effective rank"]

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    rows = []
    for name, row in scores.items():
        cells = [name if row.converged else f"{name} (not converged)"]
        if per_class:
            cells.append("-" if row.few_label is None else f"{share(row.few_label)} ± {share(row.few_label_std)}")
        cells += [share(row.top1), *([share(row.best_top1)] if best else []), *([share(row.top5)] if top5 else [])]
        cells += [share(row.knn), "-" if row.effective_rank is None else f"{row.effective_rank:.1f}"]
        rows.append(cells)
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *rest])

    rule = "-" * len(line(header))
    return "\n".join(["", line(header), rule, *map(line, rows), rule, "top-1 accuracy on the test images in %"])


def losses_line(workdir: pathlib.Path) -> str:
    """A line with the first and the last loss of the run, or with the reason why there is none."""
    if not (workdir / METRICS_FILE).exists():
        return f"loss: no {METRICS_FILE} in {workdir}"
    try:
        rows = [row for row in read_metrics(workdir) if number(row.get("loss")) is not None]
    except SettingError as error:
        return f"loss: {error}"
    if not rows:
        return f"loss: no line in {workdir / METRICS_FILE}"
    first, last = rows[0], rows[-1]
    return f"loss: {first['loss']:.3f} at step {first['step']}, {last['loss']:.3f} at step {last['step']}"
