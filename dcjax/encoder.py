"""Loads the encoder of a checkpoint, without the data set of its run, to encode other images."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float

from dcjax.components import make_modules
from dcjax.config import from_saved
from dcjax.data import crops
from dcjax.data.augment import normalize
from dcjax.runtime.mesh import make_mesh, replicated
from dcjax.schema import Config
from dcjax.training.checkpoint import open_run
from dcjax.training.manifest import FOLDER, run_and_step


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Encoder:
    """A frozen encoder.

    Attributes:
      module: the Linen module, in float32: `module.apply(variables, images, train=False)` takes normalised images
        `[n, s, s, 3]`.
      variables: its parameters, batch statistics and constants, on the first device.
      config: the config of its run.
      step: the optimiser steps that it was trained for.
    """

    module: nn.Module
    variables: dict[str, Any]
    config: Config
    step: int

    def __repr__(self) -> str:
        name, d = self.config.model.name, getattr(self.module, "features", "?")
        return (
            f"Encoder({name}, r of {d} entries, {self.step:,} steps with the projector '{self.config.projector.name}')"
        )

    def encode(self, images: np.ndarray | Sequence[np.ndarray], *, batch_size: int = 128) -> Float[np.ndarray, "n d"]:
        """Encodes images with the preprocessing of the run's test images.

        If all images of the run have one size (`data.stored_size`), an image of this size is taken whole, and the
        central square of any other image is resized to it. Otherwise the shorter side is resized to 256/224 of
        `data.image_size` and the centre is cropped.

        Args:
          images: RGB, `[n, h, w, 3]` or a sequence of images `[h, w, 3]` of any sizes. They are uint8, or floats in
            [0, 1], which are rounded to 8 bits because training images have 8 bits.
          batch_size: images that are encoded at a time, at most; batches are padded to a power of two or to this.

        Returns:
          r, `[n, d]` float32.

        Raises:
          ValueError: an image has another shape, dtype or range, or the batch size is not a number of images.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, found {batch_size}")
        if not isinstance(images, Sequence | np.ndarray) or (isinstance(images, np.ndarray) and images.ndim != 4):
            found = f"the shape {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
            raise ValueError(f"images must be [n, h, w, 3] or a sequence of [h, w, 3], found {found}")
        side = self.config.data.stored_size or self.config.data.image_size
        batch_size = min(batch_size, 1 << max(len(images) - 1, 0).bit_length())  # few sizes, so few compilations
        rows: list[Any] = []
        for start in range(0, len(images), batch_size):
            batch = np.zeros((batch_size, side, side, 3), np.uint8)
            chunk = images[start : start + batch_size]
            for place, image in zip(batch, chunk, strict=False):
                place[:] = self._preprocess(np.asarray(image))
            rows.append(self._compiled(self.variables, batch))
            if len(rows) > 1:  # fetched while the next batch is computed
                rows[-2] = np.asarray(rows[-2])
        module: Any = self.module
        return np.concatenate(rows)[: len(images)] if rows else np.zeros((0, module.features), np.float32)

    def _preprocess(self, image: np.ndarray) -> np.ndarray:
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"images must be [h, w, 3], found the shape {image.shape}")
        if np.issubdtype(image.dtype, np.floating):
            if not (image.min() >= 0 and image.max() <= 1):
                raise ValueError(f"images of floats must lie in [0, 1], found {image.min():g} to {image.max():g}")
            image = np.rint(255 * image).astype(np.uint8)
        if image.dtype != np.uint8:
            raise ValueError(f"images must be uint8 or floats in [0, 1], found {image.dtype}")
        side, interpolation = self.config.data.stored_size, self.config.probe.interpolation
        if not side:
            return crops.center_crop(image, self.config.data.image_size, interpolation=interpolation)
        height, width = image.shape[:2]
        if (height, width) == (side, side):
            return image
        square = min(height, width)
        box = ((height - square) // 2, (width - square) // 2, square, square)
        return crops.crop_resize(image, box, side, interpolation=interpolation)

    @functools.cached_property
    def _compiled(self) -> Any:
        augment, size = self.config.augment, self.config.data.image_size

        @jax.jit
        def encode(variables: Any, images: jax.Array) -> jax.Array:
            x = normalize(images, size=size, interpolation=augment.interpolation, mean=augment.mean, std=augment.std)
            with jax.default_matmul_precision("float32"):  # the default is TF32 on a GPU and bfloat16 on a TPU
                r: Any = self.module.apply(variables, x, train=False)
            return r

        return encode


def load_encoder(run_or_checkpoint: str | os.PathLike[str]) -> Encoder:
    """Loads the encoder of a run without opening its data set, in a single process.

    Args:
      run_or_checkpoint: the run's folder, for its last whole checkpoint, or one of the folders in its `checkpoints/`.

    Returns:
      The encoder, on the first device, computing in float32.

    Raises:
      SettingError: there is no whole checkpoint, the named one is damaged, or another version of the package wrote it.
      InterruptedRunError: a file cannot be read at this moment.
    """
    path, step = run_and_step(run_or_checkpoint)
    checkpointer, step = open_run(path, step)
    with contextlib.closing(checkpointer):
        _, saved = checkpointer.restore_record(step)
        config = from_saved(saved, path / FOLDER / str(step), remedy="load it with the version of dcjax that wrote it")
        variables = checkpointer.restore_variables(step, replicated(make_mesh(1)))
    module, _ = make_modules(config, jax.numpy.float32)
    collections = {name: variables[name].get("encoder", {}) for name in ("params", "batch_stats", "constants")}
    return Encoder(module, collections, config, step)
