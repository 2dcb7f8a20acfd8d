"""The manifest of a checkpoint: size and hash of every file, by which damage is found before anything is restored.

A manifest detects what disks, copies and interruptions do. It does not prove who wrote a checkpoint. This module loads
no JAX.
"""

import concurrent.futures
import dataclasses
import errno
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import stat
import time
from collections.abc import Iterator
from typing import Any

from dcjax.runtime.errors import SettingError, printable
from dcjax.runtime.files import reason_of, replacing
from dcjax.runtime.reading import UnfitFileError, parse_json, read_file, read_json

FOLDER = "checkpoints"  # of a run
DAMAGED = "damaged"  # in that folder
MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 2**26  # 300,000 files
MAX_CONFIG_BYTES = 2**16
NO_MANIFEST = f"it has no {MANIFEST_FILE}"
PACKAGES = ("dcjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy")
READERS = 4  # files that are hashed at a time
RETRY_SECONDS = (0.2,)  # after which files that could not be read are tried again
EIO_SECONDS = (0.2, 1.0, 4.0)  # the same after EIO, which is a bad disk, or a network disk that was too slow
MAX_NAME = 4096  # characters of the name of a file
MAX_VERSIONS, MAX_VERSION = 100, 100  # packages in a manifest; characters of the name and of the version of one
# A file with one of these is damaged or not there. Any other error, such as a stale handle of a network disk, missing
# rights or too many open files, tells nothing about the file.
LOST = (errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO)
_ADDRESS = re.compile("(^|/)[a-z0-9]{2,5}:/")  # gs://..., as a path has it


@dataclasses.dataclass(frozen=True)
class Check:
    """What was found in the folder of a step.

    Attributes:
      step: the step that the folder is named after.
      problem: what is wrong with it, in one printable line; empty if it is whole.
      files: files that the manifest names.
      size: their bytes.
      config: the hash of the run's config, hexadecimal.
      versions: the packages that wrote the checkpoint.
      unreadable: files could not be read, even when they were tried again, and no damage was found in the others: the
        step may well be whole, and should stay in its place.
      input_output_error: the problem is an EIO.
    """

    step: int
    problem: str
    files: int = 0
    size: int = 0
    config: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    unreadable: bool = False
    input_output_error: bool = False


def write_manifest(folder: pathlib.Path, *, step: int, config: dict[str, Any]) -> None:
    """Hashes the files of a complete checkpoint, writes their manifest beside them, and waits until all are on disk.

    Args:
      folder: the folder of the step.
      step: optimiser steps taken.
      config: the run's config as JSON values.

    Raises:
      OSError: a file cannot be read, or the manifest cannot be written.
    """
    names = sorted(_files(folder))
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        entries = dict(zip(names, pool.map(lambda name: _entry(folder / name, sync=True), names), strict=True))
    content = {
        "step": step,
        "config_sha256": hashlib.sha256(_canonical(config)).hexdigest(),
        "versions": _versions(),
        "files": entries,
    }
    record = {"manifest": content, "sha256": hashlib.sha256(_canonical(content)).hexdigest()}
    with replacing(folder / MANIFEST_FILE) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    for inner in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        sync_folder(inner)


def check_step(folder: pathlib.Path) -> Check:
    """Compares every file of a step with its manifest; files that the manifest does not name are not looked at."""
    found, tries = _check(folder), 0
    while tries < len(waits := EIO_SECONDS if found.input_output_error else RETRY_SECONDS if found.unreadable else ()):
        time.sleep(waits[tries])
        found, tries = _check(folder), tries + 1
    return found


def step_folders(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The folders of a run's checkpoints, by ascending step.

    Raises:
      SettingError: `workdir` is no run with checkpoints, or they cannot be listed.
    """
    folder = workdir / FOLDER
    try:
        if not workdir.is_dir():
            if _ADDRESS.search(str(workdir)):
                raise SettingError(printable(f"{workdir} is an address; name a run in a folder that is mounted here"))
            raise SettingError(printable(f"{workdir} is no folder; name the folder of a run of dcjax main"))
        if not folder.is_dir():
            raise SettingError(printable(f"{workdir} holds no checkpoints; name the folder of a run of dcjax main"))
        return sorted((path for path in folder.iterdir() if is_step(path)), key=lambda path: int(path.name))
    except OSError as error:
        raise SettingError(printable(f"{folder} cannot be read ({reason_of(error)})")) from error


def some_step_folders(workdir: pathlib.Path) -> list[pathlib.Path]:
    """`step_folders`; also raises `SettingError` where there is none."""
    folders = step_folders(workdir)
    if not folders:
        raise no_checkpoint(workdir)
    return folders


def no_checkpoint(workdir: pathlib.Path) -> SettingError:
    """The error for a run without a checkpoint."""
    return SettingError(printable(f"{workdir} holds no complete checkpoint; train the run until its first"))


def check_steps(workdir: pathlib.Path) -> list[Check]:
    """Checks every step of a run, by ascending step; those that a training run removes meanwhile are left out."""
    checks = [(folder, check_step(folder)) for folder in step_folders(workdir)]
    return [check for folder, check in checks if not check.problem or check.unreadable or os.path.isdir(folder)]


def is_step(path: pathlib.Path) -> bool:
    """Whether a path is the folder of a step by its name.

    Raises:
      OSError: the folder above may be listed, but no more.
    """
    return path.name.isascii() and path.name.isdecimal() and len(path.name) < 20 and path.is_dir()


def run_and_step(path: str | os.PathLike[str]) -> tuple[pathlib.Path, int | None]:
    """The absolute path of a run's folder and None, or, for one of the folders in its `checkpoints/`, also its step."""
    found = pathlib.Path(path).expanduser().absolute()
    if found.parent.name == FOLDER and found.name.isdecimal() and not (found / FOLDER).is_dir():
        return found.parent.parent, int(found.name)
    return found, None


def holds_checkpoint(workdir: str | os.PathLike[str]) -> bool:
    """Whether a run's folder holds a checkpoint; creates nothing."""
    folder = pathlib.Path(workdir).expanduser() / FOLDER
    return folder.is_dir() and any(map(is_step, folder.iterdir()))


def adopt(folder: pathlib.Path) -> None:
    """Writes the manifest of a step that has none, such as one of an older version, for its files as they are.

    Raises:
      SettingError: the step holds no state and config, or cannot be written to.
    """
    try:
        config = read_json(folder / "config" / "metadata", MAX_CONFIG_BYTES)
        if not (folder / "state").is_dir():
            raise ValueError("it holds no state and config")
        write_manifest(folder, step=int(folder.name), config=config)
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise SettingError(printable(f"checkpoint {folder} cannot get a manifest ({reason})")) from error


def set_aside(folder: pathlib.Path) -> pathlib.Path:
    """Moves a damaged step into the folder `damaged` beside it, and returns where it is now."""
    home = folder.parent / DAMAGED
    home.mkdir(exist_ok=True)
    target, count = home / folder.name, 1
    while target.exists():
        count += 1
        target = home / f"{folder.name}-{count}"
    os.rename(folder, target)
    sync_folder(folder.parent)
    return target


def sync_folder(folder: pathlib.Path) -> None:
    """Waits until the entries of a folder are on disk, where the file system can do that."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems refuse it for folders
        pass
    finally:
        os.close(handle)


def remove_tree(folder: pathlib.Path) -> None:
    """Removes a folder as far as that is possible."""
    shutil.rmtree(folder, ignore_errors=True)


class _FoundError(Exception):
    """A problem of a checkpoint, in words; `unreadable` and `input_output_error` as in `Check`."""

    def __init__(self, problem: str, *, unreadable: bool = False, input_output_error: bool = False):
        super().__init__(printable(problem))
        self.unreadable, self.input_output_error = unreadable, input_output_error

    def of(self, check: Check, problem: str = "") -> Check:
        """A check with this problem, in other words if they are given."""
        return dataclasses.replace(
            check,
            problem=problem or str(self),
            unreadable=self.unreadable,
            input_output_error=self.input_output_error,
        )


def _check(folder: pathlib.Path) -> Check:
    """One try of `check_step`."""
    step = int(folder.name)
    try:
        content = _read_manifest(folder)
    except _FoundError as error:
        return error.of(Check(step, ""))
    files = content["files"]
    size = sum(entry["size"] for entry in files.values())
    found = Check(step, "", len(files), size, content["config_sha256"], content["versions"])
    if content["step"] != step:
        return dataclasses.replace(found, problem=f"its manifest is of step {content['step']}")
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        bad = [problem for problem in pool.map(lambda item: _problem(folder, *item), files.items()) if problem]
    if not bad:
        return found
    bad.sort(key=lambda problem: problem.unreadable)  # damage first
    more = f", and {len(bad) - 1} more" if bad[1:] else ""
    return bad[0].of(found, f"{bad[0]}{more}")


def _files(folder: pathlib.Path) -> Iterator[str]:
    own = (folder / MANIFEST_FILE, folder / f"{MANIFEST_FILE}.partial")  # the second, if a process was killed
    for path in folder.rglob("*"):
        if path.is_file() and path not in own:
            yield path.relative_to(folder).as_posix()


def _entry(path: pathlib.Path, *, sync: bool = False) -> dict[str, Any]:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return {"size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """The content of a step's manifest, in which every value is of its type and in its range."""
    try:
        data = read_file(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise _FoundError(NO_MANIFEST) from None
    except OSError as error:
        raise _unread(f"its {MANIFEST_FILE}", error) from error
    except UnfitFileError as error:
        raise _no_manifest(str(error)) from error
    try:
        record = parse_json(data.decode())
    except ValueError as error:
        raise _no_manifest(str(error)) from error
    content = record.get("manifest") if isinstance(record, dict) else None
    if not isinstance(content, dict):
        raise _no_manifest("it holds none")
    if hashlib.sha256(_canonical(content)).hexdigest() != record.get("sha256"):
        raise _FoundError(f"its {MANIFEST_FILE} has changed")
    for key, fits in _FIELDS.items():
        if key not in content or not fits(content[key]):
            raise _no_manifest(f"its {key} is missing or of another form")
    return content


def _no_manifest(reason: str) -> _FoundError:
    return _FoundError(f"its {MANIFEST_FILE} is no manifest ({printable(reason, 200)})")


def _unread(name: str, error: OSError) -> _FoundError:
    problem = f"{printable(name, 200)} cannot be read ({reason_of(error)})"
    return _FoundError(problem, unreadable=error.errno not in LOST, input_output_error=error.errno == errno.EIO)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_name(value: str) -> bool:
    """Whether a name is of a file inside of the folder."""
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    parts = value.split("/")
    return len(value) <= MAX_NAME and "\0" not in value and not {"", ".", ".."} & set(parts)


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and _is_size(value.get("size")) and _is_hash(value.get("sha256"))


def _are_files(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_name(name) and _is_entry(entry) for name, entry in value.items())


def _are_versions(value: Any) -> bool:
    if not isinstance(value, dict) or len(value) > MAX_VERSIONS:
        return False
    return all(isinstance(text, str) and len(text) <= MAX_VERSION for pair in value.items() for text in pair)


_FIELDS = {"step": _is_size, "config_sha256": _is_hash, "versions": _are_versions, "files": _are_files}


def _problem(folder: pathlib.Path, name: str, entry: dict[str, Any]) -> _FoundError | None:
    """What is wrong with a file of a step; None if nothing is."""
    path, shown = folder / name, printable(name, 200)
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            return _FoundError(f"{shown} is no file")
        if found.st_size != entry["size"]:
            return _FoundError(f"{shown} has {found.st_size} bytes instead of {entry['size']}")
        changed = _entry(path)["sha256"] != entry["sha256"]
    except (FileNotFoundError, NotADirectoryError):
        return _FoundError(f"{shown} is missing")
    except OSError as error:
        return _unread(name, error)
    return _FoundError(f"{shown} has changed") if changed else None


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
            found[name] = "unknown"
    return found
