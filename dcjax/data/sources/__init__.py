"""The table of sources of images: one file for each."""

from collections.abc import Callable, Iterable

from dcjax.data.sources.base import Source, Subset
from dcjax.data.sources.digits import DigitsSource
from dcjax.data.sources.folder import FolderSource
from dcjax.data.sources.tfds import TFDSSource
from dcjax.runtime.errors import unknown_name

__all__ = ["SOURCES", "Source", "Subset", "open_source"]

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
