"""Damaged images: a source that counts them, names each once, and gives the next readable image instead."""

import logging
import threading

import numpy as np

from dcjax.data.decode import DamagedImageError
from dcjax.data.sources.base import Source
from dcjax.runtime.errors import some


class TolerantSource:
    """A source that gives the next readable image in place of a damaged one.

    The replacement is the same at any time, in any process and in any `Subset` of this source. Each process counts the
    damaged images that it has met and logs each of them once. A read that finds too many raises `ValueError`.

    Args:
      source: the images.
      max_damaged: the share of the images that may be damaged, from 0 to below 1.

    Raises:
      ValueError: the share is out of its range.
    """

    def __init__(self, source: Source, max_damaged: float):
        if not 0 <= max_damaged < 1:
            raise ValueError(f"max_damaged must be a share from 0 to below 1, found {max_damaged}")
        self.name, self.classes, self.fingerprint = source.name, source.classes, source.fingerprint
        self._source = source
        self._max_damaged = max_damaged
        self._damaged: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        while True:  # ends at a readable image, or at one damaged image too many
            try:
                return self._source[i]
            except DamagedImageError as error:
                self._note(i, error)
            i = (i + 1) % len(self)

    def image_name(self, i: int) -> str:
        return self._source.image_name(i)

    def _note(self, i: int, error: DamagedImageError) -> None:
        with self._lock:
            if i not in self._damaged:
                self._damaged[i] = str(error)
                logging.warning("damaged image: %s", error)
            count = len(self._damaged)
            if count > self._max_damaged * len(self):
                raise ValueError(
                    f"max_damaged = {self._max_damaged:g}: {count} of the {len(self)} images cannot be decoded: "
                    f"{some(list(self._damaged.values()))}; mend or remove them (the log names all), or allow more"
                ) from error
