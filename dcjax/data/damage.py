"""Images that cannot be decoded: counted, named once, replaced, and no longer tolerated when they are many."""

import logging
import threading
import weakref

import numpy as np

from dcjax.data.sources.base import DamagedImageError, Source, Subset, some
from dcjax.runtime.errors import SettingError


class Damage:
    """The damaged images of a source that this process has met.

    Args:
      source: the images.
    """

    def __init__(self, source: Source):
        self._images = len(source)
        self._found: dict[int, str] = {}
        self._lock = threading.Lock()

    def note(self, i: int, error: DamagedImageError, share: float) -> None:
        """Counts image `i`, and logs it where it is new.

        Raises:
          SettingError: more than `share` of the images are damaged.
        """
        with self._lock:
            if i not in self._found:
                self._found[i] = str(error)
                logging.warning("damaged image: %s", error)
            count = len(self._found)
            if count > share * self._images:
                raise SettingError(
                    f"{count} of the {self._images} images cannot be decoded, more than data.max_damaged = {share:g} "
                    f"allows: {some(list(self._found.values()))}; mend or remove them (the log names all), or raise "
                    "data.max_damaged"
                ) from error


# By source, so that an image is counted once however many loaders meet it.
_DAMAGE: weakref.WeakKeyDictionary[Source, Damage] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def damage_of(source: Source) -> Damage:
    """What this process knows of a source's damaged images."""
    with _LOCK:
        return _DAMAGE.setdefault(source, Damage(source))


def read_image(source: Source, i: int, *, max_damaged: float) -> tuple[np.ndarray, int]:
    """Image `i` and its label; where it is damaged, those of the next one that is not.

    What stands in for an image is the same at any time, in any process and for any subset of a source. Damaged images
    are counted by each process, from its start.

    Args:
      source: the images.
      i: which one.
      max_damaged: the share of the images that may be damaged.

    Returns:
      uint8 `[h, w, 3]` and the label.

    Raises:
      SettingError: more images are damaged.
    """
    if isinstance(source, Subset):
        source, i = source.whole, int(source.indices[i])
    for step in range(len(source)):
        try:
            return source[(i + step) % len(source)]
        except DamagedImageError as error:
            damage_of(source).note((i + step) % len(source), error, max_damaged)
    raise SettingError(f"data.max_damaged = {max_damaged:g}: none of the {len(source)} images can be decoded")
