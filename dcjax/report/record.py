"""A run as a report sees it: its folder, read within bounds into a dataclass. Nothing in the folder is executed."""

import dataclasses
import io
import math
import pathlib
import zipfile
from typing import Any

import numpy as np

from dcjax.config import COMMAND_FILE, CONFIG_FILE, read_config
from dcjax.report.lines import Curve, curves, read_lines
from dcjax.runtime.errors import SettingError, printable
from dcjax.runtime.reading import number, read_file, read_json, whole
from dcjax.schema import Config, flatten

# Named here as well because the modules that write them load JAX; a test compares the names.
METRICS_FILE, SPECTRA_FILE, SPECTRUM_FILE, PROBE_FILE = "metrics.jsonl", "spectra.jsonl", "spectrum.npz", "probe.json"

PARTS = ("r", "z")  # the representation and the embedding
MAX_DIM = 65_536  # of a spectrum that is read
MAX_MEMBER = 2**20  # bytes of an array: a spectrum of MAX_DIM values in float64 and its header
MAX_ARCHIVE = 2**24  # bytes of spectrum.npz
MAX_JSON_BYTES = 2**24  # of probe.json and command.json
SCORES = ("top1", "top5", "best_top1", "few_label", "few_label_std", "knn", "effective_rank")


@dataclasses.dataclass(frozen=True)
class Command:
    """The command that began a run.

    Attributes:
      text: the command line.
      config: the config file that it names.
      changes: config key to the file's value and the run's.
    """

    text: str
    config: str
    changes: dict[str, tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Look:
    """The spectra at one step: part of `PARTS` to its eigenvalues `[d]`, descending."""

    step: int
    spectra: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Probe:
    """The scores of probe.json: row name to measure to number, with its step and labels of a class."""

    step: int | None
    labels_per_class: int
    scores: dict[str, dict[str, float]]
    unconverged: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """What a report needs of a run.

    Attributes:
      folder: the folder, as the user named it.
      config: its config.
      command: the command that began it; None if there is none.
      training: scalars of the training lines by name.
      monitor: scalars of the monitor lines by name (`r/effective_rank`).
      kinds: the last verdict of the monitor, part to kind; empty if there is none.
      signs: the kinds of signs of collapse that the line with that verdict names.
      advice: the warnings of that line.
      warnings: every warning with the steps at which it was given, in the order of its first step.
      looks: spectra over time.
      final: the last spectra, of the whole test split if the run has ended.
      ended: whether `final` is from spectrum.npz.
      probe: the probe's scores; None if there are none.
      notes: remarks on what was left out of damaged files.
      rows: the lines of metrics.jsonl.
    """

    folder: str
    config: Config
    command: Command | None
    training: dict[str, Curve]
    monitor: dict[str, Curve]
    kinds: dict[str, str]
    signs: tuple[str, ...]
    advice: tuple[str, ...]
    warnings: dict[str, list[int]]
    looks: list[Look]
    final: dict[str, np.ndarray]
    ended: bool
    probe: Probe | None
    notes: list[str]
    rows: list[dict[str, Any]]

    @property
    def last_step(self) -> int:
        """The step of the last training line."""
        return int(max(curve.steps[-1] for curve in self.training.values()))

    @property
    def chance(self) -> float | None:
        """The loss that tells no candidate from another, as `dcjax.losses.chance_loss`; None if the loss has none."""
        if "chance" in self.monitor:
            return self.monitor["chance"].last
        n = self.config.batch_size
        candidates = {"info_nce": n, "nt_xent": 2 * n - 1}.get(self.config.loss.name)
        return math.log(candidates) if candidates else None

    @property
    def differences(self) -> dict[str, tuple[Any, Any]]:
        """Config key to the base's value and this run's: of the config file, or else of the schema's defaults."""
        if self.command:
            return self.command.changes
        base, own = flatten(Config()), flatten(self.config)
        return {name: (base[name], value) for name, value in own.items() if value != base[name]}


def read_runs(folders: list[str]) -> list[Run]:
    """The runs in some folders, which must be comparable.

    Raises:
      SettingError: a folder is named twice or holds no run with metrics, a file of it is damaged, or the runs are on
        different data.
    """
    resolved: dict[pathlib.Path, str] = {}
    for folder in folders:
        path = pathlib.Path(folder).expanduser().absolute().resolve()
        if path in resolved:
            raise SettingError(f"{folder} and {resolved[path]} are the same run; name each run once")
        resolved[path] = folder
    runs = [read_run(folder) for folder in folders]
    for run in runs[1:]:
        kinds = [data_of(run.config), data_of(runs[0].config)]
        if kinds[0] != kinds[1]:
            raise SettingError(
                f"{run.folder} trains on {kinds[0]}, {runs[0].folder} on {kinds[1]}: their losses and probes cannot be "
                "compared; write a report for each"
            )
    return runs


def data_of(config: Config) -> str:
    """The kind of data of a run, in the config's words."""
    data = config.data
    return f"data.name={data.name}" + (f" data.dataset={data.dataset}" if data.name == "tfds" else "")


def read_run(folder: str) -> Run:
    """The run in a folder.

    Raises:
      SettingError: the folder holds no run, or one without metrics, or its config or metrics cannot be read.
    """
    workdir = pathlib.Path(folder).expanduser()
    if not workdir.is_dir():
        raise SettingError(f"{folder} is no folder; name the folder of a run")
    if not (workdir / CONFIG_FILE).exists():
        raise SettingError(f"{folder} is no run: it has no {CONFIG_FILE}; name the --workdir of dcjax main")
    config = read_config(workdir)
    if not (workdir / METRICS_FILE).exists():
        raise SettingError(
            f"{folder} has no {METRICS_FILE}: it has not trained a step yet, so there is nothing to report"
        )
    rows, notes = read_lines(workdir / METRICS_FILE)
    looked = [row for row in rows if "monitor" in row]
    training, skipped = curves([row for row in rows if "monitor" not in row], METRICS_FILE)
    notes += skipped
    if "loss" not in training:
        raise SettingError(f"{workdir / METRICS_FILE} has no line with a loss yet, so there is nothing to report")
    monitor, kinds, signs, advice, warnings = _monitor(looked, notes)
    looks = _looks(workdir / SPECTRA_FILE, notes)
    final = _final(workdir / SPECTRUM_FILE, notes)
    return Run(
        folder=folder,
        config=config,
        command=_command(workdir / COMMAND_FILE, notes),
        training=training,
        monitor=monitor,
        kinds=kinds,
        signs=signs,
        advice=advice,
        warnings=warnings,
        looks=looks,
        final=final or (looks[-1].spectra if looks else {}),
        ended=bool(final),
        probe=_probe(workdir / PROBE_FILE, notes),
        notes=notes,
        rows=rows,
    )


def _monitor(
    rows: list[dict[str, Any]], notes: list[str]
) -> tuple[dict[str, Curve], dict[str, str], tuple[str, ...], tuple[str, ...], dict[str, list[int]]]:
    """The scalars, the last verdict with its signs and warnings, and all warnings of the monitor's lines."""
    kinds: dict[str, str] = {}
    advice: tuple[str, ...] = ()
    signs: tuple[str, ...] = ()
    warnings: dict[str, list[int]] = {}
    for row in rows:
        given = row.get("warnings")
        texts = list(given.values()) if isinstance(given, dict) else given if isinstance(given, list) else []
        texts = [text for text in texts if isinstance(text, str) and text.strip()]
        for text in texts:
            warnings.setdefault(text, []).append(row["step"])
        verdict = row.get("verdict")
        if isinstance(verdict, dict):
            words = {part: verdict[part] for part in PARTS if isinstance(verdict.get(part), str)}
            if words:
                kinds, advice = words, tuple(texts)
                given = row.get("signs")
                signs = tuple(map(str, given)) if isinstance(given, list) else ()
    scalars = [row["monitor"] | {"step": row["step"]} for row in rows if isinstance(row["monitor"], dict)]
    if len(scalars) < len(rows):
        notes.append(f"{METRICS_FILE}: {len(rows) - len(scalars)} monitor lines are not objects; left out.")
    found, skipped = curves(scalars, f"{METRICS_FILE}, monitor")
    notes += skipped
    return found, kinds, signs, advice, warnings


def _optional(file: pathlib.Path, notes: list[str]) -> dict[str, Any] | None:
    """The object in a JSON file; None, with a note, if it cannot be read, and None if there is no such file."""
    if not file.exists():
        return None
    try:
        return read_json(file, MAX_JSON_BYTES)
    except SettingError as error:
        notes.append(f"{file.name} was left out: {error}.")
        return None


def _command(file: pathlib.Path, notes: list[str]) -> Command | None:
    found = _optional(file, notes)
    if found is None or not isinstance(found.get("command"), str):
        return None
    changes = found.get("changes")
    pairs = changes.items() if isinstance(changes, dict) else ()
    kept = {name: (pair[0], pair[1]) for name, pair in pairs if isinstance(pair, list) and len(pair) == 2}
    config = found.get("config")
    return Command(found["command"], config if isinstance(config, str) else "its config file", kept)


def _probe(file: pathlib.Path, notes: list[str]) -> Probe | None:
    found = _optional(file, notes)
    rows = found.get("scores") if found else None
    if found is None or not isinstance(rows, dict):
        return None
    scores = {}
    for name, row in rows.items():
        if isinstance(row, dict):
            numbers = {measure: number(row.get(measure)) for measure in SCORES}
            scores[name] = {measure: value for measure, value in numbers.items() if value is not None}
    unconverged = tuple(name for name in scores if rows[name].get("converged") is False)
    return Probe(whole(found.get("step")), whole(found.get("labels_per_class")) or 0, scores, unconverged)


def _looks(file: pathlib.Path, notes: list[str]) -> list[Look]:
    """The spectra over time."""
    if not file.exists():
        return []
    try:
        rows, skipped = read_lines(file)
    except SettingError as error:
        notes.append(f"{file.name} was left out: {error}.")
        return []
    notes += skipped
    looks, bad = {}, 0
    for row in rows:
        spectra = {part: values for part in PARTS if (values := _eigenvalues(row.get(part))) is not None}
        bad += len(spectra) < sum(part in row for part in PARTS)
        if spectra:
            looks[row["step"]] = Look(row["step"], spectra)
    if bad:
        notes.append(f"{file.name}: {bad} line(s) hold values that are no finite eigenvalues; those were left out.")
    return list(looks.values())


def _final(file: pathlib.Path, notes: list[str]) -> dict[str, np.ndarray]:
    """The spectra of rows of norm 1 that the run ended with."""
    if not file.exists():
        return {}
    try:
        with zipfile.ZipFile(io.BytesIO(read_file(file, MAX_ARCHIVE))) as archive:
            found = {part: _eigenvalues(_array(archive, f"{part}_unit.npy")) for part in PARTS}
    except Exception as error:  # NumPy and zipfile raise many kinds for a damaged file
        problem = printable(f"{type(error).__name__}: {error}", 200)
        notes.append(f"{file.name} cannot be read and was left out ({problem}).")
        return {}
    good = {part: values for part, values in found.items() if values is not None}
    if len(good) < len(found):
        notes.append(f"{file.name} holds values that are no finite eigenvalues; they were left out.")
    return good


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray | None:
    """An array of an .npz file; None if it has none of this name."""
    if name not in archive.namelist():
        return None
    with archive.open(name) as member:
        data = member.read(MAX_MEMBER)
    # NumPy would take memory for any shape that a header states. A shape that the bytes cannot fill fails here.
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{name} is of another version of the format than 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject or len(shape) != 1:
        raise ValueError(f"{name} holds {list(shape)} {dtype}; a spectrum is one row of numbers")
    return np.frombuffer(data, dtype, shape[0], stream.tell())


def _eigenvalues(values: Any) -> np.ndarray | None:
    """Eigenvalues `[d]` in descending order, clipped at 0; None if the values cannot be some."""
    if isinstance(values, list):
        if not set(map(type, values)) <= {int, float}:
            return None
        try:
            values = np.array(values, np.float64)
        except OverflowError:  # an int beyond the floats
            return None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu" or values.ndim != 1:
        return None
    if not 0 < len(values) <= MAX_DIM or not np.isfinite(values).all():
        return None
    return np.sort(np.maximum(values.astype(np.float64), 0))[::-1]
