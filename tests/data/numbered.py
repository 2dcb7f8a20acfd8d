"""A source whose images tell which they are, and loaders of it, for the tests of the loader."""

import itertools
import threading

import numpy as np

from dcjax.data import eval_batches, train_loader
from dcjax.runtime.errors import SettingError


class Numbered:
    """Images of one size whose pixels spell their index; counts the reads of each."""

    name = "numbered"
    classes = ("even", "odd")
    fingerprint = "numbered"

    def __init__(self, count, side=4, sides=None):
        self.count, self.side, self.sides = count, side, sides or {}
        self.reads = np.zeros(count, int)
        self.broken = set()
        self._lock = threading.Lock()

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        with self._lock:
            self.reads[i] += 1
        if i in self.broken:
            raise SettingError(f"{self.image_name(i)}: not an image")
        side = self.sides.get(i, self.side)
        return np.broadcast_to(np.array([i // 256, i % 256, 0], np.uint8), (side, side, 3)), i % 2

    def labels(self):
        return np.arange(self.count, dtype=np.int32) % 2

    def image_name(self, i):
        return f"numbered image {i}"


def indices(batch):
    """The indices that the pixels of a batch spell."""
    corner = batch["image"].reshape(len(batch["image"]), -1, 3)[:, 0].astype(int)
    return corner[:, 0] * 256 + corner[:, 1]


def loader(source, batch_size, seed=0, stored_size=4, views=2, threads=2, prefetch=2, **options):
    settings = {"size": 3, "scale": (0.2, 1.0), "ratio": (3 / 4, 4 / 3), "interpolation": "bicubic"} | options
    return train_loader(
        source,
        batch_size=batch_size,
        seed=seed,
        stored_size=stored_size,
        views=views,
        threads=threads,
        prefetch=prefetch,
        **settings,
    )


def evaluate(source, batch_size, stored_size=4, size=3, threads=2, **options):
    settings = {"size": size, "stored_size": stored_size, "interpolation": "bilinear", "threads": threads} | options
    return list(eval_batches(source, batch_size=batch_size, **settings))


def equal(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype
        np.testing.assert_array_equal(one[key], other[key])


def stream(source, batches, batch_size, **options):
    return np.concatenate([indices(b) for b in itertools.islice(loader(source, batch_size, **options), batches)])
