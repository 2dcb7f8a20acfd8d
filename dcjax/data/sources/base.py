"""The protocol of a source of images, and the helpers that all sources share."""

import hashlib
import os
from collections.abc import Iterable
from typing import Protocol

import numpy as np

SPLIT_ALIASES = {"val": "validation", "validation": "val"}


class Source(Protocol):
    """Random access to images and labels.

    `name` is the source's name in `SOURCES`. `classes` holds the class names in label order, and none if there are no
    labels. `fingerprint` is a short hash that identifies the images, so that a resumed run can tell whether they are
    the same. Several threads read at a time.
    """

    name: str
    classes: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        """The number of images."""
        ...

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        """Image `i` as uint8 RGB `[h, w, 3]` and its label, -1 where there is none.

        Raises:
          DamagedImageError: the image cannot be decoded; `TolerantSource` puts another one in its place.
        """
        ...

    def image_name(self, i: int) -> str:
        """The name of image `i` in messages, such as its path."""
        ...


class Subset:
    """Some images of a source, such as those of a draw of few labels.

    Args:
      source: the whole source.
      indices: the chosen images of it, in this order.
    """

    def __init__(self, source: Source, indices: np.ndarray):
        self.fingerprint = fingerprint(source.fingerprint, indices.tobytes().hex())
        if isinstance(source, Subset):
            source, indices = source.whole, source.indices[indices]
        self.whole, self.indices = source, indices
        self.name, self.classes = source.name, source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return self.whole[int(self.indices[i])]

    def image_name(self, i: int) -> str:
        return self.whole.image_name(int(self.indices[i]))


def no_such_split(split: str, of: str, known: Iterable[str]) -> ValueError:
    """The error for a split that a source does not have."""
    return ValueError(f"split = {split!r}: {of} has no such split; known are {', '.join(known)}")


def fingerprint(*parts: str) -> str:
    """A short hash of some strings."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(os.fsencode(part) + b"\0")
    return digest.hexdigest()[:16]
