"""TFDS image sets prepared as ArrayRecord, read without TensorFlow."""

import concurrent.futures
import hashlib
import os
import re
import resource
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from dcjax.data import crops
from dcjax.data.sources.base import (
    SPLIT_ALIASES,
    did_you_mean,
    fingerprint,
    first_line,
    no_such_split,
    some,
    split_setting,
)
from dcjax.data.sources.folder import entries
from dcjax.runtime.errors import SettingError

OTHER_FILES = 512  # files that a process has open besides those of a set
MANY_FILES = 65_536
RESIZE_KEY = "dcjax_resize"  # in the metadata of a set that `dcjax.data.prepare` resized
OPENERS = 32  # files of a set that are opened at a time, where each waits for a network


class TFDSSource:
    """A tensorflow-datasets image set that was prepared as ArrayRecord, read without TensorFlow.

    Args:
      dir: the TFDS folder; empty for `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      dataset: "name", "name/config" or either with ":version"; the newest prepared version unless given.
      split: a split, or a part of one in TFDS's own notation ("train[:10%]").

    Raises:
      SettingError: the set is unknown, not prepared in `dir`, not as ArrayRecord, or without images; or the split is
        unknown or empty.
    """

    name = "tfds"

    def __init__(self, dir: str, dataset: str, split: str):
        import tensorflow_datasets as tfds  # only who reads such a set pays for the import
        from tensorflow_datasets.proto import tf_example_pb2

        folder = _prepared_folder(dir, dataset)
        try:
            builder: Any = tfds.builder_from_directory(folder)
            info = builder.info
            resize = (info.metadata or {}).get(RESIZE_KEY)
        except Exception as error:  # whatever TFDS raises on files that it cannot read
            raise SettingError(f"data.dataset = {dataset!r}: cannot read {folder}: {first_line(error)}") from error
        if tfds.core.FileFormat.ARRAY_RECORD not in info.available_file_formats():
            raise SettingError(
                f"data.dataset = {dataset!r}: {folder} holds {info.file_format} files, which give no random access; "
                f"prepare it as ArrayRecord in another data.dir: {_how_to_prepare(dataset)}"
            )
        features: Any = info.features
        images = [key for key in features if isinstance(features[key], tfds.features.Image)]
        if not images:
            raise SettingError(f"data.dataset = {dataset!r}: no image among its features {', '.join(features)}")
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
            raise SettingError(
                f"{split_setting(split)}: holds no image of {dataset}; known are {', '.join(info.splits)}"
            )
        try:
            self._shards = [_Shard(*part) for part in _parts(info.splits[split].file_instructions)]
            allow_open_files(len(self._shards))
            check_shards(self._shards)
            # The image is decoded here, and the few fields are read from the protocol buffer itself: TFDS's own way to
            # NumPy takes a hundred microseconds, during which no other thread runs.
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._records = builder.as_data_source(split, deserialize_method=raw, file_format="array_record")
        except SettingError:
            raise
        except Exception as error:
            raise SettingError(f"data.dataset = {dataset!r}: cannot read {folder}: {first_line(error)}") from error
        messages: Any = tf_example_pb2  # its classes are made at import, where a type checker sees none
        self._parse = messages.Example.FromString
        self._ends = np.cumsum([shard.take for shard in self._shards])
        self._split = f"{info.full_name} {split}"
        # Three images stand for all of them; they may be smaller than what others were resized to.
        some_images = [hashlib.sha256(self.read(i)[0]).hexdigest() for i in (0, count // 2, count - 1)]
        size = [f"{RESIZE_KEY}={resize}"] if resize else []
        self.fingerprint = fingerprint("tfds", info.full_name, split, str(count), *self.classes, *some_images, *size)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        data, label = self.read(i)
        return crops.decode(data, self.image_name(i)), label

    def read(self, i: int) -> tuple[bytes, int]:
        """The bytes of image `i` as they were prepared, and its label."""
        try:
            fields = self._parse(self._records[i]).features.feature
            return fields[self._image].bytes_list.value[0], fields["label"].int64_list.value[0] if self.classes else -1
        except Exception as error:  # array_record's own errors have no common type
            raise SettingError(f"data.dir: cannot read {self.image_name(i)}: {first_line(error)}") from error

    def image_name(self, i: int) -> str:
        shard = int(np.searchsorted(self._ends, i, side="right"))
        record = self._shards[shard].skip + i - (int(self._ends[shard - 1]) if shard else 0)
        return f"{self._split} image {i} (record {record} of {os.path.basename(self._shards[shard].path)})"


class _Shard(NamedTuple):
    """A file of a split, and which of its records belong to it."""

    path: str
    skip: int
    take: int
    count: int


def _parts(instructions: Iterable[Any]) -> list[tuple[str, int, int, int]]:
    return [(str(part.filename), part.skip, part.take, part.examples_in_shard) for part in instructions]


def check_shards(shards: list[_Shard]) -> None:
    """Raises `ValueError` for a file that is missing, damaged or cut short, before a run depends on it."""
    with concurrent.futures.ThreadPoolExecutor(OPENERS) as pool:
        found = pool.map(lambda shard: shard_problem(shard.path, shard.count), shards)
        problems = [problem for problem in found if problem]
    if problems:
        raise SettingError(
            f"data.dir: damaged shards, copy them again, or remove the folder and prepare it again: {some(problems)}"
        )


def shard_problem(path: str, count: int) -> str:
    """What is wrong with a file that should hold `count` records; empty where nothing is."""
    from array_record.python.array_record_module import ArrayRecordReader

    if not os.path.isfile(path):
        return f"{path} is missing"
    try:
        reader = ArrayRecordReader(path)
        found = reader.num_records()
        reader.close()
    except Exception as error:  # array_record's own errors have no common type
        return f"{path} cannot be read ({first_line(error)})"
    # Of a file that was cut short the end is missing, where its index is.
    return "" if found == count else f"{path} holds {found} records instead of {count}"


def allow_open_files(count: int) -> None:
    """Raises this process's limit of open files where `count` more need it: a reader keeps each of its files open.

    Raises:
      ValueError: the system's limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + OTHER_FILES
    enough = max(wanted, MANY_FILES)  # of other sets too
    if soft == resource.RLIM_INFINITY or wanted <= soft:
        return
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise SettingError(
            f"data.dataset: its {count} files stay open while it is read, but a process may open {hard}; "
            f"raise the limit (ulimit -n {wanted})"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (enough if hard == resource.RLIM_INFINITY else min(enough, hard), hard))


def _prepared_folder(dir: str, dataset: str) -> str:
    """The folder of the newest (or the named) prepared version. Found by its files, so no code of the set is run."""
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
        raise SettingError(f"data.dataset = {dataset!r}: prepared in {top} are the versions {', '.join(versions)}")
    begun = [entry for entry, _ in entries(top) if "incomplete" in entry] if name and os.path.isdir(top) else []
    if begun:
        raise SettingError(
            f"data.dataset = {dataset!r}: its preparation in {os.path.join(top, begun[0])} did not end; run the same "
            "command of dcjax.data.prepare again"
        )
    if configs:
        raise SettingError(f"data.dataset = {dataset!r}: name one of {', '.join(f'{name}/{c}' for c in configs)}")
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0] in known:
        raise SettingError(
            f"data.dataset = {dataset!r}: not prepared in data.dir = {dir!r}; {_how_to_prepare(name)}"
            ", or read class folders with data.name=folder"
        )
    if not os.path.isdir(dir):
        raise SettingError(f"data.dir = {dir!r}: no such folder")
    if name and os.path.isdir(top):
        raise SettingError(
            f"data.dataset = {dataset!r}: {top} holds no finished version (a folder such as 1.0.0 with a "
            "dataset_info.json); copy it whole, or prepare it again"
        )
    here = sorted(entry for entry, is_folder in entries(dir) if is_folder)
    raise SettingError(
        f"data.dataset = {dataset!r}: neither in data.dir = {dir!r} (there: {some(here) or 'nothing'}) nor a set that "
        f"tensorflow-datasets knows{did_you_mean(name, [*here, *known])}"
    )


def _versions(folder: str) -> list[str]:
    """Prepared versions in a folder, oldest first."""
    if not os.path.isdir(folder):
        return []
    # A preparation under way lies beside them under another name.
    found = [name for name, _ in entries(folder) if re.fullmatch(r"\d+\.\d+\.\d+", name)]
    found = [name for name in found if os.path.isfile(os.path.join(folder, name, "dataset_info.json"))]
    return sorted(found, key=lambda name: [int(part) for part in name.split(".")])


def _how_to_prepare(dataset: str) -> str:
    return (
        f"once, with pip install 'dcjax[prepare]', run python -m dcjax.data.prepare --dataset={dataset} --data_dir=DIR"
    )
