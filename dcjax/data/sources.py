"""The table of sources, the embedded digits, and a part of a source."""

from collections.abc import Callable, Iterable

import numpy as np

from dcjax.data.folder import FolderSource
from dcjax.data.source import Source, fingerprint, no_such_split
from dcjax.data.tfds import TFDSSource
from dcjax.errors import unknown_name


class DigitsSource:
    """The 1,797 handwritten digits that scikit-learn ships: `[8, 8, 3]`, 1,437 to train and 360 to test.

    Args:
      split: "train" or "test".

    Raises:
      SettingError: the split is neither.
    """

    name = "digits"
    classes = tuple(str(digit) for digit in range(10))

    def __init__(self, split: str):
        if split not in ("train", "test"):
            raise no_such_split(split, "digits", ("train", "test"))
        from sklearn.datasets import load_digits  # scikit-learn takes a second to import

        values, labels = load_digits(return_X_y=True)
        # Every fifth image of each class tests: no random draw, so no library version can change the split.
        by_class = np.argsort(labels, kind="stable")
        test = np.zeros(len(labels), bool)
        test[by_class[::5]] = True
        chosen = np.flatnonzero(test if split == "test" else ~test)
        gray = np.rint(values[chosen].reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
        self._images = np.repeat(gray[..., None], 3, axis=-1)  # [n, 8, 8, 3]
        self._labels = labels[chosen].astype(np.int32)
        self._split = split
        self.fingerprint = fingerprint("digits", split, str(len(chosen)))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return self._images[i], int(self._labels[i])

    def image_name(self, i: int) -> str:
        return f"digits {self._split} image {i}"


SOURCES: dict[str, Callable[[str, str, str, Iterable[str]], Source]] = {
    "digits": lambda dir, dataset, split, classes: DigitsSource(split),
    "folder": lambda dir, dataset, split, classes: FolderSource(dir, split, classes),
    "tfds": lambda dir, dataset, split, classes: TFDSSource(dir, dataset, split),
}


def open_source(name: str, *, dir: str, dataset: str, split: str, classes: Iterable[str] = ()) -> Source:
    """Open the images of one split.

    Args:
      name: a key of `SOURCES`.
      dir: where the images are ("folder", "tfds").
      dataset: the TFDS name ("tfds").
      split: which part of them.
      classes: for a test split, the class names of the training source ("folder").

    Returns:
      The source.

    Raises:
      SettingError: the name is unknown, or the source cannot be opened with these settings.
    """
    if name not in SOURCES:
        raise unknown_name("data.name", name, SOURCES)
    return SOURCES[name](dir, dataset, split, classes)
