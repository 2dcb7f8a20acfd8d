"""Frozen features: every image once, through the encoder in evaluation mode."""

import collections
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dcjax.errors import SettingError
from dcjax.mesh import batch_sharding, replicated, to_devices

Batch = dict[str, np.ndarray]
Encode = Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of a split, in the order of its images.

    Attributes:
      r: representations `[n, d]`, float32.
      z: embeddings `[n, e]`, float32.
      labels: `[n]` int32; -1 where there are none.
    """

    r: np.ndarray
    z: np.ndarray
    labels: np.ndarray


def make_encode(forward: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]], mesh: Mesh) -> Encode:
    """Compiles a forward pass for `extract`, once for all splits and states.

    Args:
      forward: pure function of `(variables, images [b, s, s, 3] uint8)` to `(r, z)`.
      mesh: the devices to split each batch over.

    Returns:
      A jitted function of the variables and a batch; what comes out is on every device and process.
    """

    def encode(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        r, z = forward(variables, batch["image"])
        return {"r": r, "z": z} | {name: batch[name] for name in ("label", "index", "mask")}

    return jax.jit(encode, in_shardings=(replicated(mesh), batch_sharding(mesh)), out_shardings=replicated(mesh))


def extract(encode: Encode, variables: Any, batches: Iterable[Batch], mesh: Mesh, *, images: int) -> Features:
    """Computes the features of every image exactly once, on any number of devices and processes.

    Args:
      encode: from `make_encode`.
      variables: what it takes; not changed.
      batches: from `dcjax.data.eval_batches`: `image`, `label`, `index` and `mask`, the last batch padded.
      mesh: the devices.
      images: how many images there are.

    Returns:
      The features on the host, on every process.

    Raises:
      ValueError: features that are not finite.
    """
    whole: dict[str, np.ndarray] = {}
    in_flight: collections.deque[dict[str, jax.Array]] = collections.deque()

    def store() -> None:
        out = {name: np.asarray(rows) for name, rows in in_flight.popleft().items()}
        mask, index = out.pop("mask"), out.pop("index")
        if not whole:
            whole.update({name: np.empty((images, *rows.shape[1:]), rows.dtype) for name, rows in out.items()})
        for name, rows in out.items():
            whole[name][index[mask]] = rows[mask]

    for batch in batches:
        batch = {**batch, "index": batch["index"].astype(np.int32)}  # JAX holds 32-bit integers; no set has 2^31 images
        in_flight.append(encode(variables, to_devices(batch, mesh)))
        if len(in_flight) > 1:  # fetched while the next batch is computed
            store()
    while in_flight:
        store()
    if not (np.isfinite(whole["r"]).all() and np.isfinite(whole["z"]).all()):
        raise SettingError("the features of the encoder are not finite; the run that trained it has diverged")
    return Features(r=whole["r"], z=whole["z"], labels=whole["label"])


def settle_batch_stats(
    statistics: Callable[[Any, jax.Array], Any],
    variables: Any,
    batches: Iterable[Batch],
    mesh: Mesh,
    *,
    momentum: float,
) -> Any:
    """Batch statistics of untrained variables: the average over the batches of one pass.

    An encoder that was never trained has running statistics of mean 0 and variance 1, which are not those of its
    activations; in evaluation mode it would look worse than it is.

    Args:
      statistics: pure function of `(variables, images [b, s, s, 3] uint8)` to the batch statistics after one
        training-mode forward pass.
      variables: the untrained variables, with `batch_stats`.
      batches: as `extract` takes them, without padding.
      mesh: the devices.
      momentum: of the running averages, new = momentum * old + (1 - momentum) * batch.

    Returns:
      The variables with averaged batch statistics.
    """
    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    # From a running average of zero, one update leaves (1 - momentum) times the statistics of the batch.
    from_zero = {**variables, "batch_stats": zeros}
    update = jax.jit(statistics, in_shardings=(replicated(mesh), batch_sharding(mesh)), out_shardings=replicated(mesh))
    total, count = zeros, 0
    for batch in batches:
        stats = update(from_zero, to_devices({"image": batch["image"]}, mesh)["image"])
        total = jax.tree.map(lambda sum_, new: sum_ + new / (1 - momentum), total, stats)
        count += 1
    return {**variables, "batch_stats": jax.tree.map(lambda sum_: sum_ / count, total)}
