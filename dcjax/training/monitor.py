"""Looks at r and z of a fixed batch of views during the training, without any effect on it."""

import concurrent.futures
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dcjax.collapse.monitor import Look, finite, look
from dcjax.runtime.errors import SettingError, first_line
from dcjax.runtime.mesh import check_batch, replicated, to_devices

LEAST_IMAGES = 256
BATCHES_IN_FLIGHT = 2  # of a look, on the devices at a time

Batch = dict[str, np.ndarray]
Projector = Callable[[jax.Array, Any], jax.Array]


class Monitor:
    """Dispatches the forward passes of a look between two steps; a thread waits for them and computes the measures.

    Args:
      encode: a jitted function of the variables and of a global batch to r, z, r_prime and z_prime, whole on every
        device.
      read: reads this process's share of each batch, as `encode` takes them; called once, at the first look.
      mesh: the devices.
      loss: the loss of the embeddings of two views.
      chances: `dcjax.losses.chance_loss` of the training's batch, "chance", and of the images of a look, "loss_chance".
      width: d, the entries of r.
      projector: from r `[n, d]` and the variables to z, where that is a linear map; None otherwise.
    """

    def __init__(
        self,
        encode: Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]],
        read: Callable[[], Sequence[Batch]],
        mesh: Mesh,
        *,
        loss: Callable[[jax.Array, jax.Array], jax.Array],
        chances: Mapping[str, float | None],
        width: int,
        projector: Projector | None,
    ):
        self._encode, self._read, self._mesh = encode, read, mesh
        self._batches: Sequence[Batch] | None = None
        self._loss = jax.jit(loss)
        self._chances = {name: value for name, value in chances.items() if value is not None}
        self._matrices = jax.jit(
            lambda variables: matrices(variables, width, projector), out_shardings=replicated(mesh)
        )
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="monitor")
        self._last: concurrent.futures.Future[Look] | None = None

    def look(self, step: int, variables: Any) -> "concurrent.futures.Future[Look]":
        """Starts a look, once the one before it is done. Every process calls it; the first one has the result.

        Args:
          step: optimiser steps taken.
          variables: of the network; they may be donated to the next step once this returns.
        """
        if self._last is not None:
            self._last.result()
        if self._batches is None:
            self._batches = list(self._read())
        parts = []
        for batch in self._batches:
            if len(parts) >= BATCHES_IN_FLIGHT:
                jax.block_until_ready(parts[-BATCHES_IN_FLIGHT])
            parts.append(self._encode(variables, to_devices(batch, self._mesh)))
        self._last = self._worker.submit(self._measure, step, parts, self._matrices(variables))
        return self._last

    def close(self) -> None:
        """Waits for the look under way."""
        self._worker.shutdown()

    def _measure(self, step: int, parts: list[dict[str, jax.Array]], found: dict[str, jax.Array]) -> Look:
        if jax.process_index() != 0:
            return Look(step)
        values = dict(self._chances)
        try:
            views = jax.tree.map(lambda *rows: np.concatenate(rows), *jax.device_get(parts))
            values["loss"] = float(self._loss(views["z"], views["z_prime"]))
            return look(step, views, values=values, **jax.device_get(found))
        except Exception as error:  # whatever it is, a look must not cost a run
            return Look(step, finite(values), advice={"z": f"r and z could not be measured ({first_line(error)})"})


def matrices(variables: Any, width: int, projector: Projector | None) -> dict[str, jax.Array]:
    """The "matrix" `[d, e]` of a linear projector and, if it is trained, the "kernel" `[inputs, d]` before r.

    The kernel is that of the encoder's last convolution, and left out where this does not have the d outputs of r.
    """
    if projector is None:
        return {}
    with jax.default_matmul_precision("float32"):
        found = {"matrix": projector(jnp.eye(width), variables)}
    if "projector" not in variables["params"]:
        return found
    leaves = jax.tree_util.tree_flatten_with_path(variables["params"]["encoder"])[0]
    kernels = {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves if leaf.ndim == 4}
    # Modules bear torchvision's names, so the last one in their order is the last block's, or the one of its shortcut.
    names = sorted(name for name in kernels if "downsample" not in name)
    if names and kernels[names[-1]].shape[-1] == width:
        found["kernel"] = jnp.copy(kernels[names[-1]].reshape(-1, width))
    return found


def images_wanted(setting: int, width: int) -> int:
    """How many images a look should have: the setting, or if it is 0 twice the width, but `LEAST_IMAGES` at least."""
    return setting or max(2 * width, LEAST_IMAGES)


def view_batches(images: int, *, setting: int, width: int, largest: int, mesh: Mesh) -> tuple[int, int]:
    """The batch size and the number of batches of a look.

    Args:
      images: images of the source.
      setting: images of a look, or 0 for `images_wanted` as far as there are so many.
      width: entries of r or z, whichever has more; the rows have to be more for a verdict.
      largest: images that the devices encode at a time, a multiple of their number.
      mesh: the devices, which share a batch evenly.

    Raises:
      SettingError: the setting is more than there are images, no multiple of the devices, or makes no even batches.
    """
    if setting > images:
        raise SettingError(f"monitor.images must be at most the {images} images that there are, found {setting}")
    if setting:
        check_batch(setting, mesh, setting="monitor.images")
        batches = -(-setting // largest)
        unit = batches * mesh.size
        if setting % unit:
            lower = setting // unit * unit
            raise SettingError(
                f"monitor.images must make {batches} even batches of at most {largest}, e.g. {lower} or "
                f"{lower + unit}; found {setting}"
            )
        return setting // batches, batches
    count = min(images_wanted(setting, width), images)
    size = min(largest, max(count // mesh.size, 1) * mesh.size)
    return size, max(count // size, 1)
