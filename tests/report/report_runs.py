"""Folders of runs, written without training, for the tests of the report."""

import json
import math
import pathlib

import numpy as np

from dcjax.config import write_config
from dcjax.schema import Config, with_values

DIGITS = {"batch_size": 128, "total_steps": 300, "data.name": "digits", "data.test_split": "test", "projector.d0": 16}
MORE = ("rankme", "participation_ratio", "stable_rank", "alpha_req", "unit_std", "mean_cosine", "lost")
PARTS = ["encoder.stem", *(f"encoder.stage{i}" for i in range(1, 5)), "projector.dense"]


def write_run(
    folder: pathlib.Path,
    *,
    steps: int = 300,
    lines: int = 12,
    looks: int = 12,
    dims: tuple[int, int] = (64, 16),
    monitor: bool = True,
    command: bool = True,
    end: bool = True,
    dead: int = 0,
    seed: int = 0,
    **settings,
) -> pathlib.Path:
    """Writes the files of a run and returns its folder.

    Args:
      folder: the folder to make.
      steps, lines: the last step, and the training lines up to it.
      looks: of the monitor.
      dims: widths of r and z.
      monitor: whether there are lines of the monitor and spectra over time.
      command: whether there is a command.json.
      end: whether there are spectrum.npz and probe.json.
      dead: directions of r that are lost by the end.
      seed: of the noise.
      settings: config keys, with `__` for the point.
    """
    folder.mkdir(parents=True)
    noise = np.random.default_rng(seed)
    changed = {name.replace("__", "."): value for name, value in settings.items()}
    config = with_values(Config(), DIGITS | {"seed": seed} | changed)
    write_config(folder, config)
    if command:
        record = {
            "command": f"dcjax main --config=configs/quickstart.py --config.seed={seed}",
            "config": "configs/quickstart.py",
            "changes": {"seed": [0, seed]} if seed else {},
        }
        (folder / "command.json").write_text(json.dumps(record))
    chance = math.log(config.batch_size)
    rows = [training_line(step, steps, chance, noise) for step in even_steps(steps, lines)]
    if monitor:
        spectra = [(step, spectra_at(step / steps, dims, dead)) for step in even_steps(steps, looks)]
        rows += [monitor_line(step, found, chance, noise) for step, found in spectra]
        write_lines(folder / "spectra.jsonl", [{"step": step} | as_lists(found) for step, found in spectra])
    write_lines(folder / "metrics.jsonl", sorted(rows, key=lambda row: row["step"]))
    if end:
        last = spectra_at(1.0, dims, dead)
        np.savez(folder / "spectrum.npz", **last, **{f"{part}_unit": values for part, values in last.items()})
        scores = {"r": {"top1": 0.989, "top5": 1.0, "few_label": 0.963, "few_label_std": 0.003, "knn": 0.969}}
        scores["raw pixels"] = {"top1": 0.975, "knn": 0.983, "effective_rank": 38.5, "converged": False}
        (folder / "probe.json").write_text(json.dumps({"step": steps, "labels_per_class": 10, "scores": scores}))
    return folder


def even_steps(steps: int, lines: int) -> list[int]:
    """Steps of lines, as the log has them: the first one, then evenly up to the last."""
    return sorted({1, *(round(steps * (i + 1) / lines) for i in range(lines))})


def training_line(step: int, steps: int, chance: float, noise: np.random.Generator) -> dict:
    """A training line."""
    done = 1 - math.exp(-4 * step / steps)
    line = {"step": step, "loss": chance - 0.5 * chance * done + 0.05 * noise.normal(), "online_accuracy": 0.6 * done}
    line |= {"gradient_norm": 0.5 + 0.1 * noise.random(), "parameter_norm": 20 + 3 * done, "statistics_norm": 4 + done}
    line |= {f"gradient_norm/{part}": 0.3 * noise.random() / (i + 1) ** 2 for i, part in enumerate(PARTS)}
    return line | {
        "learning_rate": 5 * math.sin(math.pi * step / steps) + 0.01,
        "images_per_second": 900 + noise.random(),
    }


def spectra_at(done: float, dims: tuple[int, int], dead: int) -> dict[str, np.ndarray]:
    """Spectra of r and z at a share of the run; `dead` directions of r fade away."""
    r, z = (np.exp(-np.arange(dim) / dim * (10 - 5 * done)) for dim in dims)
    if dead:
        r[-dead:] *= 10 ** (-9 * done)
    return {"r": r / r.sum(), "z": z / z.sum()}


def monitor_line(step: int, spectra: dict[str, np.ndarray], chance: float, noise: np.random.Generator) -> dict:
    """A line of the monitor on these spectra."""
    values, verdict, warnings = {"chance": chance, "loss": 0.6 * chance, "loss_chance": chance + 0.3}, {}, {}
    for part, eigenvalues in spectra.items():
        share = eigenvalues / eigenvalues.sum()
        gone = int((eigenvalues <= 1e-6 * eigenvalues[0]).sum())
        values |= {f"{part}/effective_rank": float(np.exp(-(share * np.log(share)).sum()))}
        values |= {
            f"{part}/collapsed": gone,
            f"{part}/dim": len(share),
            f"{part}/alignment": 0.5 + 0.1 * noise.random(),
        }
        values |= {f"{part}/uniformity": -2.5 + 0.1 * noise.random(), f"{part}/positive_similarity": 0.8}
        values |= {f"{part}/negative_similarity": 0.05 + 0.02 * noise.random()}
        verdict[part] = "dimensional" if gone else "none"
        if gone:
            words = f"{part} has lost {gone} of its {len(share)} directions: try a lower learning rate"
            warnings[f"{part}/dimensional"] = words
    values |= {f"{part}/{name}": 1 + noise.random() for part in spectra for name in MORE}
    values |= {"projector/alignment": 0.7 + 0.01 * noise.random()}
    return {"step": step, "monitor": values, "verdict": verdict, "signs": sorted(warnings), "warnings": warnings}


def as_lists(spectra: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Spectra for JSON."""
    return {part: [float(value) for value in values] for part, values in spectra.items()}


def write_lines(path: pathlib.Path, rows: list[dict]) -> None:
    """Writes JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
