"""The handwritten digits that scikit-learn ships, the default that needs no download."""

import numpy as np

from dcjax.data.sources.base import fingerprint, no_such_split


class DigitsSource:
    """The 1,797 handwritten digits that scikit-learn ships: `[8, 8, 3]`, 1,437 to train and 360 to test.

    Args:
      split: "train" or "test".

    Raises:
      ValueError: the split has another name.
    """

    name = "digits"
    classes = tuple(str(digit) for digit in range(10))

    def __init__(self, split: str):
        if split not in ("train", "test"):
            raise no_such_split(split, "digits", ("train", "test"))
        from sklearn.datasets import load_digits  # imported here because it takes a second

        values, labels = load_digits(return_X_y=True)
        # Every fifth image of each class is a test image. Without a random draw no library version changes the split.
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
