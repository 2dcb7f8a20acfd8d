"""Prepares image sets for training: random access from few large files, read without TensorFlow.

    python -m dcjax.data.prepare --folder=/data/imagenet --name=my_imagenet --data_dir=/data/tfds
    python -m dcjax.data.prepare --folder=/data/imagenet --name=imagenet_320 --data_dir=/data/tfds --resize=320
    python -m dcjax.data.prepare --dataset=imagenet2012 --manual_dir=/downloads --data_dir=/data/tfds

The first form turns class folders into an ArrayRecord set that tensorflow-datasets reads, without TensorFlow: the files
go in as they are. With --resize, an image whose shorter side is longer than that goes in as a smaller JPEG (quality 90,
no chroma subsampling); smaller images and files that cannot be decoded go in as they are. The third form has
tensorflow-datasets prepare one of its own sets, which needs TensorFlow once (pip install 'dcjax[prepare]'). Train on
any of them with --config.data.name=tfds --config.data.dataset=NAME --config.data.dir=DIR.
An interrupted preparation of class folders goes on where it stopped; only a finished one is found by a run.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import importlib.util
import itertools
import json
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from dcjax.data.resize import ENCODING, as_stored
from dcjax.data.sources.base import did_you_mean, first_line, some
from dcjax.data.sources.folder import SPLIT_FOLDERS, TRAIN_SPLITS, FolderSource, entries
from dcjax.data.sources.tfds import RESIZE_KEY, shard_problem
from dcjax.runtime import cli
from dcjax.runtime.errors import SettingError
from dcjax.runtime.files import replace_text

PLAN_FILE = "plan.json"
METADATA_FILE = "metadata.json"  # TFDS's name for it
INCOMPLETE = ".incomplete"
SHARD_MEGABYTES = 256

# One record to a group, so that a random read decompresses nothing but its own; JPEG bytes do not compress any more.
WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of consecutive images of a split."""

    split: str
    number: int
    of: int
    first: int
    count: int

    def file_name(self, name: str) -> str:
        return f"{name}-{self.split}.array_record-{self.number:05d}-of-{self.of:05d}"


def prepare_folder(
    folder: str,
    name: str,
    *,
    data_dir: str,
    version: str = "1.0.0",
    shard_megabytes: int = SHARD_MEGABYTES,
    resize: int | None = None,
) -> pathlib.Path:
    """Turns an image folder into an ArrayRecord set that tensorflow-datasets reads; no TensorFlow is needed.

    The bytes of the files stay as they are unless `resize` is given. Each file's path becomes the record's `file_name`.

    Args:
      folder: `folder/<split>/<class>/...`, or class folders alone for a training split.
      name: of the new set; letters, digits and underscores.
      data_dir: where the set is put, as `data_dir/name/version`.
      version: three numbers.
      shard_megabytes: size of a file on average; every file holds about as many images. The bytes of the images as they
        are in the folder count, so that files of resized images are smaller.
      resize: longest shorter side of an image, in pixels; larger ones are stored as `dcjax.data.resize.resized` gives
        them. None stores every file as it is.

    Returns:
      The folder of the set.

    Raises:
      ValueError: a folder without images, a name or version that TFDS does not take, a set of that version that is
        prepared already, or one that was begun with another `resize`.
    """
    check_identity(name, version)
    if shard_megabytes < 1:
        raise SettingError(f"--shard_megabytes must be at least 1, found {shard_megabytes}")
    if resize is not None and resize < 1:
        raise SettingError(f"--resize must be at least 1 pixel, found {resize}")
    finished = pathlib.Path(data_dir).expanduser() / name / version
    try:
        prepared = finished.exists() and any(finished.iterdir())
    except OSError as error:
        raise SettingError(f"--data_dir: {finished} cannot be read ({error.strerror})") from error
    if prepared:
        raise SettingError(
            f"--name {name}: version {version} is prepared in {finished} {with_resize(resize_of(finished))}; choose "
            "another --version, or remove that folder to prepare it again"
        )
    sources = open_splits(folder)
    shards = [shard for split, source in sources.items() for shard in plan_shards(source, split, shard_megabytes)]
    work = finished.with_name(version + INCOMPLETE)
    with alone_in(work):
        continue_or_start(work, {split: source.fingerprint for split, source in sources.items()}, shards, resize)
        write_set(work, sources, shards, name=name, version=version, resize=resize)
        os.replace(work, finished)
    (finished / PLAN_FILE).unlink()
    return finished


def write_set(
    work: pathlib.Path,
    sources: dict[str, FolderSource],
    shards: list[Shard],
    *,
    name: str,
    version: str,
    resize: int | None,
) -> None:
    """Writes the files that are not there yet, then what TFDS knows of the set."""
    features = image_features(next(iter(sources.values())).classes)
    stop = threading.Event()
    with tqdm(total=sum(shard.count for shard in shards), unit="img", unit_scale=True, desc=name) as bar:

        def write(shard: Shard) -> None:
            write_shard(work / shard.file_name(name), sources[shard.split], shard, features, resize=resize, stop=stop)
            bar.update(shard.count)

        # Reading waits for the disk, and the writer, as what resizes an image, works outside of Python's lock.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for _ in pool.map(write, shards):
                    pass
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    write_info(work, features, name=name, version=version, shards=shards, resize=resize)


def prepare_dataset(dataset: str, *, data_dir: str | None, manual_dir: str | None) -> pathlib.Path:
    """Has tensorflow-datasets prepare one of its sets as ArrayRecord.

    Args:
      dataset: its TFDS name, with a config or a version where wanted.
      data_dir: where the sets lie; None for TFDS's own folder.
      manual_dir: where files lie that must be downloaded by hand, as ImageNet's.

    Returns:
      The folder of the set.

    Raises:
      ValueError: TensorFlow is missing, TFDS does not know the set, it has no images, or it cannot be prepared.
    """
    if not importlib.util.find_spec("tensorflow"):
        raise SettingError(
            f"--dataset={dataset} is prepared by TensorFlow, which is not installed; once: pip install "
            "'dcjax[prepare]' (class folders need none: --folder=DIR --name=NAME)"
        )
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder(dataset, data_dir=data_dir, file_format="array_record")
    except Exception as error:  # whatever TFDS raises for a set that it does not know, or cannot build
        known = tfds.list_builders(with_community_datasets=False)
        hint = did_you_mean(dataset, known)
        raise SettingError(f"--dataset={dataset}: {first_line(error)}{hint}") from error
    if not any(isinstance(feature, tfds.features.Image) for feature in builder.info.features.values()):
        raise SettingError(f"--dataset={dataset}: has no images, but {some(list(builder.info.features))}")
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    except Exception as error:  # a download, a missing manual file, a full disk
        raise SettingError(f"--dataset={dataset}: cannot be prepared: {first_line(error)}") from error
    return pathlib.Path(builder.data_dir)


def check_identity(name: str, version: str) -> None:
    """Raises `ValueError` for what TFDS does not take as a name or a version."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise SettingError(f"--name must be lower-case letters, digits and underscores, found '{name}'")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise SettingError(f"--version must be three numbers such as 1.0.0, found '{version}'")


def open_splits(folder: str) -> dict[str, FolderSource]:
    """Every split of an image folder, the training split first, with one numbering of the classes.

    Raises:
      ValueError: the folder is missing or holds no images, or a split has no class folders.
    """
    try:
        return _open_splits(os.path.expanduser(folder))
    except SettingError as error:
        raise SettingError(f"--folder={folder}: {error}") from error


def _open_splits(folder: str) -> dict[str, FolderSource]:
    found = [name for name, is_folder in sorted(entries(folder)) if is_folder and name in SPLIT_FOLDERS]
    names = sorted(found, key=lambda name: (name not in TRAIN_SPLITS, name)) or ["train"]
    sources: dict[str, FolderSource] = {}
    for name in names:
        classes = sources[names[0]].classes if sources else ()
        sources[name] = FolderSource(folder, name, classes)
        if not sources[name].classes:
            raise SettingError(f"its split '{name}' has no class folders")
    return sources


def plan_shards(source: FolderSource, split: str, megabytes: int) -> list[Shard]:
    """Cuts a split into files of about one size in bytes and equal numbers of images."""
    try:
        total = sum(os.path.getsize(source.image_name(i)) for i in range(len(source)))
    except OSError as error:
        raise SettingError(f"--folder: cannot read {error.filename}: {error.strerror}; mend or remove it") from error
    of = max(1, min(len(source), -(-total // (megabytes * 10**6))))
    bounds = [len(source) * k // of for k in range(of + 1)]
    return [Shard(split, k, of, first, last - first) for k, (first, last) in enumerate(itertools.pairwise(bounds))]


@contextlib.contextmanager
def alone_in(work: pathlib.Path) -> Iterator[None]:
    """Raises `ValueError` where another process prepares the same set; its lock ends with it, however it ends."""
    with contextlib.ExitStack() as stack:
        try:
            work.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(work.with_name(f".{work.name}.lock"), "w"))
        except OSError as error:
            raise SettingError(f"--data_dir: {work.parent} cannot be written to ({error.strerror})") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingError(f"--name: another process is preparing {work}; wait for it to end") from error
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            os.unlink(lock.name)


def continue_or_start(
    work: pathlib.Path, fingerprints: dict[str, str], shards: list[Shard], resize: int | None
) -> None:
    """Makes the folder to work in; what an interrupted preparation of the same images left in it stays.

    Raises:
      ValueError: that preparation had another `resize`, or the folder cannot be written to.
    """
    plan: dict[str, Any] = {"images": fingerprints, "shards": [dataclasses.astuple(shard) for shard in shards]}
    if resize is not None:
        plan |= {RESIZE_KEY: resize, "encoding": ENCODING}
    text = json.dumps(plan)
    begun = (work / PLAN_FILE).read_text() if (work / PLAN_FILE).exists() else ""
    if begun and resize_of(work) != resize:
        raise SettingError(
            f"--resize: {work} was begun {with_resize(resize_of(work))}, now it is {resize or 'not given'}; give the "
            "same command as then, choose another --version, or remove that folder"
        )
    if work.exists() and begun != text:
        print(f"dcjax: {work} was begun with other images or shards; starting anew", flush=True)
        shutil.rmtree(work)
    try:
        work.mkdir(parents=True, exist_ok=True)
        replace_text(work / PLAN_FILE, text)
    except OSError as error:
        raise SettingError(f"--data_dir: {work} cannot be written to ({error.strerror})") from error


def resize_of(folder: pathlib.Path) -> int | None:
    """The `resize` that a preparation, finished or begun, was given."""
    for file in (METADATA_FILE, PLAN_FILE):
        try:
            return json.loads((folder / file).read_text()).get(RESIZE_KEY)
        except (OSError, ValueError):  # of a set without it, or of another maker
            continue
    return None


def with_resize(resize: int | None) -> str:
    return f"with --resize={resize}" if resize else "without --resize"


def image_features(classes: Sequence[str]) -> Any:
    """TFDS's description of a record."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=list(classes)),
            "file_name": tfds.features.Text(),
        }
    )


def write_shard(
    path: pathlib.Path,
    source: FolderSource,
    shard: Shard,
    features: Any,
    *,
    resize: int | None,
    stop: threading.Event,
) -> None:
    """Writes a file under a temporary name and renames it when it is whole; a whole one is kept.

    It ends early, without the file, when `stop` is set.

    Raises:
      ValueError: an image cannot be read, or the file cannot be written.
    """
    if path.exists() and not shard_problem(str(path), shard.count):
        return
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core import example_serializer

    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # of this process, should a lock be of no avail
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
        with open(partial, "rb") as file:
            os.fsync(file.fileno())  # or a file that lost its content with the power would have its name
        os.replace(partial, path)
    except SettingError:
        raise
    except Exception as error:  # array_record's own errors have no common type: a full disk, a name that is no text
        raise SettingError(f"--data_dir: {path} cannot be written ({first_line(error)}); run the same again") from error
    finally:
        partial.unlink(missing_ok=True)


def write_info(
    work: pathlib.Path, features: Any, *, name: str, version: str, shards: list[Shard], resize: int | None
) -> None:
    """Writes what TFDS knows of a set: its features, classes, splits and the length of every file, and its `resize`."""
    import tensorflow_datasets as tfds
    from etils import epath  # a dependency of tensorflow-datasets, whose paths it is
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


def main(argv: Sequence[str]) -> None:
    """Parses the command line and prepares."""
    parser = cli.Parser(prog="python -m dcjax.data.prepare", description=__doc__ or "")
    parser.add_argument("--folder", help="an image folder: FOLDER/<split>/<class>/*.jpg, or FOLDER/<class>/*.jpg")
    parser.add_argument("--name", help="name of the set that --folder becomes")
    parser.add_argument("--version", default="1.0.0", help="its version (default: 1.0.0)")
    parser.add_argument("--shard_megabytes", type=int, default=SHARD_MEGABYTES, help="size of a file (default: 256)")
    parser.add_argument(
        "--resize", type=int, help="store images of --folder with a shorter side of at most so many pixels, as JPEG"
    )
    parser.add_argument("--dataset", help="a set of tensorflow-datasets, such as imagenet2012")
    parser.add_argument("--manual_dir", help="where its files lie that must be downloaded by hand")
    parser.add_argument("--data_dir", help="where prepared sets lie (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)")
    flags = parser.parse_args(argv)
    if bool(flags.folder) == bool(flags.dataset):
        parser.error("give either --folder=DIR --name=NAME or --dataset=NAME")
    if flags.dataset:
        if flags.resize is not None:
            parser.error(
                f"--resize={flags.resize} goes with --folder alone: tensorflow-datasets stores --dataset="
                f"{flags.dataset} as its own recipe says; prepare its images from class folders to resize them"
            )
        path = prepare_dataset(flags.dataset, data_dir=flags.data_dir, manual_dir=flags.manual_dir)
    else:
        if not flags.name:
            parser.error("--folder needs --name=NAME for the set")
        data_dir = flags.data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        path = prepare_folder(
            flags.folder,
            flags.name,
            data_dir=data_dir,
            version=flags.version,
            shard_megabytes=flags.shard_megabytes,
            resize=flags.resize,
        )
    print(f"dcjax: prepared {path}")


if __name__ == "__main__":
    cli.run(main)
