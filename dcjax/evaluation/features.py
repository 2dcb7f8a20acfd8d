"""Frozen features: every image once, through the encoder in evaluation mode."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dcjax.mesh import batch_sharding, replicated, to_devices

Batch = dict[str, np.ndarray]


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


def extract(
    forward: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]],
    variables: Any,
    batches: Iterable[Batch],
    mesh: Mesh,
) -> Features:
    """Computes the features of every image exactly once, on any number of devices and processes.

    Args:
      forward: pure function of `(variables, images [b, s, s, 3] uint8)` to `(r, z)`.
      variables: what `forward` takes; not changed.
      batches: from `dcjax.data.eval_batches`: `image`, `label`, `index` and `mask`, the last batch padded.
      mesh: the devices to split each batch over.

    Returns:
      The features on the host, on every process.
    """

    def encode(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        r, z = forward(variables, batch["image"])
        return {"r": r, "z": z} | {name: batch[name] for name in ("label", "index", "mask")}

    encode = jax.jit(encode, in_shardings=(replicated(mesh), batch_sharding(mesh)), out_shardings=replicated(mesh))
    parts = []
    for batch in batches:
        batch = {**batch, "index": batch["index"].astype(np.int32)}  # JAX holds 32-bit integers; no set has 2^31 images
        out = {name: np.asarray(rows) for name, rows in encode(variables, to_devices(batch, mesh)).items()}
        parts.append({name: rows[out["mask"]] for name, rows in out.items()})
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(
        whole["index"], kind="stable"
    )  # with several processes the rows of a batch come process by process
    return Features(r=whole["r"][order], z=whole["z"][order], labels=whole["label"][order])


def settle_batch_stats(
    train_forward: Callable[[Any, jax.Array], Any],
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
      train_forward: pure function of `(variables, images [b, s, s, 3] uint8)` to the updated batch statistics.
      variables: the untrained variables, with `batch_stats`.
      batches: host batches with `image`, without padding.
      mesh: the devices.
      momentum: of the running averages, new = momentum * old + (1 - momentum) * batch.

    Returns:
      The variables with averaged batch statistics.
    """
    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    # From a running average of zero, one update leaves (1 - momentum) times the statistics of the batch.
    from_zero = {**variables, "batch_stats": zeros}
    update = jax.jit(
        train_forward, in_shardings=(replicated(mesh), batch_sharding(mesh)), out_shardings=replicated(mesh)
    )
    total, count = zeros, 0
    for batch in batches:
        stats = update(from_zero, to_devices({"image": batch["image"]}, mesh)["image"])
        total = jax.tree.map(lambda sum_, new: sum_ + new / (1 - momentum), total, stats)
        count += 1
    return {**variables, "batch_stats": jax.tree.map(lambda sum_: sum_ / count, total)}
