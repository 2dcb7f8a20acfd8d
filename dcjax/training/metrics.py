"""metrics.jsonl, TensorBoard events and the progress bar, written by the first process only."""

import json
import pathlib
import sys
from collections.abc import Mapping

import jax
import tensorboardX
from tqdm import tqdm

from dcjax.runtime.files import replace_text

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Writes scalars by step; a run that resumes keeps the earlier lines and writes the later ones anew.

    Args:
      workdir: the run's folder.
      first_step: the step that the run starts or resumes from.
      kept_step: the last step whose line is kept.
      total_steps: its last step, for the bar.
      batch_size: images per step, for the rate.
    """

    def __init__(self, workdir: pathlib.Path, *, first_step: int, kept_step: int, total_steps: int, batch_size: int):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        path = workdir / METRICS_FILE
        if path.exists():
            kept = [row for row in read_metrics(workdir) if row["step"] <= kept_step]
            replace_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._lines = path.open("a")
        self._events = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=kept_step + 1)
        self._bar = tqdm(
            total=total_steps * batch_size,
            initial=first_step * batch_size,
            unit="img",
            unit_scale=True,
            mininterval=1.0 if sys.stderr.isatty() else 30.0,
        )
        self._batch_size = batch_size

    def advance(self) -> None:
        """Moves the bar on by one step."""
        if self._active:
            self._bar.update(self._batch_size)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the scalars of a step."""
        if not self._active:
            return
        self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
        self._lines.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        shown = {"loss": "loss", "online_accuracy": "online acc"}
        self._bar.set_postfix({label: f"{metrics[name]:.3f}" for name, label in shown.items() if name in metrics})

    def close(self) -> None:
        """Flushes everything."""
        if self._active:
            self._bar.close()
            self._lines.close()
            self._events.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl; a last line that an interruption cut short is left out."""
    rows = []
    for line in (workdir / METRICS_FILE).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
