"""Prepares image sets for training: random access from few large files, read without TensorFlow.

    dcjax prepare --folder=/data/imagenet --name=my_imagenet --data_dir=/data/tfds
    dcjax prepare --folder=/data/imagenet --name=imagenet_320 --data_dir=/data/tfds --resize=320
    dcjax prepare --dataset=imagenet2012 --manual_dir=/downloads --data_dir=/data/tfds

The first form turns class folders into an ArrayRecord set of tensorflow-datasets, without TensorFlow, and stores the
files as they are. With --resize, an image with a longer shorter side is stored as a smaller JPEG (quality 90, no chroma
subsampling); smaller images and files that cannot be decoded are stored as they are. The third form lets
tensorflow-datasets prepare one of its own sets, which needs TensorFlow once (pip install 'dcjax[prepare]'). Train on
any of them with --config.data.name=tfds --config.data.dataset=NAME --config.data.dir=DIR.
An interrupted preparation of class folders continues when the command is given again; a run finds only finished sets.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from dcjax.data.array_record import AGAIN, Shard, plan_shards, write_set
from dcjax.data.resize import ENCODING
from dcjax.data.sources.folder import SPLIT_FOLDERS, TRAIN_SPLITS, FolderSource, entries
from dcjax.data.sources.tfds import RESIZE_KEY
from dcjax.runtime import cli
from dcjax.runtime.errors import SettingError, did_you_mean, first_line, some
from dcjax.runtime.files import refusing, replace_text
from dcjax.runtime.lock import take_lock
from dcjax.runtime.reading import read_json, read_text, whole

PLAN_FILE = "plan.json"
METADATA_FILE = "metadata.json"  # TFDS chose this name
INCOMPLETE = ".incomplete"
SHARD_MEGABYTES = 256
MAX_PLAN_BYTES = 2**26  # of plan.json, which has a line of 50 bytes for each shard


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

    Unless `resize` is given, the bytes of the files are stored as they are. A record's `file_name` is the file's path.

    Args:
      folder: `folder/<split>/<class>/...`, or class folders alone for a training split.
      name: the name of the new set, in lower-case letters, digits and underscores.
      data_dir: the folder of the sets; the new one becomes `data_dir/name/version`.
      version: three numbers.
      shard_megabytes: average size of a file, before the images are resized; all files hold about as many images.
      resize: most pixels of an image's shorter side; `dcjax.data.resize.resized` makes smaller copies of larger images.
        None stores every file as it is.

    Returns:
      The folder of the set.

    Raises:
      SettingError: the folder has no images, TFDS does not take the name or the version, the set is prepared already,
        or its preparation was begun with another `resize`.
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
            f"--name {name}: version {version} is prepared in {finished} already, {with_resize(resize_of(finished))}; "
            "train on it, choose another --version, or remove that folder to prepare it again"
        )
    sources = open_splits(folder)
    shards = [shard for split, source in sources.items() for shard in plan_shards(source, split, shard_megabytes)]
    work = finished.with_name(version + INCOMPLETE)
    with alone_in(work):
        continue_or_start(work, {split: source.fingerprint for split, source in sources.items()}, shards, resize)
        write_set(work, sources, shards, name=name, version=version, resize=resize)
        with refusing(finished, "--data_dir", AGAIN):
            os.replace(work, finished)
    with contextlib.suppress(OSError):  # the set is whole with the plan as well
        (finished / PLAN_FILE).unlink()
    return finished


def prepare_dataset(dataset: str, *, data_dir: str | None, manual_dir: str | None) -> pathlib.Path:
    """Lets tensorflow-datasets prepare one of its own sets as ArrayRecord.

    Args:
      dataset: the TFDS name, with a config or a version if wanted.
      data_dir: the folder of the sets; None for TFDS's own.
      manual_dir: the folder of files that must be downloaded by hand, such as ImageNet's.

    Returns:
      The folder of the set.

    Raises:
      SettingError: TensorFlow is missing, TFDS does not know the set, or the set has no images or cannot be prepared.
    """
    if not importlib.util.find_spec("tensorflow"):
        raise SettingError(
            f"--dataset={dataset} is prepared by TensorFlow, which is not installed; once: pip install "
            "'dcjax[prepare]' (class folders need none: --folder=DIR --name=NAME)"
        )
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder(dataset, data_dir=data_dir, file_format="array_record")
    except Exception as error:  # TFDS does not know the set or cannot build it
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
    """Raises `SettingError` for a name or a version that TFDS does not take."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise SettingError(f"--name must be lower-case letters, digits and underscores, found '{name}'")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise SettingError(f"--version must be three numbers such as 1.0.0, found '{version}'")


def open_splits(folder: str) -> dict[str, FolderSource]:
    """Every split of an image folder, the training split first, with one numbering of the classes.

    Raises:
      SettingError: the folder is missing or holds no images, or a split has no class folders.
    """
    sources: dict[str, FolderSource] = {}
    try:
        found = [name for name, is_folder in entries(os.path.expanduser(folder)) if is_folder and name in SPLIT_FOLDERS]
        for name in sorted(found, key=lambda name: (name not in TRAIN_SPLITS, name)) or ["train"]:
            classes = next(iter(sources.values())).classes if sources else ()
            sources[name] = FolderSource(folder, name, classes)
            if not sources[name].classes:
                raise ValueError(f"its split '{name}' has no class folders")
    except ValueError as error:
        raise SettingError(f"--folder={folder}: {error}") from error
    return sources


@contextlib.contextmanager
def alone_in(work: pathlib.Path) -> Iterator[None]:
    """Raises `SettingError` if another process prepares the same set. The lock ends with its process in any case."""
    path = work.with_name(f".{work.name}.lock")
    with refusing(work.parent, "--data_dir:", "name another folder"):
        work.parent.mkdir(parents=True, exist_ok=True)
        lock = take_lock(path, held=f"--name: another process is preparing {work}", remedy="wait for it to end")
    with lock:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # an empty file, and its lock ends with the process
                path.unlink()


def continue_or_start(
    work: pathlib.Path, fingerprints: dict[str, str], shards: list[Shard], resize: int | None
) -> None:
    """Makes the folder to work in, and keeps the files of an interrupted preparation of the same images.

    Raises:
      SettingError: that preparation had another `resize`, or the folder cannot be written to.
    """
    plan: dict[str, Any] = {"images": fingerprints, "shards": [dataclasses.astuple(shard) for shard in shards]}
    if resize is not None:
        plan |= {RESIZE_KEY: resize, "encoding": ENCODING}
    text = json.dumps(plan)
    begun = read_text(work / PLAN_FILE, MAX_PLAN_BYTES) if (work / PLAN_FILE).exists() else ""
    if begun and resize_of(work) != resize:
        raise SettingError(
            f"--resize: {work} was begun {with_resize(resize_of(work))}, now it is {resize or 'not given'}; give the "
            "same command as then, choose another --version, or remove that folder"
        )
    if work.exists() and begun != text:
        print(f"dcjax: {work} was begun with other images or shards; starting anew", flush=True)
    try:
        if work.exists() and begun != text:
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
        replace_text(work / PLAN_FILE, text)
    except OSError as error:
        raise SettingError(f"--data_dir: {work} cannot be written to ({error.strerror}); {AGAIN}") from error


def resize_of(folder: pathlib.Path) -> int | None:
    """The `resize` of a finished or an interrupted preparation."""
    for file in (METADATA_FILE, PLAN_FILE):
        try:
            return whole(read_json(folder / file, MAX_PLAN_BYTES).get(RESIZE_KEY))
        except SettingError:  # the set was stored without a resize, or by another program
            continue
    return None


def with_resize(resize: int | None) -> str:
    return f"with --resize={resize}" if resize else "without --resize"


def main(argv: Sequence[str]) -> None:
    """Parses the command line and prepares."""
    parser = cli.Parser(prog="dcjax prepare", description=__doc__ or "")
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
