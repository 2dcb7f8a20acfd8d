"""Builds the parts that a config describes (devices, images, networks) for training and for the probe.

Config objects end here, in `pretrain`, in the probe's protocol and in the commands. Everything below takes plain
keyword arguments and names them in its errors; `section` adds the config's section.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dcjax.config import read_config
from dcjax.data import (
    Augmentation,
    FixedSizeImages,
    Source,
    TolerantSource,
    TrainLoader,
    eval_batches,
    open_source,
    train_loader,
)
from dcjax.data.augment import normalize, two_views
from dcjax.evaluation import Batch, Encode, Features, extract, make_encode
from dcjax.losses import LOSSES, chance_loss
from dcjax.models import Network, make_encoder, make_projector, smallest_image
from dcjax.runtime.errors import SettingError
from dcjax.runtime.mesh import batch_sharding, check_batch, make_mesh, replicated
from dcjax.runtime.randomness import Stream, device_key, host_seed
from dcjax.schema import Config, DataConfig, check_config, section, with_values
from dcjax.training.checkpoint import open_run
from dcjax.training.manifest import run_and_step
from dcjax.training.monitor import Monitor, images_wanted, view_batches

PREFETCH = 2  # batches that the host reads ahead
EVAL_IMAGES = 128  # images that a device encodes at a time; at 224 px, a ResNet-50's float32 activations take 3 GB


@dataclasses.dataclass(frozen=True, eq=False)
class Components:
    """The parts of a run.

    Attributes:
      config: the checked config.
      mesh: the devices.
      train_source: the training images.
      test_source: the test images; None where the data has no labels or no test split.
      network: encoder, projector and online classifier, as they are trained.
      augmentation: settings of the two views.
    """

    config: Config
    mesh: Mesh
    train_source: Source
    test_source: Source | None
    network: Network
    augmentation: Augmentation

    @property
    def width(self) -> int:
        """Entries of the representation r."""
        return self.network.encoder.features

    def train_batches(
        self, source: Source, *, batch_size: int, views: int, interpolation: str, stream: Stream
    ) -> TrainLoader:
        """Endless shuffled batches, of which this process gets its share.

        Args:
          source: the images.
          batch_size: the global batch.
          views: crops per image, where they are made on the host.
          interpolation: the interpolation of these crops.
          stream: the stream of randomness that fixes the order and these crops.
        """
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
        )

    def eval_batches(self, source: Source, *, batch_size: int | None = None) -> Iterator[Batch]:
        """This process's share of batches that hold every image once, in order; `eval_batch_size` is the default."""
        data = self.config.data
        batches = eval_batches(
            source,
            batch_size=batch_size or self.eval_batch_size,
            size=data.image_size,
            stored_size=data.stored_size,
            interpolation=self.config.probe.interpolation,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=data.threads,
        )
        with section("data"):
            yield from batches

    @property
    def eval_batch_size(self) -> int:
        """Images that all devices together encode at a time; the last batch is padded."""
        return self.config.probe.eval_batch_size or EVAL_IMAGES * self.mesh.size

    def normalized(self, images: jax.Array) -> jax.Array:
        """Prepares uint8 images `[n, s, s, 3]` for the encoder, without augmentation."""
        return normalize(
            images,
            size=self.config.data.image_size,
            interpolation=self.augmentation.interpolation,
            mean=self.augmentation.mean,
            std=self.augmentation.std,
        )

    @functools.cached_property
    def exact_network(self) -> Network:
        """The network without its classifier, in float32: bfloat16's noise would hide the collapse of a spectrum."""
        return Network(*make_modules(self.config, jnp.float32), classes=0)

    @functools.cached_property
    def encode(self) -> Encode:
        """The frozen network in evaluation mode and full precision, from images to r and z; compiled once."""

        def forward(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
            with jax.default_matmul_precision("float32"):  # the default is TF32 on a GPU and bfloat16 on a TPU
                out: Any = self.exact_network.apply(variables, self.normalized(images), train=False)
            return {"r": out.r, "z": out.z}

        return make_encode(forward, self.mesh)

    def features(self, variables: Any, source: Source, *, keep: Sequence[str] = ("r",)) -> Features:
        """The labels of a source's images, and r and z as far as `keep` names them."""
        batches = self.eval_batches(source)
        return extract(self.encode, variables, batches, self.mesh, images=len(source), keep=keep)

    @functools.cached_property
    def encode_views(self) -> Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]:
        """The frozen network in evaluation mode and full precision, on two augmented views; compiled once.

        A function of the variables and of a batch of `view_batches` on the devices, to r, z, r_prime and z_prime, whole
        on every device.
        """
        key = device_key(self.config.seed, Stream.COLLAPSE_VIEWS)

        def forward(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
            images, positions = batch["image"], batch["position"]
            options: Any = {"size": self.config.data.image_size, "settings": self.augmentation, "mesh": self.mesh}
            views = jnp.stack(two_views(images, key, positions, **options), axis=1)  # [n, 2, s, s, 3]
            with jax.default_matmul_precision("float32"):
                both = views.reshape(-1, *views.shape[2:])  # one program for both: evaluation mode mixes no rows
                out: Any = self.exact_network.apply(variables, both, train=False)
            return {"r": out.r[::2], "z": out.z[::2], "r_prime": out.r[1::2], "z_prime": out.z[1::2]}

        sharding = (replicated(self.mesh), batch_sharding(self.mesh))
        return jax.jit(forward, in_shardings=sharding, out_shardings=replicated(self.mesh))

    def view_batches(self, source: Source, *, batch_size: int, batches: int) -> Iterator[Batch]:
        """This process's share of the first batches of images for `encode_views`, in a fixed random order."""
        crops = {"views": 2, "interpolation": self.augmentation.interpolation}
        loader = self.train_batches(source, batch_size=batch_size, stream=Stream.COLLAPSE_VIEWS, **crops)
        try:
            with section("data"):
                for _ in range(batches):
                    batch = next(loader)
                    yield {"image": batch["image"], "position": batch["position"]}
        finally:
            loader.close()

    def monitor(self) -> Monitor | None:
        """The monitor of the training, on test images or, where those are too few, training images; None if it is off.

        Raises:
          SettingError: `monitor.images` is more than there are, or the devices cannot share it in even batches.
        """
        config, settings = self.config, self.config.monitor
        if settings.every_steps is None:
            return None
        projector = self.exact_network.projector
        width = max(self.width, getattr(projector, "features", 0))
        source, split = self.test_source, "test"
        enough = max(settings.images or min(images_wanted(0, width), len(self.train_source)), self.mesh.size)
        if source is None or (len(source) < enough and not settings.images):
            source, split = self.train_source, "training"
        # Half as many images as without augmentation, because of each there are two views.
        largest = max(self.eval_batch_size // 2 // self.mesh.size, 1) * self.mesh.size
        size, count = view_batches(len(source), setting=settings.images, width=width, largest=largest, mesh=self.mesh)
        if jax.process_index() == 0:
            few = "" if size * count > width else f" (too few for a verdict on {width} dimensions)"
            print(
                f"dcjax: every {settings.every_steps} steps the monitor looks at two views of {size * count} {split} "
                f"images{few}",
                flush=True,
            )

        def linear(r: jax.Array, variables: Any) -> jax.Array:
            own = {name: tree["projector"] for name, tree in variables.items() if "projector" in tree}
            return projector.apply(own, r, train=False)  # pyright: ignore[reportReturnType]

        chances = [chance_loss(config.loss.name, pairs) for pairs in (config.batch_size, size * count)]
        return Monitor(
            self.encode_views,
            lambda: list(self.view_batches(source, batch_size=size, batches=count)),
            self.mesh,
            loss=functools.partial(LOSSES[config.loss.name], temperature=config.loss.temperature),
            chances=dict(zip(("chance", "loss_chance"), chances, strict=True)),
            width=self.width,
            projector=linear if getattr(projector, "is_linear", False) else None,
        )

    def check_probe(self) -> None:
        """Raises `SettingError` if the probe's settings and the data do not fit each other, before any work is done."""
        data, classes = self.config.data, self.train_source.classes
        if len(classes) < 2:
            found = f"the single class '{classes[0]}'" if classes else "images without class folders"
            where = f"data.dir {data.dir}" if data.dir else f"data.name '{data.name}'"
            raise SettingError(f"a probe needs images of two classes or more, but {where} holds {found}")
        if not data.test_split:
            raise SettingError("a probe needs a test split, but data.test_split is empty; name a split")
        neighbors, images = self.config.probe.neighbors, len(self.train_source)
        if neighbors > images:
            raise SettingError(f"probe.neighbors must be at most the {images} training images, found {neighbors}")
        if not self.config.probe.cached:
            self.sgd_batch_size(images)

    def sgd_batch_size(self, images: int) -> int:
        """The batch size of the SGD probe: `probe.batch_size`, or less for a source that is smaller than this.

        Args:
          images: training images. If they are fewer than a batch, the devices share as many as they can evenly.

        Raises:
          SettingError: the devices do not divide `probe.batch_size`.
        """
        batch_size = self.config.probe.batch_size
        if images < batch_size:
            return max(images // self.mesh.size, 1) * self.mesh.size
        check_batch(batch_size, self.mesh, setting="probe.batch_size")
        return batch_size


def build(config: ConfigDict | Config) -> Components:
    """Opens the data and builds the modules of a config.

    Raises:
      SettingError: a setting cannot be used; this is found before anything is compiled.
    """
    checked = check_config(config)
    mesh = make_mesh(checked.devices)
    if checked.probe.eval_batch_size:
        check_batch(checked.probe.eval_batch_size, mesh, setting="probe.eval_batch_size")
    encoder, projector = make_modules(checked)
    data = checked.data
    least = smallest_image(encoder)
    if data.image_size < least:
        raise SettingError(
            f"data.image_size must be at least {least} for the encoder '{checked.model.name}' with the stem "
            f"'{checked.model.stem}', found {data.image_size}"
        )
    with section("augment"):
        augmentation = Augmentation(**dataclasses.asdict(checked.augment))
        augmentation.check_size(data.image_size)
    train_source, test_source = open_split(data, "train_split"), None
    if train_source.classes and data.test_split:
        test_source = open_split(data, "test_split", classes=train_source.classes)
    if len(test_source or train_source) < 2:
        raise SettingError("the spectrum at the end of a run needs two images or more, but the data has a single one")
    network = Network(encoder, projector, classes=len(train_source.classes))
    components = Components(checked, mesh, train_source, test_source, network, augmentation)
    if checked.probe.after_training:
        components.check_probe()
    return components


def open_split(data: DataConfig, key: str, *, classes: Sequence[str] = ()) -> Source:
    """Opens the images of a split; to be called once, so that a run counts damaged images and caches pixels once.

    Args:
      data: the section of the config.
      key: the key that names the split, `train_split` or `test_split`.
      classes: for the test split, the class names of the training source.

    Raises:
      SettingError: the source or the split cannot be opened.
    """
    with section("data"):
        try:
            source = open_source(
                data.name, dir=data.dir, dataset=data.dataset, split=getattr(data, key), classes=classes
            )
        except ValueError as error:
            if not str(error).startswith("split = "):
                raise
            remedy = "; leave it empty to go without test images" if key == "test_split" else ""
            raise ValueError(f"{str(error).replace('split', key, 1)}{remedy}") from error
        source = TolerantSource(source, data.max_damaged)
        if not data.stored_size:
            return source
        source = FixedSizeImages(source, data.stored_size)
        source.read_many(np.zeros(1, np.int64))  # a wrong size is found now rather than after compilation
        return source


def make_modules(config: Config, dtype: Any = None, *, platform: str | None = None) -> tuple[Any, Any]:
    """The encoder and the projector of a config, in its compute dtype unless another one is given.

    Args:
      config: the checked config.
      dtype: the compute dtype; None for that of `model.dtype`.
      platform: the platform that `model.dtype=auto` is to suit; None for that of the devices here.

    Raises:
      SettingError: settings contradict each other, such as a d0 above the width of r.
    """
    model, projector = config.model, dataclasses.asdict(config.projector)
    if dtype is None:
        auto = jnp.float32 if (platform or jax.default_backend()) == "cpu" else jnp.bfloat16
        dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "auto": auto}[model.dtype]
    with section("model"):
        encoder = make_encoder(model.name, width=model.width, stem=model.stem, dtype=dtype, remat=model.remat)
    with section("projector"):
        return encoder, make_projector(width=encoder.features, dtype=dtype, **projector)


def load_run(
    run_or_checkpoint: str | os.PathLike[str], *, data_dir: str | None = None, devices: int = 0
) -> tuple[Components, dict[str, Any], int]:
    """The parts of a trained run, the variables of a checkpoint, and its step.

    The variables are those of the frozen network in their saved shapes. The online classifier is left out, since the
    data may have other classes now.

    Args:
      run_or_checkpoint: the run's folder, for its last whole checkpoint, or one of the folders in its `checkpoints/`.
      data_dir: the folder of the data, if it is not the one in the run's config.
      devices: how many devices to use; 0 for all.

    Raises:
      SettingError: the run has no whole checkpoint, or its config or data cannot be used.
      InterruptedRunError: a file cannot be read at this moment.
    """
    workdir, step = run_and_step(run_or_checkpoint)
    checkpointer, step = open_run(workdir, step)
    changes = {"devices": devices, **({} if data_dir is None else {"data.dir": data_dir})}
    with contextlib.closing(checkpointer):
        components = build(with_values(read_config(workdir), changes))
        return components, checkpointer.restore_variables(step, replicated(components.mesh)), step
