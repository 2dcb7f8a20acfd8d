"""Probes a trained encoder: linear and nearest-neighbour accuracy of its frozen representation, and of parts of it.

    python -m dcjax.probe --workdir=runs/directclr

Reads the run's last checkpoint and its config.json. With `probe.cached` the features are computed once and a logistic
regression is solved on them, beside baselines (raw pixels, the untrained encoder); without, the paper's recipe trains a
linear classifier by SGD on augmented images. The results are printed and written to probe.json in the run's folder.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcjax import cli
from dcjax.checkpoint import FOLDER, Checkpointer, abstract_state
from dcjax.collapse import effective_rank, spectrum
from dcjax.config import Config, read_config
from dcjax.data import Source, Subset
from dcjax.data.augment import normalize, one_view
from dcjax.errors import SettingError
from dcjax.evaluation import (
    Features,
    draw_labelled,
    extract,
    fit_logistic,
    knn_accuracy,
    settle_batch_stats,
    sgd_probe,
    standardize,
    top_k_accuracy,
)
from dcjax.experiment import Experiment, build, check_labels, run_lengths
from dcjax.files import replace_npz, replace_text
from dcjax.mesh import replicated
from dcjax.models import SUBVECTOR_PROJECTORS
from dcjax.pretrain import make_optimizer
from dcjax.report import Score, losses_line, score_table
from dcjax.state import TrainState, init_state

PARTS = ("all", "selected", "rest")
DRAWS = 5  # fixed draws of labelled images that a few-label accuracy averages
KNN_TEMPERATURE = 0.07
PIXELS = 32  # raw pixels are compared at this side at most: beyond it a linear classifier on them only grows
PROBE_STREAM = 2  # folded into the seed's key, apart from parameters and pre-training's augmentation


def probe(
    workdir: str | os.PathLike[str],
    *,
    features: str | None = None,
    labels_per_class: int | None = None,
    data_dir: str | None = None,
    export: str | None = None,
) -> dict[str, Score]:
    """Scores the encoder of a run on the test split.

    Args:
      workdir: the run's folder.
      features: "all" for r, "selected" for r[:d0], "rest" for r[d0:]; None for each of them that the projector has.
      labels_per_class: also score with so few labels, averaged over 5 fixed draws; 0 for not; None as the config says.
      data_dir: where the data lies now, where that is not where the run found it.
      export: a file for r, z and labels of the test images (and `train_r` ... of the training images), as .npz.

    Returns:
      Row name to scores, as they are printed.

    Raises:
      ValueError: no checkpoint, an unknown or missing part, data without classes, or too few labels.
    """
    workdir = pathlib.Path(workdir).expanduser().absolute()
    config, experiment, state = load_run(workdir, data_dir=data_dir)
    check_labels(config, experiment.train_source)
    columns = chosen_columns(experiment, features)
    per_class = config.probe.labels_per_class if labels_per_class is None else labels_per_class
    if per_class < 0:
        raise SettingError(f"labels_per_class must be at least 0, found {per_class}")
    train_source, test_source = experiment.train_source, experiment.test_source
    assert test_source is not None  # check_labels: a labelled source with a test split

    train = experiment.features(state.variables, train_source)
    test = experiment.features(state.variables, test_source)
    score = functools.partial(score_features, config=config, classes=len(train_source.classes), per_class=per_class)
    if config.probe.cached:
        scores = {
            name: score(train.r[:, part], train.labels, test.r[:, part], test.labels) for name, part in columns.items()
        }
        untrained = untrained_variables(experiment)
        for name, of in (
            ("raw pixels", lambda source: pixels(experiment, source)),
            ("untrained encoder", lambda source: experiment.features(untrained, source).r),
        ):
            scores[name] = score(of(train_source), train.labels, of(test_source), test.labels)
    else:
        scores = paper_scores(experiment, state, columns, train, test, per_class)

    if jax.process_index() == 0:
        print(score_table(scores, classes=len(train_source.classes), per_class=per_class))
        print(losses_line(workdir))
        print(f"spectrum: {workdir / 'spectrum.png'}", flush=True)
        record = {name: dataclasses.asdict(row) for name, row in scores.items()}
        record = {"step": int(state.step), "labels_per_class": per_class, "scores": record}
        replace_text(workdir / "probe.json", json.dumps(record, indent=2) + "\n")
        if export:
            write_features(export, train, test)
    return scores


def load_run(workdir: pathlib.Path, *, data_dir: str | None) -> tuple[Config, Experiment, TrainState]:
    """The config, the modules and the last state of a run."""
    if not (workdir / FOLDER).is_dir():
        raise SettingError(f"--workdir {workdir} holds no checkpoints; name the folder of a run of dcjax.main")
    checkpointer = Checkpointer(workdir)
    step = checkpointer.latest_step()
    if step is None:
        raise SettingError(f"--workdir {workdir} holds no complete checkpoint; let dcjax.main reach its first")
    config = read_config(workdir)
    if data_dir is not None:
        config.data.dir = data_dir
    experiment = build(config)
    total_steps, warmup_steps = run_lengths(config, len(experiment.train_source))
    optimizer, _ = make_optimizer(config, total_steps=total_steps, warmup_steps=warmup_steps)
    initial = functools.partial(
        init_state, experiment.network, optimizer, seed=config.seed, image_size=config.data.image_size
    )
    state = checkpointer.restore_state(step, abstract_state(jax.eval_shape(initial), replicated(experiment.mesh)))
    checkpointer.close()
    return config, experiment, state


def chosen_columns(experiment: Experiment, features: str | None) -> dict[str, slice]:
    """Row name to the columns of r that it probes."""
    projector = experiment.config.projector
    available = {"all": ("r", slice(None))}
    if projector.name in SUBVECTOR_PROJECTORS:
        d0 = projector.d0
        available["selected"] = (f"r[:{d0}]", slice(0, d0))
        if d0 < experiment.width:
            available["rest"] = (f"r[{d0}:]", slice(d0, None))
    if features is not None and features not in available:
        known = " or ".join(available)
        raise SettingError(
            f"--features must be {known} for the projector '{projector.name}' with a {experiment.width}-d r, "
            f"found '{features}'"
        )
    chosen = available if features is None else {features: available[features]}
    return dict(chosen.values())


def score_features(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    config: Config,
    classes: int,
    per_class: int,
) -> Score:
    """Scores cached features `[n, d]` by logistic regression and nearest neighbours."""
    labels, targets = jnp.asarray(train_labels), jnp.asarray(test_labels)
    x, test_x = standardize(jnp.asarray(train), jnp.asarray(test))
    classifier = fit_logistic(x, labels, classes=classes)
    few = None
    if per_class:
        draws = np.stack([draw_labelled(train_labels, per_class=per_class, draw=draw) for draw in range(DRAWS)])
        fitted = jax.vmap(functools.partial(fit_logistic, classes=classes))(x[draws], labels[draws])
        few = jax.vmap(functools.partial(top_k_accuracy, k=1), (0, None, None))(fitted, test_x, targets)
    return Score(
        top1=float(top_k_accuracy(classifier, test_x, targets, k=1)),
        top5=float(top_k_accuracy(classifier, test_x, targets, k=5)),
        knn=nearest_neighbours(config, train, labels, test, targets, classes),
        few_label=None if few is None else float(jnp.mean(few)),
        few_label_std=None if few is None else float(jnp.std(few, ddof=1)),
        effective_rank=rank_of(test),
    )


def paper_scores(
    experiment: Experiment,
    state: TrainState,
    columns: dict[str, slice],
    train: Features,
    test: Features,
    per_class: int,
) -> dict[str, Score]:
    """Scores by the paper's recipe: SGD on augmented images, one classifier to a part of r, all in one pass."""
    source, classes = experiment.train_source, len(experiment.train_source.classes)
    config = experiment.config
    results = run_sgd(experiment, state, columns, source, test)
    few: dict[str, list[float]] = {name: [] for name in columns}
    for draw in range(DRAWS if per_class else 0):
        subset = Subset(source, draw_labelled(train.labels, per_class=per_class, draw=draw))
        for name, result in run_sgd(experiment, state, columns, subset, test).items():
            few[name].append(result["top1"])
    return {
        name: Score(
            **results[name],
            knn=nearest_neighbours(config, train.r[:, part], train.labels, test.r[:, part], test.labels, classes),
            few_label=float(np.mean(few[name])) if per_class else None,
            few_label_std=float(np.std(few[name], ddof=1)) if per_class else None,
            effective_rank=rank_of(test.r[:, part]),
        )
        for name, part in columns.items()
    }


def run_sgd(
    experiment: Experiment, state: TrainState, columns: dict[str, slice], source: Source, test: Features
) -> dict[str, dict[str, float]]:
    """One run of the paper's probe on a source."""
    config, settings = experiment.config, experiment.config.probe
    key = jax.random.fold_in(jax.random.key(config.seed), PROBE_STREAM)

    def represent(variables: Any, batch: dict[str, jax.Array]) -> jax.Array:
        images = one_view(
            batch["image"],
            key,
            batch["position"],
            size=config.data.image_size,
            settings=experiment.augmentation,
            cropped=config.data.stored_size == 0,
        )
        return experiment.network.apply(variables, images, train=False)[0]

    batch_size = probe_batch_size(experiment, len(source))
    loader = experiment.train_batches(source, batch_size=batch_size, views=1, seed=config.seed + PROBE_STREAM)
    try:
        return sgd_probe(
            represent,
            state.variables,
            loader,
            test,
            experiment.mesh,
            columns=columns,
            classes=len(experiment.train_source.classes),
            images=len(source),
            batch_size=batch_size,
            epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            seed=config.seed,
        )
    finally:
        loader.close()


def probe_batch_size(experiment: Experiment, images: int) -> int:
    """The probe's batch size: the config's, or less for fewer images, as a multiple of the devices."""
    devices = experiment.mesh.size
    return max(min(experiment.config.probe.batch_size, images) // devices, 1) * devices


def nearest_neighbours(config: Config, train: Any, labels: Any, test: Any, targets: Any, classes: int) -> float:
    """The weighted k-NN accuracy of features."""
    return knn_accuracy(
        train, labels, test, targets, classes=classes, neighbors=config.probe.neighbors, temperature=KNN_TEMPERATURE
    )


def rank_of(features: np.ndarray) -> float:
    """The effective rank of centred features."""
    return effective_rank(np.sqrt(spectrum(features, normalize=False)))


def untrained_variables(experiment: Experiment) -> Any:
    """The network before its first step, with batch statistics settled by one pass over the training images."""
    config, source = experiment.config, experiment.train_source

    def initial() -> Any:
        none = optax.identity()
        return init_state(experiment.network, none, seed=config.seed, image_size=config.data.image_size).variables

    def train_forward(variables: Any, images: jax.Array) -> Any:
        _, updates = experiment.network.apply(
            variables, experiment.normalized(images), train=True, mutable=["batch_stats"]
        )
        return updates["batch_stats"]

    batch_size = probe_batch_size(experiment, len(source))
    # Shuffled, since the images of a folder lie class by class and a batch of one class is not like the data.
    loader = experiment.train_batches(source, batch_size=batch_size, views=1, seed=config.seed)
    try:
        batches = (next(loader) for _ in range(max(len(source) // batch_size, 1)))
        variables = jax.jit(initial, out_shardings=replicated(experiment.mesh))()
        return settle_batch_stats(train_forward, variables, batches, experiment.mesh, momentum=0.9)
    finally:
        loader.close()


def pixels(experiment: Experiment, source: Source) -> np.ndarray:
    """The images themselves as features `[n, s * s * 3]`, at 32 px at most."""
    data = experiment.config.data
    size = min(data.stored_size or data.image_size, PIXELS)

    def forward(_: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        plain = normalize(images, size=size, mean=(0.0,) * 3, std=(1.0,) * 3).reshape(len(images), -1)
        return plain, plain[:, :0]

    return extract(forward, {}, experiment.eval_batches(source), experiment.mesh).r


def write_features(path: str, train: Features, test: Features) -> None:
    """Writes features as one .npz, whole or not at all."""
    arrays = {"r": test.r, "z": test.z, "labels": test.labels}
    arrays |= {"train_r": train.r, "train_z": train.z, "train_labels": train.labels}
    try:
        replace_npz(pathlib.Path(path), arrays)
    except OSError as error:
        raise SettingError(f"--export {path} cannot be written ({error.strerror}); name a file that can") from error


def main(argv: Sequence[str]) -> None:
    """Parses the command line and probes."""
    parser = cli.Parser(prog="python -m dcjax.probe", description=__doc__ or "")
    parser.add_argument("--workdir", required=True, help="the folder of a run of dcjax.main")
    parser.add_argument(
        "--features", choices=PARTS, help="probe r, r[:d0] or r[d0:] alone (default: each that there is)"
    )
    parser.add_argument("--labels_per_class", type=int, help="also with so few labels, averaged over 5 fixed draws")
    parser.add_argument("--data_dir", help="where the data lies now (default: where the run found it)")
    parser.add_argument("--export", metavar="FILE.npz", help="write r, z and labels")
    flags = parser.parse_args(argv)
    probe(
        flags.workdir,
        features=flags.features,
        labels_per_class=flags.labels_per_class,
        data_dir=flags.data_dir,
        export=flags.export,
    )


if __name__ == "__main__":
    cli.run(main)
