"""Writes class folders of images as an ArrayRecord set of tensorflow-datasets, without TensorFlow."""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

import cv2
from tqdm import tqdm

from dcjax.data.resize import ENCODING, as_stored
from dcjax.data.sources.folder import FolderSource
from dcjax.data.sources.tfds import RESIZE_KEY, shard_problem
from dcjax.runtime.errors import SettingError, first_line
from dcjax.runtime.files import reason_of

AGAIN = "free some space, then give the same command again"

# One record per group, so that a random read reads no other record. JPEG bytes do not compress any further.
WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of the set, with `count` consecutive images of a split from image `first` on."""

    split: str
    number: int
    of: int
    first: int
    count: int

    def file_name(self, name: str) -> str:
        return f"{name}-{self.split}.array_record-{self.number:05d}-of-{self.of:05d}"


def plan_shards(source: FolderSource, split: str, megabytes: int) -> list[Shard]:
    """Cuts a split into files of `megabytes` on average and of equal numbers of images."""
    try:
        total = sum(os.path.getsize(source.image_name(i)) for i in range(len(source)))
    except OSError as error:
        raise SettingError(f"--folder: cannot read {error.filename}: {error.strerror}; mend or remove it") from error
    of = max(1, min(len(source), -(-total // (megabytes * 10**6))))
    bounds = [len(source) * k // of for k in range(of + 1)]
    return [Shard(split, k, of, first, last - first) for k, (first, last) in enumerate(itertools.pairwise(bounds))]


def write_set(
    work: pathlib.Path,
    sources: dict[str, FolderSource],
    shards: list[Shard],
    *,
    name: str,
    version: str,
    resize: int | None,
) -> None:
    """Writes the files that are not there yet, then TFDS's description of the set.

    Raises:
      SettingError: an image cannot be read, or a file cannot be written.
    """
    features = image_features(next(iter(sources.values())).classes)
    stop = threading.Event()
    with tqdm(total=sum(shard.count for shard in shards), unit="img", unit_scale=True, desc=name) as bar:

        def write(shard: Shard) -> None:
            write_shard(work / shard.file_name(name), sources[shard.split], shard, features, resize=resize, stop=stop)
            bar.update(shard.count)

        # Threads suffice: reading waits for the disk, and resizing and writing release Python's lock. With threads
        # inside OpenCV as well, all would compete for the same cores.
        cv2.setNumThreads(0)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for _ in pool.map(write, shards):
                    pass
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    try:
        write_info(work, features, name=name, version=version, shards=shards, resize=resize)
        sync_files(work)
    except OSError as error:
        raise SettingError(f"--data_dir: {work} cannot be written to ({reason_of(error)}); {AGAIN}") from error


def write_shard(
    path: pathlib.Path,
    source: FolderSource,
    shard: Shard,
    features: Any,
    *,
    resize: int | None,
    stop: threading.Event,
) -> None:
    """Writes a file under a temporary name and renames it when it is whole. A file that is whole already is kept.

    When `stop` is set, the function ends without the file.

    Raises:
      SettingError: an image cannot be read, or the file cannot be written.
    """
    if path.exists() and not shard_problem(str(path), shard.count):
        return
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core import example_serializer

    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # a name of its own, if the lock does not work
    try:
        writer = ArrayRecordWriter(str(partial), WRITER_OPTIONS)
        try:
            for i in range(shard.first, shard.first + shard.count):
                if stop.is_set():
                    return
                data, label = source.read(i)
                stored = as_stored(data, source.image_name(i), resize)
                record = {"image": stored, "label": label, "file_name": source.relative_name(i)}
                writer.write(serializer.serialize_example(record))
        finally:
            writer.close()
        if problem := shard_problem(str(partial), shard.count):  # its final name must say that it is whole
            raise OSError(problem)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())  # without it, a power cut could leave an empty file under the final name
        os.replace(partial, path)
    except SettingError:
        raise
    except Exception as error:  # a full disk, a name that is no text: array_record's errors have no common type
        raise SettingError(f"--data_dir: {path} cannot be written ({first_line(error)}); {AGAIN}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def sync_files(folder: pathlib.Path) -> None:
    """Waits until the small files of a folder are on the disk: a power cut would leave a set without description."""
    for path in folder.glob("*.json"):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def image_features(classes: Sequence[str]) -> Any:
    """TFDS's description of a record's fields."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=list(classes)),
            "file_name": tfds.features.Text(),
        }
    )


def write_info(
    work: pathlib.Path, features: Any, *, name: str, version: str, shards: list[Shard], resize: int | None
) -> None:
    """Writes TFDS's description of a set: features, classes, splits, the length of every file, and the `resize`."""
    import tensorflow_datasets as tfds
    from etils import epath  # the paths of tensorflow-datasets, which installs it
    from tensorflow_datasets.core import dataset_info, naming
    from tensorflow_datasets.core.splits import SplitDict

    identity = dataset_info.DatasetIdentity(
        name=name,
        version=tfds.core.Version(version),
        data_dir=str(work),
        module_name="dcjax.data.prepare",
    )
    description = "Images of class folders, with their bytes as they were."
    metadata = None
    if resize is not None:
        description = (
            f"Images of class folders. Those with a shorter side of more than {resize} px were resized to that "
            f"({ENCODING}); the others have their bytes as they were."
        )
        metadata = tfds.core.MetadataDict({RESIZE_KEY: resize, "encoding": ENCODING})
    info = tfds.core.DatasetInfo(builder=identity, description=description, features=features, metadata=metadata)
    info.set_file_format("array_record")
    splits = []
    for split in dict.fromkeys(shard.split for shard in shards):
        template = naming.ShardedFileTemplate(
            data_dir=epath.Path(work), dataset_name=name, split=split, filetype_suffix="array_record"
        )
        own = [shard for shard in shards if shard.split == split]
        size = sum((work / shard.file_name(name)).stat().st_size for shard in own)
        splits.append(tfds.core.SplitInfo(split, [shard.count for shard in own], size, template))
    info.set_splits(SplitDict(splits))
    info.write_to_directory(work)
