"""From a config to the objects that it describes, for pre-training and the probe alike.

With `main`, `pretrain` and `probe` this is where config objects end: everything below takes plain keyword arguments.
"""

import dataclasses
import functools
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dcjax.config import Config
from dcjax.data import Source, TrainLoader, eval_batches, open_source, train_loader
from dcjax.data.augment import Augmentation, normalize
from dcjax.data.crops import INTERPOLATIONS
from dcjax.evaluation import SCHEDULES, Batch, Encode, Features, extract, make_encode
from dcjax.losses import LOSSES
from dcjax.models import SMALLEST_IMAGE, Network, make_encoder, make_projector
from dcjax.runtime.errors import SettingError, unknown_name
from dcjax.runtime.mesh import check_batch, make_mesh
from dcjax.runtime.randomness import Stream, host_seed

PREFETCH = 2  # batches that the host reads ahead
EVAL_IMAGES = 128  # that a device encodes at a time: of 224 px, a ResNet-50's activations in float32 take some 3 GB


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config describes, built.

    Attributes:
      config: the config itself.
      mesh: the devices.
      train_source: the training images.
      test_source: the test images; None where the data has no labels or no test split.
      network: encoder, projector and online classifier, in the compute dtype of training.
      exact_network: the same in float32, for features: bfloat16 would put a floor of noise under a collapsed spectrum.
      frozen_network: `network` without the classifier, in the compute dtype, for the SGD probe's millions of images.
      width: entries of the representation r.
      augmentation: settings of the two views.
    """

    config: Config
    mesh: Mesh
    train_source: Source
    test_source: Source | None
    network: Network
    exact_network: Network
    frozen_network: Network
    width: int
    augmentation: Augmentation

    def train_batches(
        self, source: Source, *, batch_size: int, views: int, interpolation: str, stream: Stream
    ) -> TrainLoader:
        """This process's share of shuffled batches without end, in the order (and with the host crops) of a stream."""
        data = self.config.data
        return train_loader(
            source,
            batch_size=batch_size,
            seed=host_seed(self.config.seed, stream),
            size=data.image_size,
            stored_size=data.stored_size,
            scale=self.augmentation.crop_scale,
            ratio=self.augmentation.crop_ratio,
            interpolation=interpolation,
            views=views,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=data.threads,
            prefetch=PREFETCH,
            max_damaged=data.max_damaged,
        )

    def eval_batches(self, source: Source, *, batch_size: int | None = None) -> Iterator[Batch]:
        """This process's share of every image once, in order; in batches of `eval_batch_size` unless one is given."""
        data = self.config.data
        return eval_batches(
            source,
            batch_size=batch_size or self.eval_batch_size,
            size=data.image_size,
            stored_size=data.stored_size,
            interpolation=self.config.probe.interpolation,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=data.threads,
            max_damaged=data.max_damaged,
        )

    @property
    def eval_batch_size(self) -> int:
        """Images of all devices that are encoded at a time; the last batch is padded."""
        return self.config.probe.eval_batch_size or EVAL_IMAGES * self.mesh.size

    def normalized(self, images: jax.Array) -> jax.Array:
        """uint8 images `[n, s, s, 3]` as the encoder takes them, without augmentation."""
        return normalize(
            images,
            size=self.config.data.image_size,
            interpolation=self.augmentation.interpolation,
            mean=self.augmentation.mean,
            std=self.augmentation.std,
        )

    @functools.cached_property
    def encode(self) -> Encode:
        """The frozen network in evaluation mode and full precision, compiled once."""

        def forward(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
            with jax.default_matmul_precision("float32"):  # the default is TF32 on a GPU and bfloat16 on a TPU
                out: Any = self.exact_network.apply(variables, self.normalized(images), train=False)
            return {"r": out[0], "z": out[1]}

        return make_encode(forward, self.mesh)

    def features(self, variables: Any, source: Source, *, keep: Sequence[str] = ("r",)) -> Features:
        """The labels of a source's images, and of r and z those that are to be kept."""
        batches = self.eval_batches(source)
        return extract(self.encode, variables, batches, self.mesh, images=len(source), keep=keep)


def build(config: Config) -> Experiment:
    """Opens the data and builds the modules of a config.

    Raises:
      ValueError: any setting that cannot be used, before anything is compiled.
    """
    check_values(config)
    mesh = make_mesh(config.devices)
    if config.probe.eval_batch_size:
        check_batch(config.probe.eval_batch_size, mesh, setting="probe.eval_batch_size")
    if config.loss.name not in LOSSES:
        raise unknown_name("loss.name", config.loss.name, LOSSES)
    if not (config.loss.temperature > 0 and math.isfinite(config.loss.temperature)):
        raise SettingError(f"loss.temperature must be positive and finite, found {config.loss.temperature}")
    block_size = str(config.loss.block_size)
    if block_size not in ("auto", "none") and not (block_size.isdecimal() and int(block_size)):
        raise SettingError(f"loss.block_size must be auto, none or a whole number of at least 1, found {block_size}")
    model, dtype = config.model, compute_dtype(config.model.dtype)

    def network(dtype: Any, classes: int) -> Network:
        encoder = make_encoder(model.name, width=model.width, stem=model.stem, dtype=dtype, remat=model.remat)
        return Network(encoder, make_projector(width=encoder.features, dtype=dtype, **config.projector), classes)

    width = network(dtype, 0).encoder.features
    least = SMALLEST_IMAGE[model.stem]
    if config.data.image_size < least:
        raise SettingError(
            f"data.image_size must be at least {least} for model.stem '{model.stem}', found {config.data.image_size}"
        )
    augmentation = Augmentation(**config.augment)

    data = config.data
    train_source = open_source(data.name, dir=data.dir, dataset=data.dataset, split=data.train_split)
    test_source = None
    if train_source.classes and data.test_split:
        test_source = open_source(
            data.name, dir=data.dir, dataset=data.dataset, split=data.test_split, classes=train_source.classes
        )
    if config.probe.after_training:
        check_labels(config, train_source)
        if not config.probe.cached:
            sgd_batch_size(config, mesh, len(train_source))
    return Experiment(
        config,
        mesh,
        train_source,
        test_source,
        network=network(dtype, len(train_source.classes)),
        exact_network=network(jnp.float32, 0),
        frozen_network=network(dtype, 0),
        width=width,
        augmentation=augmentation,
    )


def check_values(config: Config) -> None:
    """Raises `ValueError` for a number out of its range or a name that is not known."""
    counts = {
        "log_every_steps": (config.log_every_steps, 1),
        "checkpoint_every_steps": (config.checkpoint_every_steps, 1),
        "data.image_size": (config.data.image_size, 1),
        "data.stored_size": (config.data.stored_size, 0),
        "data.threads": (config.data.threads, 0),
        "probe.batch_size": (config.probe.batch_size, 1),
        "probe.eval_batch_size": (config.probe.eval_batch_size, 0),
        "probe.epochs": (config.probe.epochs, 1),
        "probe.labels_per_class": (config.probe.labels_per_class, 0),
        "probe.neighbors": (config.probe.neighbors, 1),
    }
    for setting, (found, least) in counts.items():
        if found < least:
            raise SettingError(f"{setting} must be at least {least}, found {found}")
    if not 0 <= config.seed < 2**32:
        raise SettingError(f"seed must be from 0 to 2^32 - 1, found {config.seed}")
    for setting, value in (("total_epochs", config.total_epochs), ("warmup_epochs", config.optimizer.warmup_epochs)):
        if not math.isfinite(value):
            raise SettingError(f"{setting} must be a finite number, found {value}")
    if not 0 <= config.data.max_damaged < 1:
        raise SettingError(f"data.max_damaged must be a share from 0 to below 1, found {config.data.max_damaged}")
    for setting, name, known in (
        ("probe.schedule", config.probe.schedule, SCHEDULES),
        ("probe.interpolation", config.probe.interpolation, INTERPOLATIONS),
    ):
        if name not in known:
            raise unknown_name(setting, name, known)
    if not (config.probe.learning_rate > 0 and 0 <= config.probe.momentum < 1 and config.probe.weight_decay >= 0):
        raise SettingError(
            "probe.learning_rate must be positive, probe.momentum in [0, 1) and probe.weight_decay at least 0, found "
            f"{config.probe.learning_rate}, {config.probe.momentum} and {config.probe.weight_decay}"
        )


def compute_dtype(name: str) -> Any:
    """The dtype that the networks compute in: "auto" is bfloat16 on accelerators and float32 on CPU."""
    dtypes = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
    dtypes["auto"] = dtypes["float32" if jax.default_backend() == "cpu" else "bfloat16"]
    if name not in dtypes:
        raise unknown_name("model.dtype", name, dtypes)
    return dtypes[name]


def check_labels(config: Config, source: Source) -> None:
    """Raises `ValueError` where a probe has nothing to tell apart, or nothing to be tested on."""
    if len(source.classes) < 2:
        found = f"the single class '{source.classes[0]}'" if source.classes else "images without class folders"
        where = f"data.dir {config.data.dir}" if config.data.dir else f"data.name '{config.data.name}'"
        raise SettingError(f"a probe needs images of two classes or more, {where} holds {found}")
    if not config.data.test_split:
        raise SettingError("a probe needs a test split, data.test_split is empty")


def sgd_batch_size(config: Config, mesh: Mesh, images: int) -> int:
    """The batch of the SGD probe: as configured, or of a smaller source what the devices can share evenly.

    Raises:
      SettingError: the devices do not divide `probe.batch_size`.
    """
    if images < config.probe.batch_size:
        return max(images // mesh.size, 1) * mesh.size
    check_batch(config.probe.batch_size, mesh, setting="probe.batch_size")
    return config.probe.batch_size


def run_lengths(config: Config, images: int) -> tuple[int, int]:
    """Steps of the whole run and of its warm-up, from `*_steps` where given and `*_epochs` otherwise."""

    def steps(count: int | None, epochs: float) -> int:
        return count if count is not None else round(epochs * images / config.batch_size)

    if config.batch_size > images:
        raise SettingError(f"batch_size must be at most the {images} training images, found {config.batch_size}")
    total = steps(config.total_steps, config.total_epochs)
    if total < 1:
        raise SettingError(f"total_steps (or total_epochs) must give at least one step, found {total}")
    return total, steps(config.optimizer.warmup_steps, config.optimizer.warmup_epochs)


def open_workdir(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """The run's folder, made where it is missing.

    Raises:
      ValueError: it cannot be made or written to.
    """
    if "://" in str(workdir):
        raise SettingError(f"--workdir must be a path that every host has mounted, found the address {workdir}")
    path = pathlib.Path(workdir).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        reason = error.strerror
        raise SettingError(f"--workdir {path} cannot be written to ({reason}); name a folder that can") from error
    return path
