"""Batches of host arrays: an endless shuffled stream for training, and one exact pass for evaluation."""

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from dcjax.data import crops
from dcjax.data.assembly import Assembly, Batch, SharedBatch, chunk_of
from dcjax.data.crops import check_interpolation
from dcjax.data.fixed_size import whole_image_reader
from dcjax.data.order import endless_order
from dcjax.data.sources.base import Source

# Images that one thread reads at a time.
COPY_CHUNK = 64  # of one size, copied from memory
DECODE_CHUNK = 16  # of many sizes, decoded and cropped


class TrainLoader:
    """An endless iterator over one process's share of the global batches; its whole state is the global step.

    `train_loader` makes it. `step` is the number of the next batch.
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
            # Some chunks of this batch are used up, so the next call has to start again at the batch's first.
            self.seek(self.step)
            raise
        self.step += 1
        return parts[0].arrays  # the chunks' common batch

    def seek(self, step: int) -> None:
        """Goes to a place in the stream.

        Args:
          step: the number, from 0, of the global batch that comes next.
        """
        self._chunks.set_state({"next_index": step * self._per_batch})
        self.step = step

    def close(self) -> None:
        """Stops reading ahead. The loader cannot be used afterwards."""
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
) -> TrainLoader:
    """Endless shuffled batches: every image once per epoch, in an order that depends only on the seed and the epoch.

    With any number of processes, the global batch `k` holds the positions `[k * batch_size, (k + 1) * batch_size)` of
    one stream; process `p` of `n` gets the positions that are `p` modulo `n`.

    Args:
      source: the images.
      batch_size: the global batch.
      seed: the seed of the order and of the crops.
      size: side of a crop in pixels.
      stored_size: side of every image, if images are passed on whole for the device to crop; 0 to crop them here.
      scale: smallest and largest area of a crop, as a fraction of the image's.
      ratio: smallest and largest width / height of a crop.
      interpolation: the interpolation of crops made here, one of `crops.INTERPOLATIONS`.
      views: crops per image, 1 or 2.
      process_index: this process.
      process_count: number of processes that share a batch.
      threads: reader threads.
      prefetch: batches to read ahead, at least; every thread reads a chunk of up to 64 images.

    Returns:
      An iterator over dicts, with b = batch_size / process_count: "image" uint8 `[b, s, s, 3]` (s = `stored_size`, or
      one crop of s = `size`) or `[b, 2, size, size, 3]` (two crops); "label" int32 `[b]`, -1 where there is none;
      "position" uint32 `[b]`, the position in the stream modulo 2**32, from which the device derives its draws. Do not
      write to the arrays, because JAX's CPU device uses them without a copy.

    Raises:
      ValueError: `batch_size` is not positive or not a multiple of `process_count`, `views` is neither 1 nor 2, the
        interpolation is unknown, or the source is of images of another size. Reading a batch raises `ValueError`
        when an image cannot be read or has another size.
    """
    if views not in (1, 2):
        raise ValueError(f"views = {views}: must be 1 or 2")
    check_interpolation(interpolation)
    share, chunk = _divide(batch_size, process_count, stored_size)
    draw = {"seed": seed, "scale": scale, "ratio": ratio, "interpolation": interpolation}

    def crop(image: np.ndarray, out: np.ndarray, position: int) -> None:
        crops.random_crops(image, out.reshape(views, size, size, 3), position=position, **draw)  # out has no axis for 1

    read = _reader(source, stored_size, crop)
    image_shape = (stored_size, stored_size, 3) if stored_size else (*((2,) if views == 2 else ()), size, size, 3)
    assembly = Assembly(share, image=(image_shape, np.uint8), label=((), np.int32), position=((), np.uint32))

    def load(item: tuple[np.ndarray, np.ndarray]) -> SharedBatch:
        indices, positions = item
        batch, offset = divmod(int(positions[0]), batch_size)
        shared, rows = assembly.open(batch, offset // process_count, chunk)
        rows["position"][:] = positions % 2**32
        read(indices, positions, rows)
        return shared

    stream = endless_order(len(source), seed, process_index=process_index, process_count=process_count)
    chunks = stream.batch(chunk, drop_remainder=True).map(load)
    return TrainLoader(_start(chunks, threads=threads, ahead=prefetch * (share // chunk)), share // chunk)


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
) -> Iterator[Batch]:
    """Every image once, in order, in batches of one size; the last batch is padded, and a mask marks the real rows.

    Every process gets the same number of batches, and its share of a global batch is a run of consecutive images.

    Args:
      source: the images.
      batch_size: the global batch.
      size: side of the centre crop in pixels.
      stored_size: side of every image, if images are passed on whole; 0 to crop them.
      interpolation: the interpolation of the crop, one of `crops.INTERPOLATIONS`.
      process_index: this process.
      process_count: number of processes that share a batch.
      threads: reader threads.

    Returns:
      An iterator over dicts, with b = batch_size / process_count: "image" uint8 `[b, s, s, 3]` (s = `stored_size`, or
      `size`), "label" int32 `[b]`, "index" int64 `[b]` into the source, "mask" bool `[b]`. In a padding row the mask is
      false, the image is black, and label and index are -1.

    Raises:
      ValueError: as `train_loader`.
    """
    check_interpolation(interpolation)
    share, chunk = _divide(batch_size, process_count, stored_size)
    per_batch, batches = share // chunk, -(-len(source) // batch_size)

    def crop(image: np.ndarray, out: np.ndarray, _: int) -> None:
        out[:] = crops.center_crop(image, size, interpolation=interpolation)

    read = _reader(source, stored_size, crop)
    side = stored_size or size
    assembly = Assembly(
        share,
        image=((side, side, 3), np.uint8),
        label=((), np.int32),
        index=((), np.int64),
        mask=((), np.bool_),
    )

    def load(number: int) -> SharedBatch:
        batch, part = divmod(number, per_batch)
        shared, rows = assembly.open(batch, part * chunk, chunk)
        first = batch * batch_size + process_index * share + part * chunk
        count = min(max(len(source) - first, 0), chunk)
        indices = np.arange(first, first + count)
        for key, padding in {"image": 0, "label": -1, "index": -1, "mask": False}.items():
            rows[key][count:] = padding
        rows["index"][:count] = indices
        rows["mask"][:count] = True
        read(indices, indices, {key: array[:count] for key, array in rows.items()})
        return shared

    def iterate() -> Iterator[Batch]:
        import grain

        chunks = _start(grain.MapDataset.range(batches * per_batch).map(load), threads=threads, ahead=2 * per_batch)
        try:
            for _ in range(batches):
                shared, *_ = [next(chunks) for _ in range(per_batch)]
                yield shared.arrays
        finally:
            chunks.close()

    return iterate()


def _reader(
    source: Source, stored_size: int, crop: Callable[[np.ndarray, np.ndarray, int], None]
) -> Callable[[np.ndarray, np.ndarray, Batch], None]:
    """A function of indices `[b]` and positions `[b]` that fills `b` rows of a batch with whole images or crops."""
    if stored_size:
        read_whole = whole_image_reader(source, stored_size)

        def read(indices: np.ndarray, positions: np.ndarray, rows: Batch) -> None:
            rows["image"][:], rows["label"][:] = read_whole(indices)

        return read

    def read_and_crop(indices: np.ndarray, positions: np.ndarray, rows: Batch) -> None:
        for j, (i, position) in enumerate(zip(indices.tolist(), positions.tolist(), strict=True)):
            image, rows["label"][j] = source[i]
            crop(image, rows["image"][j], position)

    return read_and_crop


def _start(chunks: Any, *, threads: int, ahead: int) -> Any:
    """Grain's iterator over chunks, which threads read."""
    import grain

    # Each thread decodes its own images. With threads inside OpenCV as well, all would compete for the same cores.
    cv2.setNumThreads(0)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, threads))
    return iter(chunks.to_iter_dataset(options))


def _divide(batch_size: int, process_count: int, stored_size: int) -> tuple[int, int]:
    """The rows of a global batch that one process loads, and how many of them one thread reads at a time."""
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}: must be at least 1")
    if batch_size % process_count:
        raise ValueError(
            f"batch_size = {batch_size}: must be a multiple of the number of processes, which is {process_count}"
        )
    share = batch_size // process_count
    return share, chunk_of(share, COPY_CHUNK if stored_size else DECODE_CHUNK)
