"""Image folders: a tree of class folders like ImageNet's, or a flat folder without labels."""

import logging
import os
from collections.abc import Iterable

import numpy as np

from dcjax.data.decode import DamagedImageError, decode
from dcjax.data.sources.base import SPLIT_ALIASES, fingerprint
from dcjax.runtime.errors import SettingError, printable, some
from dcjax.runtime.reading import UnfitFileError, read_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MAX_BYTES = 2**28  # of an image file
TRAIN_SPLITS = ("train", "training")
SPLIT_FOLDERS = (*TRAIN_SPLITS, *SPLIT_ALIASES, "valid", "test")


class FolderSource:
    """Image files: `dir/split/<class>/...`; `dir/<class>/...` for the training split; or one folder without classes.

    A class folder may hold further folders. The split `val` finds the folder `validation` and the reverse. Hidden files
    are left out.

    Args:
      dir: the folder.
      split: the folder inside `dir`. "train" is `dir` itself if no folder in it is named like a split.
      classes: the training source's class names, so that the labels of a test split mean the same classes.

    Raises:
      ValueError: the folder or the split is missing or holds no image, a class folder holds files but no image, a
        class is not among `classes`, or images lie beside class folders.
    """

    name = "folder"

    def __init__(self, dir: str, split: str, classes: Iterable[str] = ()):
        self._top = _split_folder(os.path.expanduser(dir), split)
        paths, names, counts = _scan(self._top)
        self.classes = tuple(classes) or tuple(names)
        unknown = sorted(set(names) - set(self.classes))
        if unknown:
            raise ValueError(
                f"split = {split!r}: its class folders must be classes of the training split too; "
                f"not among those {len(self.classes)}: {some(unknown)}"
            )
        self._labels = None
        if names:
            index = {name: i for i, name in enumerate(self.classes)}
            self._labels = np.repeat(np.array([index[name] for name in names], np.int32), counts)
        else:
            self.classes = ()
        # The paths are one block of bytes, because those of ImageNet as separate str objects would take 130 MB.
        encoded = [os.fsencode(path) for path in paths]
        self._starts = np.cumsum([0] + [len(path) for path in encoded])
        self._paths = b"".join(encoded)
        self.fingerprint = fingerprint("folder", *names, str(len(paths)), *paths)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        data, label = self.read(i)
        return decode(data, self.image_name(i)), label

    def read(self, i: int) -> tuple[bytes, int]:
        """The bytes of image `i` as they are in its file, and its label.

        Raises:
          DamagedImageError: it is no regular file, or has more than `MAX_BYTES` bytes.
          SettingError: it cannot be read.
        """
        path = self.image_name(i)
        try:
            data = read_file(path, MAX_BYTES)
        except UnfitFileError as error:
            raise DamagedImageError(str(error)) from error
        except OSError as error:
            # This is no damaged image: the file system may give it later, and if another image took its place now, the
            # stream would depend on the moment.
            raise SettingError(printable(f"dir: cannot read {path}: {error.strerror}")) from error
        return data, -1 if self._labels is None else int(self._labels[i])

    def image_name(self, i: int) -> str:
        return os.path.join(self._top, self.relative_name(i))

    def relative_name(self, i: int) -> str:
        """The path of image `i` inside the split."""
        return os.fsdecode(self._paths[self._starts[i] : self._starts[i + 1]])


def _split_folder(dir: str, split: str) -> str:
    """The folder that holds a split's images."""
    folders = sorted(name for name, is_folder in entries(dir) if is_folder)
    for name in (split, SPLIT_ALIASES.get(split)):
        if name in folders:
            return os.path.join(dir, name)
    if split in TRAIN_SPLITS and not set(folders) & set(SPLIT_FOLDERS):
        return dir
    found = f"it has the folders {some(folders)}" if folders else "it has no folders"
    raise ValueError(f"split = {split!r}: no such folder in dir = {dir!r}; {found}")


def _scan(top: str) -> tuple[list[str], list[str], list[int]]:
    """Paths of all images relative to `top` in order, class names in order, and the number of images of each class."""
    found = entries(top)
    names = sorted(name for name, is_folder in found if is_folder)
    loose = sorted(name for name, is_folder in found if not is_folder and _is_image(name))
    per_class = {name: _images_below(os.path.join(top, name), f"{name}/") for name in names}
    count = sum(map(len, per_class.values()))
    if not loose and not count:
        raise ValueError(f"dir: {top} holds no image ({', '.join(IMAGE_SUFFIXES)}), nor do its folders")
    if not count:
        return loose, [], []
    if loose:
        raise ValueError(
            f"dir: {top} holds images ({some(loose)}) beside class folders ({some(names)}); "
            "move the images into class folders, or point dir at a folder of images alone"
        )
    empty = [name for name in names if not per_class[name]]
    # An empty folder is a class of which a subset of a data set has no image; a folder of other files is a mistake.
    wrong = [name for name in empty if entries(os.path.join(top, name))]
    if wrong:
        raise ValueError(
            f"dir: no image ({', '.join(IMAGE_SUFFIXES)}) in the class folders {some(wrong)} of {top}; "
            "convert their files, or remove the folders"
        )
    if empty:
        logging.warning("%d of the %d class folders of %s are empty: %s", len(empty), len(names), top, some(empty))
    paths = [path for name in names for path in per_class[name]]
    return paths, names, [len(per_class[name]) for name in names]


def _images_below(folder: str, prefix: str) -> list[str]:
    paths = []
    for name, is_folder in entries(folder):
        if is_folder:
            paths += _images_below(os.path.join(folder, name), f"{prefix}{name}/")
        elif _is_image(name):
            paths.append(prefix + name)
    return sorted(paths)


def entries(folder: str) -> list[tuple[str, bool]]:
    """The name of each entry that is not hidden, and whether it is a folder."""
    try:
        with os.scandir(folder) as entries:
            # Entries with an image suffix are listed as files without `is_dir`, which costs a stat for every link.
            return [
                (entry.name, not _is_image(entry.name) and entry.is_dir())
                for entry in entries
                if not entry.name.startswith(".")
            ]
    except OSError as error:
        problem = error.strerror if folder else "names no folder"
        raise ValueError(f"dir = {folder!r}: {problem}; give a folder of images that can be read") from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)
