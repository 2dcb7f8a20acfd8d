"""The protocol of the probe: it chooses the rows, scores them and writes the results."""

import dataclasses
import functools
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcjax.collapse import effective_rank
from dcjax.components import Components, load_run
from dcjax.data import Source, Subset
from dcjax.data.augment import one_view
from dcjax.evaluation import (
    TOLERANCE,
    Features,
    Rows,
    draw_labelled,
    fit_logistic,
    gather_rows,
    knn_accuracy,
    place_rows,
    sgd_probe,
    spectrum_of_processes,
    standardize,
    take_rows,
    top_k_accuracy,
)
from dcjax.evaluation.baselines import pixels, untrained_variables
from dcjax.evaluation.table import Score, losses_line, score_table
from dcjax.pretrain import SPECTRUM_PLOT
from dcjax.runtime.errors import SettingError
from dcjax.runtime.files import forgiving, refusing, replace_npz, replace_text
from dcjax.runtime.mesh import batch_sharding, replicated, to_devices
from dcjax.runtime.randomness import Stream, device_key
from dcjax.runtime.reading import read_json
from dcjax.schema import section
from dcjax.training.manifest import run_and_step

DRAWS = 5  # a few-label accuracy is the mean over so many fixed draws of labelled images
KNN_TEMPERATURE = 0.07  # of Wu et al., as `knn_accuracy` cites
RESULTS_FILE = "probe.json"
MAX_RESULTS_BYTES = 2**24


def probe(
    run_or_checkpoint: str | os.PathLike[str],
    *,
    features: str | None = None,
    labels_per_class: int | None = None,
    baselines: bool | None = None,
    data_dir: str | None = None,
    devices: int = 0,
    export: str | None = None,
    must_write: bool = True,
) -> dict[str, Score]:
    """Scores the encoder of a run on the test split.

    Args:
      run_or_checkpoint: the run's folder, for its last whole checkpoint, or one of the folders in its `checkpoints/`,
        whose scores are only printed and returned.
      features: "all" for r, "selected" for r[:d0], "rest" for r[d0:]; None for all of these that the projector has.
      labels_per_class: also score with this many labels of each class, averaged over 5 fixed draws; 0 for all labels
        only, None for the config's number.
      baselines: also score raw pixels and the untrained encoder; without `probe.cached`, by nearest neighbours only.
        None scores them if `probe.cached` is set and `features` is None.
      data_dir: the folder of the data, if it is not the one in the run's config.
      devices: how many devices to use; 0 for all.
      export: an .npz file for r, z and labels of the test images (and `train_r` ... of the training images). Process 0
        gathers all of them in its memory.
      must_write: raise an error if `probe.json` cannot be written, instead of a warning.

    Returns:
      Row name to scores, as they are printed.

    Raises:
      SettingError: the run has no whole checkpoint, the projector does not have the part, the data has fewer than two
        classes or too few labels, the devices do not divide a batch, or a file cannot be written.
      InterruptedRunError: a file cannot be read at this moment.
    """
    workdir, chosen = run_and_step(run_or_checkpoint)
    components, variables, step = load_run(run_or_checkpoint, data_dir=data_dir, devices=devices)
    config = components.config
    components.check_probe()
    columns = chosen_columns(components, features)
    per_class = config.probe.labels_per_class if labels_per_class is None else labels_per_class
    if per_class < 0:
        raise SettingError(f"labels_per_class must be at least 0, found {per_class}")
    if export:
        check_export(export)
    train_source, test_source = components.train_source, components.test_source
    assert test_source is not None  # `check_probe` has found classes and a test split

    if jax.process_index() == 0:
        counts = f"{len(train_source)} training and {len(test_source)} test images"
        print(f"dcjax: probing {', '.join(columns)} of step {step} on {counts}", flush=True)
    keep = ("r", "z") if export else ("r",)
    train, test = (components.features(variables, source, keep=keep) for source in (train_source, test_source))
    if export:
        write_features(export, train, test)
    few = {"labels_per_class": per_class}
    with section("probe"):
        draws = [draw_labelled(train.labels, **few, draw=draw) for draw in range(DRAWS if per_class else 0)]
    scores = {name: cached_scores(components, train, test, draws, columns=part) for name, part in columns.items()}
    del train  # frees 10 GB for ImageNet, which the hours of SGD below do not need
    if not config.probe.cached:  # begins after all steps that can fail early
        linear = run_sgd_probes(components, variables, columns, place_rows(test, components.mesh), draws)
        scores = {name: dataclasses.replace(row, **linear[name]) for name, row in scores.items()}
    if baselines is None:
        baselines = config.probe.cached and features is None
    if baselines:
        scores |= score_baselines(components, train_source, test_source, draws)
    if jax.process_index() == 0:
        print(score_table(scores, classes=len(train_source.classes), per_class=per_class))
        print(losses_line(workdir))
        if chosen is None and (workdir / SPECTRUM_PLOT).exists():
            print(f"spectrum: {workdir / SPECTRUM_PLOT}", flush=True)
    if jax.process_index() == 0 and chosen is None:
        rows = {name: dataclasses.asdict(row) for name, row in scores.items()}
        path, remedy = workdir / RESULTS_FILE, "the scores are printed above"
        images = [train_source.fingerprint, test_source.fingerprint]
        record = {"step": step, "labels_per_class": per_class, "images": images}
        kept = earlier_rows(path, record) if features is not None else {}  # a part of the table: the others stay
        record["scores"] = kept | rows
        with refusing(path, remedy=remedy) if must_write else forgiving(path, remedy):
            replace_text(path, json.dumps(record, indent=2) + "\n")
    return scores


def earlier_rows(path: pathlib.Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of an earlier probe with the same step, labels and images; none where the file holds another."""
    try:
        record = read_json(path, MAX_RESULTS_BYTES)
    except (SettingError, OSError):
        return {}
    rows = record.pop("scores", None)
    return rows if record == asked and isinstance(rows, dict) else {}


def chosen_columns(components: Components, features: str | None) -> dict[str, slice]:
    """The rows of the table: row name to the columns of r that are probed.

    Raises:
      SettingError: the projector does not have the part `features`.
    """
    projector = components.config.projector
    available = {"all": ("r", slice(None))}
    if getattr(components.network.projector, "is_subvector", False):
        d0 = projector.d0
        available["selected"] = (f"r[:{d0}]", slice(0, d0))
        if d0 < components.width:
            available["rest"] = (f"r[{d0}:]", slice(d0, None))
    if features is not None and features not in available:
        known = " or ".join(available)
        raise SettingError(
            f"--features must be {known} for the projector '{projector.name}' with a {components.width}-d r, "
            f"found '{features}'"
        )
    chosen = available if features is None else {features: available[features]}
    return dict(chosen.values())


def score_baselines(
    components: Components, train_source: Source, test_source: Source, draws: Sequence[np.ndarray]
) -> dict[str, Score]:
    """Scores raw pixels and the encoder before training; row name to scores."""
    untrained = untrained_variables(components)
    kinds: dict[str, Callable[[Source], Features]] = {
        "raw pixels": lambda source: pixels(components, source),
        "untrained encoder": lambda source: components.features(untrained, source),
    }
    return {name: cached_scores(components, of(train_source), of(test_source), draws) for name, of in kinds.items()}


def cached_scores(
    components: Components,
    train_features: Features,
    test_features: Features,
    draws: Sequence[np.ndarray],
    *,
    columns: slice = slice(None),
) -> Score:
    """Scores features, or some columns of them, by nearest neighbours and, with `probe.cached`, by logistic regression.

    The features are standardised over all training rows, also for a few-label draw: this uses images that the draw
    leaves out, but not their labels. `draws` holds the indices of the training images of each draw.
    """
    settings, classes, mesh = components.config.probe, len(components.train_source.classes), components.mesh
    train, test = (place_rows(features, mesh, columns=columns) for features in (train_features, test_features))
    neighbours = knn_accuracy(
        train, test, mesh=mesh, classes=classes, neighbors=settings.neighbors, temperature=KNN_TEMPERATURE
    )
    values = spectrum_of_processes(test_features.r[: test_features.own, columns], normalize=False)
    result = Score(knn=neighbours, effective_rank=effective_rank(np.sqrt(values)))
    if not settings.cached:
        return result
    labels, index, targets = train.labels, train.index, test.labels
    x, test_x = standardize(train.r, test.r, where=labels >= 0)
    del train, test  # one copy of the rows is enough
    fits = {"all": fit_logistic(x, labels, classes=classes)}
    top1, top5 = (float(top_k_accuracy(fits["all"], test_x, targets, k=k)) for k in (1, 5))
    result = dataclasses.replace(result, top1=top1, top5=top5)
    if draws:
        chosen = np.stack(draws)
        rows = take_rows(x, index, chosen.astype(np.int32), mesh=mesh)
        fits["few"] = jax.vmap(functools.partial(fit_logistic, classes=classes))(rows, train_features.labels[chosen])
        few = jax.vmap(functools.partial(top_k_accuracy, k=1), (0, None, None))(fits["few"], test_x, targets)
        result = dataclasses.replace(result, few_label=float(few.mean()), few_label_std=float(few.std(ddof=1)))
    converged = all(float(jnp.max(fit.residual)) <= TOLERANCE for fit in fits.values())
    return dataclasses.replace(result, converged=converged)


def run_sgd_probes(
    components: Components, variables: Any, columns: dict[str, slice], test: Rows, draws: Sequence[np.ndarray]
) -> dict[str, dict[str, float]]:
    """Trains the paper's probe on all labels and on each few-label draw; row name to fields of `Score`."""
    represent = make_represent(components, variables)
    source = components.train_source
    results = run_sgd(components, represent, columns, source, test)
    few = [run_sgd(components, represent, columns, Subset(source, draw), test) for draw in draws]
    for name in columns if few else ():
        top1 = [result[name]["top1"] for result in few]
        results[name] |= {"few_label": float(np.mean(top1)), "few_label_std": float(np.std(top1, ddof=1))}
    return results


def make_represent(components: Components, variables: Any) -> Callable[[dict[str, np.ndarray]], Any]:
    """A function from a host batch to r and labels on the devices: crop, flip and frozen encoder, compiled once."""
    config, mesh, network = components.config, components.mesh, components.network.clone(classes=0)
    augmentation = dataclasses.replace(components.augmentation, interpolation=config.probe.interpolation)

    def represent(variables: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        images = one_view(
            batch["image"],
            device_key(config.seed, Stream.PROBE_AUGMENTATION),
            batch["position"],
            size=config.data.image_size,
            settings=augmentation,
            cropped=config.data.stored_size == 0,
            mesh=mesh,
        )
        out: Any = network.apply(variables, images, train=False)
        return out.r, batch["label"]

    compiled = jax.jit(represent, in_shardings=(replicated(mesh), batch_sharding(mesh)), out_shardings=replicated(mesh))
    return lambda batch: compiled(variables, to_devices(batch, mesh))


def run_sgd(
    components: Components,
    represent: Callable[[dict[str, np.ndarray]], Any],
    columns: dict[str, slice],
    source: Source,
    test: Rows,
) -> dict[str, dict[str, float]]:
    """Trains the paper's probe once on a source; row name to the results of `sgd_probe`."""
    config, settings = components.config, components.config.probe
    batch_size = components.sgd_batch_size(len(source))
    crops = {"views": 1, "interpolation": settings.interpolation}
    loader = components.train_batches(source, batch_size=batch_size, stream=Stream.PROBE_ORDER, **crops)

    def batches() -> Iterator[dict[str, np.ndarray]]:
        with section("data"):
            yield from loader

    try:
        return sgd_probe(
            represent,
            batches(),
            test.r,
            test.labels,
            columns=columns,
            classes=len(components.train_source.classes),
            images=len(source),
            batch_size=batch_size,
            epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            schedule=settings.schedule,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            key=device_key(config.seed, Stream.PROBE_CLASSIFIER),
        )
    finally:
        loader.close()


def check_export(path: str) -> None:
    """Raises `SettingError` if features cannot be written there; to be called before they are computed."""
    if pathlib.Path(path).is_dir():
        raise SettingError(f"--export {path} is a folder; name a file")
    try:
        tempfile.TemporaryFile(dir=pathlib.Path(path).absolute().parent).close()
    except OSError as error:
        raise SettingError(f"--export {path} cannot be written ({error.strerror}); name another file") from error


def write_features(path: str, train: Features, test: Features) -> None:
    """Writes the features of all processes as one .npz, whole or not at all; every process calls this.

    Raises:
      SettingError: the file cannot be written.
    """
    arrays: dict[str, Any] = {}
    for prefix, features in (("", test), ("train_", train)):
        assert features.z is not None
        arrays[f"{prefix}r"] = gather_rows(features.r, features)
        arrays[f"{prefix}z"] = gather_rows(features.z, features)
        arrays[f"{prefix}labels"] = features.labels
    if jax.process_index() == 0:
        with refusing(path, "--export"):
            replace_npz(pathlib.Path(path), arrays)
