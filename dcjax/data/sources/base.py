"""What a source of images is, and the words and hashes that all of them use."""

import difflib
import hashlib
import os
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from dcjax.runtime.errors import SettingError


class DamagedImageError(SettingError):
    """An image that cannot be read or decoded; the message names it."""


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


def no_such_split(split: str, of: str, known: Iterable[str]) -> SettingError:
    remedy = "" if split == "train" else "; with data.test_split empty a run does without"
    return SettingError(f"{split_setting(split)}: {of} has no such split; known are {', '.join(known)}{remedy}")


def split_setting(split: str) -> str:
    return f"data.train_split or data.test_split = {split!r}"  # a source does not know which of the two it serves


def did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def fingerprint(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(os.fsencode(part) + b"\0")
    return digest.hexdigest()[:16]
