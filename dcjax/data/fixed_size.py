"""Images of one size: a source that checks the size, keeps the images in memory and reads many at once."""

from collections.abc import Callable

import numpy as np

from dcjax.data.sources.base import Source, Subset

KEEP_BYTES = 2 * 10**9

ReadMany = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class FixedSizeImages:
    """A source of images of one size. If all of them fit into `KEEP_BYTES`, each stays in memory once it was read.

    All loaders of this object, or of a `Subset` of it, share these images. A read of an image of another size raises
    `ValueError`.

    Args:
      source: the images.
      stored_size: the side of every image in pixels.
    """

    def __init__(self, source: Source, stored_size: int):
        self.name, self.classes, self.fingerprint = source.name, source.classes, source.fingerprint
        self.stored_size = stored_size
        self._source = source
        self._keeps = len(source) * stored_size**2 * 3 <= KEEP_BYTES
        # The system gives memory only when it is written to, so unread images take none.
        self._images, self._labels = self._empty(len(source) if self._keeps else 0)
        self._filled = np.zeros(len(source), bool)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        images, labels = self.read_many(np.array([i]))
        return images[0], int(labels[0])

    def image_name(self, i: int) -> str:
        return self._source.image_name(i)

    def read_many(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copies of the images, uint8 `[b, s, s, 3]`, and the labels, int32 `[b]`, at some indices `[b]`."""
        if not self._keeps:
            images, labels = self._empty(len(indices))
            for j, i in enumerate(indices.tolist()):
                images[j], labels[j] = self._read(i)
            return images, labels
        # No lock is needed: threads that meet at an image write the same bytes, and set `_filled` only afterwards.
        for i in indices[~self._filled[indices]].tolist():
            self._images[i], self._labels[i] = self._read(i)
            self._filled[i] = True
        return self._images[indices], self._labels[indices]

    def _empty(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        return np.empty((count, self.stored_size, self.stored_size, 3), np.uint8), np.empty(count, np.int32)

    def _read(self, i: int) -> tuple[np.ndarray, int]:
        image, label = self._source[i]
        side = self.stored_size
        if image.shape != (side, side, 3):
            height, width = image.shape[:2]
            raise ValueError(
                f"stored_size = {side}: every image must be {side} x {side}, but {self.image_name(i)} is "
                f"{width} x {height}; set it to 0 where sizes vary"
            )
        return image, label


def whole_image_reader(source: Source, stored_size: int) -> ReadMany:
    """A function from indices `[b]` to images and labels, as `FixedSizeImages.read_many` gives them.

    A subset reads through to the `FixedSizeImages` behind it; any other source is wrapped in one.

    Raises:
      ValueError: the source is of images of another size.
    """
    whole = source.whole if isinstance(source, Subset) else source
    if not isinstance(whole, FixedSizeImages):
        return FixedSizeImages(source, stored_size).read_many
    if whole.stored_size != stored_size:
        raise ValueError(f"stored_size = {stored_size}: the source's images have a side of {whole.stored_size}")
    if isinstance(source, Subset):
        return lambda indices: whole.read_many(source.indices[indices])
    return whole.read_many
