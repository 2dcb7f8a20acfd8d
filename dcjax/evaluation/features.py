"""Frozen features: every image once, through the encoder in evaluation mode.

Each process keeps the rows that it extracted, and the devices split these among them:

    bytes of a process = rows_per_process(images, ...) * d * (4 for float32, 1 for the uint8 of raw pixels)
    bytes of a device  = rows_per_process(images, ...) / (devices of a process) * d * 4

For ImageNet's 1,281,167 training images and d = 2,048 in float32, in batches of 128 for each device and with one device
to a process, that is

    1 process:    10.50 GB of host memory, and as much on its device
    8 processes:   1.31 GB of host memory for each, and as much on each device

The embedding z is kept only where it is asked for (the spectrum, an export). While features are on the devices, the
nearest neighbours add a block of 256 MB of similarities and working copies of it to a device, and the logistic
regression a standardised copy of the rows.
An export gathers all rows in the memory of process 0: 10.50 GB for this r, whatever the number of processes.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dcjax.runtime.errors import SettingError
from dcjax.runtime.mesh import batch_sharding, from_processes, own_rows, replicated, to_devices

Batch = dict[str, np.ndarray]
Encode = Callable[[Any, jax.Array], dict[str, jax.Array]]

NO_IMAGE = 2**31 - 1  # the index of padding: above every image's, so that indices ascend
GATHERED_ROWS = 1024  # of each process at a time: 8 MB of 2,048 features


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of a split: the rows that this process extracted, in the order of their images, and padding.

    Attributes:
      r: representations `[rows, d]`, float32, or raw pixels, uint8; `rows` is the same on every process. Padding is 0.
      z: embeddings `[rows, e]`, float32; None where they were not asked for.
      index: `[rows]` int32, the image that a row belongs to, ascending; `NO_IMAGE` for padding.
      own: how many rows belong to an image; those come first.
      labels: `[n]` int32, of all images of the split, on every process; -1 where there are none.
    """

    r: np.ndarray
    z: np.ndarray | None
    index: np.ndarray
    own: int
    labels: np.ndarray


def rows_per_process(images: int, *, batch_size: int, processes: int, devices: int) -> int:
    """Rows of features that each process holds, padding included.

    Args:
      images: of the split.
      batch_size: the global batch of `extract`; a process encodes one run of consecutive images of each.
      processes: of the run.
      devices: of the run.
    """
    share, local = batch_size // processes, devices // processes
    batches, rest = divmod(images, batch_size)
    most = batches * share + min(rest, share)  # process 0 has the first images of the last batch
    return -(-most // local) * local


def make_encode(forward: Callable[[Any, jax.Array], dict[str, jax.Array]], mesh: Mesh) -> Encode:
    """Compiles a forward pass for `extract`, once for all splits and states.

    Args:
      forward: pure function of `(variables, images [b, s, s, 3] uint8)` to arrays `[b, ...]` by name.
      mesh: the devices to split each batch over.

    Returns:
      A jitted function of the variables and the images; the rows that come out are split as those of the batch.
    """
    split = batch_sharding(mesh)
    return jax.jit(forward, in_shardings=(replicated(mesh), split), out_shardings=split)


def extract(
    encode: Encode,
    variables: Any,
    batches: Iterable[Batch],
    mesh: Mesh,
    *,
    images: int,
    keep: Sequence[str] = ("r",),
) -> Features:
    """Computes the features of every image exactly once, on any number of devices and processes.

    Args:
      encode: from `make_encode`, with an output for each name in `keep`.
      variables: what it takes; not changed.
      batches: from `dcjax.data.eval_batches`: `image`, `label`, `index` and `mask`, the last batch padded.
      mesh: the devices.
      images: how many images there are.
      keep: "r", or "r" and "z".

    Returns:
      The features on the host, on each process its own.

    Raises:
      SettingError: features that are not finite, on any process.
    """
    processes, done, finite = jax.process_count(), 0, True
    kept: dict[str, np.ndarray] = {}
    in_flight: collections.deque[tuple[dict[str, jax.Array], Batch]] = collections.deque()

    def store() -> None:
        nonlocal done, finite
        out, batch = in_flight.popleft()
        mask = batch["mask"]
        # JAX holds 32-bit integers, and no set has 2^31 images.
        columns = {name: own_rows(out[name]) for name in keep} | {
            "label": batch["label"],
            "index": batch["index"].astype(np.int32),
        }
        if not kept:
            shape = {"batch_size": len(mask) * processes, "processes": processes, "devices": mesh.size}
            rows = rows_per_process(images, **shape)
            kept.update({name: np.zeros((rows, *column.shape[1:]), column.dtype) for name, column in columns.items()})
            kept["index"][:] = NO_IMAGE
        stop = done + int(mask.sum())
        for name, column in columns.items():
            kept[name][done:stop] = column[mask]
            finite &= bool(np.isfinite(kept[name][done:stop]).all())
        done = stop

    for batch in batches:
        in_flight.append((encode(variables, to_devices({"image": batch["image"]}, mesh)["image"]), batch))
        if len(in_flight) > 1:  # fetched while the next batch is computed
            store()
    while in_flight:
        store()
    if not from_processes(np.array(finite)).all():  # every process raises, and none is left waiting
        raise SettingError("the features of the encoder are not finite; the run that trained it has diverged")
    labels = np.full(images, -1, np.int32)
    index, own_labels = from_processes(kept["index"]), from_processes(kept["label"])
    labels[index[index != NO_IMAGE]] = own_labels[index != NO_IMAGE]
    return Features(r=kept["r"], z=kept.get("z"), index=kept["index"], own=done, labels=labels)


def gather_rows(values: np.ndarray, features: Features) -> np.ndarray | None:
    """All images' rows, in order, on process 0; every process calls this.

    Args:
      values: `features.r` or `features.z`.
      features: where they come from.

    Returns:
      `[n, ...]` on process 0, without a copy where it is the only one, and None on the others. Besides that a process
      holds `GATHERED_ROWS` rows of every process.
    """
    images = len(features.labels)
    if jax.process_count() == 1:
        return values[:images]
    whole = np.empty((images, *values.shape[1:]), values.dtype) if jax.process_index() == 0 else None
    for start in range(0, len(values), GATHERED_ROWS):
        block = slice(start, start + GATHERED_ROWS)
        index, rows = from_processes(features.index[block]), from_processes(values[block])
        if whole is not None:
            whole[index[index != NO_IMAGE]] = rows[index != NO_IMAGE]
    return whole


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
