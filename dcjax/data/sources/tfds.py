"""TFDS image sets prepared as ArrayRecord, read without TensorFlow."""

import concurrent.futures
import contextlib
import hashlib
import os
import re
import resource
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from dcjax.data.decode import decode
from dcjax.data.sources.base import SPLIT_ALIASES, fingerprint, no_such_split
from dcjax.data.sources.folder import entries
from dcjax.runtime.errors import SettingError, did_you_mean, first_line, some

OTHER_FILES = 512  # files that a process has open besides those of a set
MANY_FILES = 65_536  # the limit of open files that is asked for, so that other sets fit too
RESIZE_KEY = "dcjax_resize"  # the entry in the metadata of a set that `dcjax.data.prepare` resized
OPENERS = 32  # files that are checked at a time, because on a network each of them waits


class TFDSSource:
    """A tensorflow-datasets image set that was prepared as ArrayRecord, read without TensorFlow.

    Args:
      dir: the TFDS folder; an empty string means `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      dataset: "name" or "name/config", with ":version" for another version than the newest prepared one.
      split: a split, or a part of one in TFDS's own notation ("train[:10%]").

    Raises:
      ValueError: the set is unknown, not prepared in `dir`, damaged, not in ArrayRecord files or without images, or
        the split is unknown or empty.
    """

    name = "tfds"

    def __init__(self, dir: str, dataset: str, split: str):
        import tensorflow_datasets as tfds  # imported here because only such a set needs it
        from tensorflow_datasets.proto import tf_example_pb2

        folder = _prepared_folder(dir, dataset)
        with _reading(dataset, folder):
            builder: Any = tfds.builder_from_directory(folder)
            info = builder.info
            resize = (info.metadata or {}).get(RESIZE_KEY)
        if tfds.core.FileFormat.ARRAY_RECORD not in info.available_file_formats():
            raise ValueError(
                f"dataset = {dataset!r}: {folder} holds {info.file_format} files, which give no random access; "
                f"prepare it as ArrayRecord in another dir: {_how_to_prepare(dataset)}"
            )
        features: Any = info.features
        images = [key for key in features if isinstance(features[key], tfds.features.Image)]
        if not images:
            raise ValueError(f"dataset = {dataset!r}: no image among its features {', '.join(features)}")
        self._image = "image" if "image" in images else images[0]
        label = dict(features.items()).get("label")
        self.classes = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) and label.names else ()
        if split not in info.splits and SPLIT_ALIASES.get(split) in info.splits:
            split = SPLIT_ALIASES[split]
        try:
            count = info.splits[split].num_examples
        except (KeyError, ValueError) as error:
            raise no_such_split(split, dataset, info.splits) from error
        if count == 0:
            raise ValueError(f"split = {split!r}: holds no image of {dataset}; known are {', '.join(info.splits)}")
        with _reading(dataset, folder):
            parts: Any = info.splits[split].file_instructions
            self._shards = [_Shard(str(p.filename), p.skip, p.take, p.examples_in_shard) for p in parts]
        allow_open_files(len(self._shards))
        check_shards(self._shards)
        with _reading(dataset, folder):
            # `read` takes the two fields from the protocol buffer: TFDS's own conversion to NumPy takes a hundred
            # microseconds, during which no other thread runs.
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._records = builder.as_data_source(split, deserialize_method=raw, file_format="array_record")
        messages: Any = tf_example_pb2  # makes its classes at import, which hides them from a type checker
        self._parse = messages.Example.FromString
        self._ends = np.cumsum([shard.take for shard in self._shards])
        self._split = f"{info.full_name} {split}"
        # Three images stand for all. The resize is hashed too, since it may have left these three as they were.
        some_images = [hashlib.sha256(self.read(i)[0]).hexdigest() for i in (0, count // 2, count - 1)]
        size = [f"{RESIZE_KEY}={resize}"] if resize else []
        self.fingerprint = fingerprint("tfds", info.full_name, split, str(count), *self.classes, *some_images, *size)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        data, label = self.read(i)
        return decode(data, self.image_name(i)), label

    def read(self, i: int) -> tuple[bytes, int]:
        """The stored bytes of image `i`, and its label."""
        try:
            fields = self._parse(self._records[i]).features.feature
            return fields[self._image].bytes_list.value[0], fields["label"].int64_list.value[0] if self.classes else -1
        except Exception as error:  # array_record's own errors have no common type
            raise SettingError(f"dir: cannot read {self.image_name(i)}: {first_line(error)}") from error

    def image_name(self, i: int) -> str:
        shard = int(np.searchsorted(self._ends, i, side="right"))
        record = self._shards[shard].skip + i - (int(self._ends[shard - 1]) if shard else 0)
        return f"{self._split} image {i} (record {record} of {os.path.basename(self._shards[shard].path)})"


@contextlib.contextmanager
def _reading(dataset: str, folder: str) -> Iterator[None]:
    """Turns whatever TFDS raises on files that it cannot read into a `ValueError`."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"dataset = {dataset!r}: cannot read {folder}: {first_line(error)}") from error


class _Shard(NamedTuple):
    """A file of the set: `take` of its `count` records, from record `skip` on, belong to the split."""

    path: str
    skip: int
    take: int
    count: int


def check_shards(shards: list[_Shard]) -> None:
    """Raises `ValueError` for files that are missing, damaged or cut short, before a run depends on them."""
    with concurrent.futures.ThreadPoolExecutor(OPENERS) as pool:
        found = pool.map(lambda shard: shard_problem(shard.path, shard.count), shards)
        problems = [problem for problem in found if problem]
    if problems:
        raise ValueError(
            f"dir: damaged shards, copy them again, or remove the folder and prepare it again: {some(problems)}"
        )


def shard_problem(path: str, count: int) -> str:
    """The problem of a file that should hold `count` records; an empty string if there is none."""
    from array_record.python.array_record_module import ArrayRecordReader

    if not os.path.isfile(path):
        return f"{path} is missing"
    try:
        reader = ArrayRecordReader(path)
        found = reader.num_records()
        reader.close()
    except Exception as error:  # array_record's own errors have no common type
        return f"{path} cannot be read ({first_line(error)})"
    # The index of the records is at the end, so a file that was cut short cannot be read or has fewer records.
    return "" if found == count else f"{path} holds {found} records instead of {count}"


def allow_open_files(count: int) -> None:
    """Lifts this process's limit of open files if `count` more need it, since a reader keeps its files open.

    Raises:
      ValueError: the system does not allow so many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + OTHER_FILES
    enough = max(wanted, MANY_FILES)
    if soft == resource.RLIM_INFINITY or wanted <= soft:
        return
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise ValueError(
            f"dataset: its {count} files stay open while it is read, but a process may open {hard}; "
            f"raise the limit (ulimit -n {wanted})"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (enough if hard == resource.RLIM_INFINITY else min(enough, hard), hard))


def _prepared_folder(dir: str, dataset: str) -> str:
    """The folder of the named or the newest prepared version, found by its files without running code of the set."""
    dir = os.path.expanduser(dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
    name, _, version = dataset.partition(":")
    top = os.path.join(dir, *name.split("/"))
    versions, configs = _versions(top), []
    if not versions and name and os.path.isdir(top):
        configs = [config for config, is_folder in sorted(entries(top)) if is_folder]
        configs = [config for config in configs if _versions(os.path.join(top, config))]
        if len(configs) == 1:
            top = os.path.join(top, configs[0])
            versions = _versions(top)
    if version in versions or (versions and not version):
        return os.path.join(top, version or versions[-1])
    if versions:
        raise ValueError(f"dataset = {dataset!r}: prepared in {top} are the versions {', '.join(versions)}")
    begun = [entry for entry, _ in entries(top) if "incomplete" in entry] if name and os.path.isdir(top) else []
    if begun:
        raise ValueError(
            f"dataset = {dataset!r}: its preparation in {os.path.join(top, begun[0])} did not end; run the same "
            "command of dcjax.data.prepare again"
        )
    if configs:
        raise ValueError(f"dataset = {dataset!r}: name one of {', '.join(f'{name}/{c}' for c in configs)}")
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0] in known:
        raise ValueError(
            f"dataset = {dataset!r}: not prepared in dir = {dir!r}; {_how_to_prepare(name)}"
            ", or read class folders with the source 'folder'"
        )
    if not os.path.isdir(dir):
        raise ValueError(f"dir = {dir!r}: no such folder")
    if name and os.path.isdir(top):
        raise ValueError(
            f"dataset = {dataset!r}: {top} holds no finished version (a folder such as 1.0.0 with a "
            "dataset_info.json); copy it whole, or prepare it again"
        )
    here = sorted(entry for entry, is_folder in entries(dir) if is_folder)
    raise ValueError(
        f"dataset = {dataset!r}: neither in dir = {dir!r} (there: {some(here) or 'nothing'}) nor a set that "
        f"tensorflow-datasets knows{did_you_mean(name, [*here, *known])}"
    )


def _versions(folder: str) -> list[str]:
    """The prepared versions in a folder, the oldest first."""
    if not os.path.isdir(folder):
        return []
    # The folder of an unfinished preparation has another kind of name.
    found = [name for name, _ in entries(folder) if re.fullmatch(r"\d+\.\d+\.\d+", name)]
    found = [name for name in found if os.path.isfile(os.path.join(folder, name, "dataset_info.json"))]
    return sorted(found, key=lambda name: [int(part) for part in name.split(".")])


def _how_to_prepare(dataset: str) -> str:
    return f"once, with pip install 'dcjax[prepare]', run dcjax prepare --dataset={dataset} --data_dir=DIR"
