"""The table of image sources; each source has a file of its own."""

from collections.abc import Callable, Iterable

from dcjax.data.sources.base import Source, Subset
from dcjax.data.sources.digits import DigitsSource
from dcjax.data.sources.folder import FolderSource
from dcjax.data.sources.tfds import TFDSSource
from dcjax.runtime.errors import not_known
from dcjax.runtime.tables import accepted

__all__ = ["SOURCES", "Source", "Subset", "open_source"]

# `open_source` calls a row with those of its own arguments that the row takes.
SOURCES: dict[str, Callable[..., Source]] = {"digits": DigitsSource, "folder": FolderSource, "tfds": TFDSSource}


def open_source(name: str, *, split: str, dir: str = "", dataset: str = "", classes: Iterable[str] = ()) -> Source:
    """Open the images of one split.

    Args:
      name: a key of `SOURCES`.
      split: the part of the images, such as "train".
      dir: the folder of the images ("folder", "tfds").
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
    return SOURCES[name](**accepted(SOURCES[name], arguments))
