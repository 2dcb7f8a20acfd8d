"""The table of sources of images: one file for each."""

import inspect
from collections.abc import Callable, Iterable

from dcjax.data.sources.base import Source, Subset
from dcjax.data.sources.digits import DigitsSource
from dcjax.data.sources.folder import FolderSource
from dcjax.data.sources.tfds import TFDSSource
from dcjax.runtime.errors import not_known

__all__ = ["SOURCES", "Source", "Subset", "open_source"]

# A row is called with those arguments of `open_source` that it takes.
SOURCES: dict[str, Callable[..., Source]] = {"digits": DigitsSource, "folder": FolderSource, "tfds": TFDSSource}


def open_source(name: str, *, split: str, dir: str = "", dataset: str = "", classes: Iterable[str] = ()) -> Source:
    """Open the images of one split.

    Args:
      name: a key of `SOURCES`.
      split: which part of the images.
      dir: where the images are ("folder", "tfds").
      dataset: the TFDS name ("tfds").
      classes: for a test split, the class names of the training source ("folder").

    Returns:
      The source.

    Raises:
      ValueError: the name is unknown, or the source cannot be opened with these arguments.
    """
    if name not in SOURCES:
        raise ValueError(not_known("name", name, SOURCES))
    arguments = {"split": split, "dir": dir, "dataset": dataset, "classes": classes}
    wanted = inspect.signature(SOURCES[name]).parameters
    return SOURCES[name](**{key: value for key, value in arguments.items() if key in wanted})
