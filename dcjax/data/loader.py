"""Batches of host arrays: an endless shuffled stream to train on, and one exact pass to evaluate on."""

import functools
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from dcjax.data import crops
from dcjax.data.damage import read_image
from dcjax.data.sources.base import Source, Subset
from dcjax.runtime.errors import SettingError, unknown_name

# Every reader thread decodes its own images: threads inside OpenCV as well would only fight over the same cores.
cv2.setNumThreads(0)

Batch = dict[str, np.ndarray]

KEEP_BYTES = 2 * 10**9
# Images that one thread reads at a time: those of one size, which are copied, and those of many, which are decoded.
COPY_CHUNK = 64
DECODE_CHUNK = 16
ALIGNMENT = 64  # bytes


class TrainLoader:
    """An endless iterator over one process's share of the global batches; its whole state is the global step.

    Made by `train_loader`. `step` is the number of the batch that comes next.
    """

    def __init__(self, chunks: Any, per_batch: int):
        self._chunks = chunks
        self._per_batch = per_batch
        self.step = 0

    def __iter__(self) -> "TrainLoader":
        return self

    def __next__(self) -> Batch:
        try:
            parts = [next(self._chunks) for _ in range(self._per_batch)]
        except BaseException:
            # What was read ahead no longer fits the step: the next call starts again at this batch.
            self.seek(self.step)
            raise
        self.step += 1
        return parts[0].arrays  # the chunks' common batch

    def seek(self, step: int) -> None:
        """Go to a place in the stream.

        Args:
          step: the global batch, from 0, that the next call to `next` returns.
        """
        self._chunks.set_state({"next_index": step * self._per_batch})
        self.step = step

    def close(self) -> None:
        """Stop reading ahead; the loader cannot be used afterwards."""
        self._chunks.close()


def train_loader(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    size: int,
    stored_size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: str,
    views: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int,
    prefetch: int,
    max_damaged: float = 0.0,
) -> TrainLoader:
    """Endless shuffled batches: every image once per epoch, in an order that depends on the seed and the epoch alone.

    The global batch `k` is the positions `[k * batch_size, (k + 1) * batch_size)` of one stream, whatever the number of
    processes; process `p` of `n` gets the positions that are `p` modulo `n`.

    Args:
      source: the images.
      batch_size: the global batch.
      seed: seed of the order and of the crops.
      size: side of a crop in pixels.
      stored_size: side that every image has, where images are passed whole and cropped on the device; 0 to crop here.
      scale: smallest and largest area of a crop, as a fraction of the image's.
      ratio: smallest and largest width / height of a crop.
      interpolation: of a crop made here, one of `crops.INTERPOLATIONS`.
      views: crops per image, 1 or 2.
      process_index: this process.
      process_count: number of processes that share a batch.
      threads: reader threads.
      prefetch: batches to read ahead, at least; every thread has a chunk of up to 64 images under way.
      max_damaged: the share of the images that may be damaged; the next one that is not stands in for each.

    Returns:
      An iterator over dicts, with b = batch_size / process_count: "image" uint8 `[b, s, s, 3]` (s = `stored_size`, or
      one crop of s = `size`) or `[b, 2, size, size, 3]` (two crops); "label" int32 `[b]`, -1 where there is none;
      "position" uint32 `[b]`, the position in the stream modulo 2**32, from which the device derives its draws. The
      arrays are to be read only: JAX's CPU device uses them without a copy.

    Raises:
      SettingError: `batch_size` is not positive or not a multiple of `process_count`, or an unknown interpolation.
        While iterating: too many images cannot be read or decoded, or one has not the stored size.
    """
    if views not in (1, 2):
        raise ValueError(f"views = {views}: must be 1 or 2")
    _check_interpolation(interpolation)
    share = _share(batch_size, process_count)
    chunk = _chunk(share, COPY_CHUNK if stored_size else DECODE_CHUNK)
    read = _reader(source, stored_size, max_damaged)
    image_shape = (stored_size, stored_size, 3) if stored_size else (*((2,) if views == 2 else ()), size, size, 3)
    assembly = _Assembly(
        {"image": (image_shape, np.uint8), "label": ((), np.int32), "position": ((), np.uint32)}, share
    )

    def load(item: tuple[np.ndarray, np.ndarray]) -> _Shared:
        indices, positions = item
        batch, offset = divmod(int(positions[0]), batch_size)
        shared, place = assembly.open(batch, offset // process_count, chunk)
        place["position"][:] = positions % 2**32
        if stored_size:
            place["image"][:], place["label"][:] = read(indices)
        else:
            for j, (i, position) in enumerate(zip(indices.tolist(), positions.tolist(), strict=True)):
                image, place["label"][j] = read_image(source, i, max_damaged=max_damaged)
                # [size, size, 3] of one view, or [2, size, size, 3]
                out = place["image"][j].reshape(views, size, size, 3)
                draw = {"seed": seed, "position": position, "scale": scale, "ratio": ratio}
                crops.random_crops(image, out, **draw, interpolation=interpolation)
        return shared

    import grain  # imports JAX, which who only opens a source need not wait for

    # The transformations handle bare indices; images appear in `load`. Grain's own shuffle is no uniform permutation:
    # of 50,000 images, neighbours in one epoch and the places of an image in two are correlated by 14 and more
    # standard deviations.
    order = functools.lru_cache(maxsize=3)(functools.partial(epoch_order, len(source), seed))
    stream = grain.MapDataset.range(len(source)).repeat()
    stream = stream.map_with_index(lambda position, i: (order(position // len(source))[i], position))
    stream = stream[process_index::process_count]
    chunks = stream.batch(chunk, drop_remainder=True).map(load)
    return TrainLoader(_start(chunks, threads=threads, ahead=prefetch * (share // chunk)), share // chunk)


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A uniformly random permutation of `count` indices, int32 `[count]`, of its own for every seed and epoch."""
    return np.random.default_rng((seed % 2**64, epoch)).permutation(np.arange(count, dtype=np.int32))


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    size: int,
    stored_size: int,
    interpolation: str,
    process_index: int = 0,
    process_count: int = 1,
    threads: int,
    max_damaged: float = 0.0,
) -> Iterator[Batch]:
    """Every image once, in order, in batches of a constant size; the last is filled up with rows that a mask marks.

    Every process gets the same number of batches, and its share of a global batch is one run of consecutive images.

    Args:
      source: the images.
      batch_size: the global batch.
      size: side of the centre crop in pixels.
      stored_size: side that every image has, where images are passed whole; 0 to crop.
      interpolation: of the crop, one of `crops.INTERPOLATIONS`.
      process_index: this process.
      process_count: number of processes that share a batch.
      threads: reader threads.
      max_damaged: as in `train_loader`.

    Returns:
      An iterator over dicts, with b = batch_size / process_count: "image" uint8 `[b, s, s, 3]` (s = `stored_size`, or
      `size`), "label" int32 `[b]`, "index" int64 `[b]` into the source, "mask" bool `[b]`. Where the mask is false,
      the image is black and label and index are -1.

    Raises:
      SettingError: as `train_loader`.
    """
    _check_interpolation(interpolation)
    share = _share(batch_size, process_count)
    chunk = _chunk(share, COPY_CHUNK if stored_size else DECODE_CHUNK)
    per_batch = share // chunk
    read = _reader(source, stored_size, max_damaged)
    image_shape = (stored_size or size, stored_size or size, 3)
    arrays = {
        "image": (image_shape, np.uint8),
        "label": ((), np.int32),
        "index": ((), np.int64),
        "mask": ((), np.bool_),
    }
    assembly = _Assembly(arrays, share)

    def load(number: int) -> _Shared:
        batch, part = divmod(number, per_batch)
        shared, place = assembly.open(batch, part * chunk, chunk)
        first = batch * batch_size + process_index * share + part * chunk
        count = min(max(len(source) - first, 0), chunk)
        indices = np.arange(first, first + count)
        for key, padding in {"image": 0, "label": -1, "index": -1, "mask": False}.items():
            place[key][count:] = padding
        place["index"][:count] = indices
        place["mask"][:count] = True
        if stored_size:
            place["image"][:count], place["label"][:count] = read(indices)
        else:
            for j, i in enumerate(indices.tolist()):
                image, place["label"][j] = read_image(source, i, max_damaged=max_damaged)
                place["image"][j] = crops.center_crop(image, size, interpolation=interpolation)
        return shared

    batches = -(-len(source) // batch_size)

    def iterate() -> Iterator[Batch]:
        import grain

        numbers = grain.MapDataset.range(batches * per_batch)
        chunks = _start(numbers.map(load), threads=threads, ahead=2 * per_batch)
        try:
            for _ in range(batches):
                shared, *_ = [next(chunks) for _ in range(per_batch)]
                yield shared.arrays
        finally:
            chunks.close()

    return iterate()


def _start(chunks: Any, *, threads: int, ahead: int) -> Any:
    """Grain's iterator over chunks of a batch, read by threads."""
    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, threads))
    return iter(chunks.to_iter_dataset(options))


def _check_interpolation(interpolation: str) -> None:
    """Before a reader thread would fail."""
    if interpolation not in crops.INTERPOLATIONS:
        raise unknown_name("interpolation", interpolation, crops.INTERPOLATIONS)


def _share(batch_size: int, process_count: int) -> int:
    """The part of a global batch that one process loads."""
    if batch_size < 1:
        raise SettingError(f"batch_size = {batch_size}: must be at least 1")
    if batch_size % process_count:
        raise SettingError(
            f"batch_size = {batch_size}: must be a multiple of the number of processes, which is {process_count}"
        )
    return batch_size // process_count


def _chunk(share: int, largest: int) -> int:
    """The largest useful divisor of a process's share of a batch, so that chunks do not reach across batches."""
    divisors = [d for d in range(largest // 8, largest + 1) if share % d == 0]
    return max(divisors, default=share)


class _Shared:
    """The arrays of one batch, which several threads fill."""

    def __init__(self, arrays: Batch):
        self.arrays = arrays


class _Assembly:
    """Batches that are being read, each chunk into its place: to join chunks later costs a fifth of the reading.

    A batch is known here for as long as a reader or the result of one refers to it, so what is read ahead and then
    dropped by a seek leaves nothing behind, and every chunk of a batch that is delivered went into the same arrays.
    """

    def __init__(self, arrays: dict[str, tuple[tuple[int, ...], type]], rows: int):
        self._arrays = arrays
        self._rows = rows
        self._open: weakref.WeakValueDictionary[int, _Shared] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def open(self, batch: int, start: int, count: int) -> tuple[_Shared, Batch]:
        """A batch, and the views of `count` of its rows."""
        with self._lock:
            shared = self._open.get(batch)
            if shared is None:
                shared = _Shared({k: _empty((self._rows, *shape), kind) for k, (shape, kind) in self._arrays.items()})
                self._open[batch] = shared
        return shared, {key: array[start : start + count] for key, array in shared.arrays.items()}


def _empty(shape: tuple[int, ...], kind: type) -> np.ndarray:
    """As `np.empty`, but begun where JAX can take it over for its CPU device without a copy."""
    size = math.prod(shape) * np.dtype(kind).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(kind).reshape(shape)


class _Kept:
    """The decoded images of a source of one size, filled as they are first read."""

    def __init__(self, count: int, side: int):
        # Memory that is not touched is not taken: a run that stops in its first epoch holds what it has read.
        self.images = np.empty((count, side, side, 3), np.uint8)
        self.labels = np.empty(count, np.int32)
        self.filled = np.zeros(count, bool)


# By source, so that training and the evaluations of a run share one copy; it goes when the source does.
_KEPT: weakref.WeakKeyDictionary[Source, _Kept] = weakref.WeakKeyDictionary()


def _reader(source: Source, side: int, max_damaged: float) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A function from indices `[b]` to whole images `[b, side, side, 3]` and labels `[b]`."""

    # On the source behind a subset, so that all of its subsets share what is kept.
    whole, chosen = (source.whole, source.indices) if isinstance(source, Subset) else (source, np.arange(len(source)))

    def read_one(i: int) -> tuple[np.ndarray, int]:
        image, label = read_image(whole, i, max_damaged=max_damaged)
        if image.shape != (side, side, 3):
            height, width = image.shape[:2]
            raise SettingError(
                f"data.stored_size = {side}: every image must be {side} x {side}, but {whole.image_name(i)} is "
                f"{width} x {height}; set it to 0 where sizes vary"
            )
        return image, label

    def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, labels = np.empty((len(indices), side, side, 3), np.uint8), np.empty(len(indices), np.int32)
        for j, i in enumerate(chosen[indices].tolist()):
            images[j], labels[j] = read_one(i)
        return images, labels

    if not side or len(whole) * side * side * 3 > KEEP_BYTES:
        return read
    kept = _KEPT.get(whole)
    if kept is None or kept.images.shape[1] != side:
        kept = _KEPT[whole] = _Kept(len(whole), side)

    def read_kept(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # No lock: threads that meet at an image write the same bytes, and `filled` is set only after them.
        indices = chosen[indices]
        for i in indices[~kept.filled[indices]].tolist():
            kept.images[i], kept.labels[i] = read_one(i)
            kept.filled[i] = True
        return kept.images[indices], kept.labels[indices]

    return read_kept
