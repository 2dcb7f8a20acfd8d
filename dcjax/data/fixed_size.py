"""Images of one size: checked, kept in memory, and read many at once."""

from collections.abc import Callable

import numpy as np

from dcjax.data.sources.base import Source, Subset
from dcjax.runtime.errors import SettingError

KEEP_BYTES = 2 * 10**9

ReadMany = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class FixedSizeImages:
    """A source of images of one size, which stay in memory once they are read, where all fit into `KEEP_BYTES`.

    Loaders read it (and a `Subset` of it) by `read_many`, and share what it keeps; that goes when this object does.

    Args:
      source: the images.
      stored_size: the side of each in pixels. A read that meets another raises `SettingError`.
    """

    def __init__(self, source: Source, stored_size: int):
        self.name, self.classes, self.fingerprint = source.name, source.classes, source.fingerprint
        self.stored_size = stored_size
        self._source = source
        self._keeps = len(source) * stored_size**2 * 3 <= KEEP_BYTES
        # Memory that is not touched is not taken: a run that stops in its first epoch holds what it has read.
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
        """The images `[b, s, s, 3]` uint8 and labels `[b]` int32 of some indices `[b]`, as copies."""
        if not self._keeps:
            images, labels = self._empty(len(indices))
            for j, i in enumerate(indices.tolist()):
                images[j], labels[j] = self._read(i)
            return images, labels
        # No lock: threads that meet at an image write the same bytes, and `filled` is set only after them.
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
            raise SettingError(
                f"stored_size = {side}: every image must be {side} x {side}, but {self.image_name(i)} is "
                f"{width} x {height}; set it to 0 where sizes vary"
            )
        return image, label


def read_many(source: Source, stored_size: int) -> ReadMany:
    """The `FixedSizeImages.read_many` of a source, of the whole behind a subset, or of a source that is neither.

    Raises:
      ValueError: the source's images have another size.
    """
    whole = source.whole if isinstance(source, Subset) else source
    if not isinstance(whole, FixedSizeImages):
        return FixedSizeImages(source, stored_size).read_many
    if whole.stored_size != stored_size:
        raise ValueError(f"stored_size = {stored_size}: the source's images have a side of {whole.stored_size}")
    if isinstance(source, Subset):
        return lambda indices: whole.read_many(source.indices[indices])
    return whole.read_many
