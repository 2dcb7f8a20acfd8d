"""Looks at r and z of a fixed batch of views during the training, without any effect on it."""

import concurrent.futures
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dcjax.collapse.monitor import Look, look
from dcjax.runtime.errors import SettingError, first_line
from dcjax.runtime.mesh import check_batch, to_devices

LEAST_IMAGES = 256

Projector = Callable[[jax.Array, Any], jax.Array]


class Monitor:
    """Dispatches the forward passes of a look between two steps; a thread waits for them and computes the measures.

    Args:
      encode: a jitted function of the variables and of a global batch to r, z, r_prime and z_prime, whole on every
        device.
      batches: this process's share of each batch, as `encode` takes them.
      mesh: the devices.
      loss: the loss of the embeddings of two views.
      chances: `dcjax.losses.chance_loss` of the training's batch, "chance", and of the images of a look, "loss_chance".
      width: d, the entries of r.
      projector: from r `[n, d]` and the variables to z, where that is a linear map with parameters; None otherwise.
    """

    def __init__(
        self,
        encode: Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]],
        batches: Sequence[dict[str, np.ndarray]],
        mesh: Mesh,
        *,
        loss: Callable[[jax.Array, jax.Array], jax.Array],
        chances: Mapping[str, float | None],
        width: int,
        projector: Projector | None,
    ):
        self._encode, self._batches, self._mesh = encode, batches, mesh
        self._loss, self._chances = jax.jit(loss), chances
        self._matrices = jax.jit(lambda variables: matrices(variables, width, projector))
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="monitor")

    def look(self, step: int, variables: Any) -> "concurrent.futures.Future[Look]":
        """Starts a look. Every process calls it; the first one has the result.

        Args:
          step: optimiser steps taken.
          variables: of the network; they may be donated to the next step once this returns.
        """
        parts = [self._encode(variables, to_devices(batch, self._mesh)) for batch in self._batches]
        return self._worker.submit(self._measure, step, parts, self._matrices(variables))

    def close(self) -> None:
        """Waits for the looks under way."""
        self._worker.shutdown()

    def _measure(self, step: int, parts: list[dict[str, jax.Array]], found: tuple[jax.Array, ...]) -> Look:
        if jax.process_index() != 0:
            return Look(step, {}, {}, {}, {})
        views = jax.tree.map(lambda *rows: np.concatenate(rows), *jax.device_get(parts))
        values = {"loss": float(self._loss(views["z"], views["z_prime"]))}
        values |= {name: value for name, value in self._chances.items() if value is not None}
        try:
            return look(step, views, values=values, matrices=jax.device_get(found) or None)
        except (ValueError, np.linalg.LinAlgError) as error:  # a look must not cost a run
            finite = {name: value for name, value in values.items() if math.isfinite(value)}
            return Look(step, finite, {}, {"z": f"the embedding could not be measured ({first_line(error)})"}, {})


def matrices(variables: Any, width: int, projector: Projector | None) -> tuple[jax.Array, ...]:
    """The kernel `[inputs, d]` of the convolution before r, and the matrix `[d, e]` of a linear projector.

    Empty without such a projector, or where the encoder's last convolution does not have the d outputs of r.
    """
    if projector is None or "projector" not in variables["params"]:
        return ()
    leaves = jax.tree_util.tree_flatten_with_path(variables["params"]["encoder"])[0]
    kernels = {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves if leaf.ndim == 4}
    # Modules bear torchvision's names, so the last one in their order is the last block's, or the one of its shortcut.
    names = sorted(name for name in kernels if "downsample" not in name)
    if not names or kernels[names[-1]].shape[-1] != width:
        return ()
    return jnp.copy(kernels[names[-1]].reshape(-1, width)), projector(jnp.eye(width), variables)


def view_batches(images: int, *, wanted: int, width: int, largest: int, mesh: Mesh) -> tuple[int, int]:
    """The batch size and the number of batches of a look.

    Args:
      images: images of the source.
      wanted: the setting: images of a look, or 0 for twice the width, but `LEAST_IMAGES` at least, as far as there are
        so many.
      width: entries of r; the rows have to be more for a verdict.
      largest: images that the devices encode at a time.
      mesh: the devices, which share a batch evenly.

    Raises:
      SettingError: the setting is more than there are images, or no multiple of the devices.
    """
    if wanted > images:
        raise SettingError(f"monitor.images must be at most the {images} images that there are, found {wanted}")
    if wanted:
        check_batch(wanted, mesh, setting="monitor.images")
        most = next(size for size in range(min(largest, wanted), 0, -1) if wanted % size == 0 and size % mesh.size == 0)
        return most, wanted // most
    count = min(max(2 * width, LEAST_IMAGES), images)
    size = min(largest, max(count // mesh.size, 1) * mesh.size)
    return size, max(count // size, 1)
