"""What a source of images is, and what all of them use."""

import hashlib
import os
from collections.abc import Iterable
from typing import Protocol

import numpy as np

SPLIT_ALIASES = {"val": "validation", "validation": "val"}


class Source(Protocol):
    """Random access to images and labels.

    Hashable, as objects are unless they define equality. `name` is its name in `SOURCES`; `classes` the class names in
    label order, empty where there are no labels; `fingerprint` a short hash of what identifies the data, so that a
    resumed run can tell whether it is the same.
    """

    name: str
    classes: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        """The number of images."""
        ...

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        """Image `i` as uint8 RGB `[h, w, 3]` and its label, -1 where there is none."""
        ...

    def image_name(self, i: int) -> str:
        """What a message calls image `i`."""
        ...


class Subset:
    """Some images of a source, e.g. those of a draw of few labels.

    Args:
      source: the whole.
      indices: which of its images, in this order.
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
    return ValueError(f"split = {split!r}: {of} has no such split; known are {', '.join(known)}")


def fingerprint(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(os.fsencode(part) + b"\0")
    return digest.hexdigest()[:16]
