"""Feeds damaged and hostile files of every format to the readers of the package.

    python tests/torture/fuzz.py --cases=10000 --seed=0

Each case takes a whole file, damages it, and reads it as the package would. A reader may return, or raise a
`ValueError` of one printable line that names the file; everything else counts as bad: another error, the end of the
process, more than `SECONDS` of work or `PATIENCE` in all, more than `MEMORY` bytes beyond what the worker took at its
start, or code of the file that ran. Prints a JSON summary; the exit status is 1 if anything was bad. A case depends on
the seed and its number alone.
"""

import argparse
import collections
import contextlib
import ctypes
import faulthandler
import json
import logging
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from mutations import damaged
from whole_files import CHECKPOINT_FILES, RUN_FILES, seed_files

from dcjax.collapse.monitor import warnings_of
from dcjax.collapse.reading import open_matrices, read_labels
from dcjax.collapse.reading.matrix import UnreadableError
from dcjax.collapse.weights import alignments, matrix_reports
from dcjax.config import read_config
from dcjax.data.damage import TolerantSource
from dcjax.data.decode import DamagedImageError, decode
from dcjax.data.prepare import resize_of
from dcjax.data.sources.folder import FolderSource
from dcjax.evaluation.table import losses_line
from dcjax.report.page import page
from dcjax.report.record import read_run
from dcjax.runtime.errors import SettingError
from dcjax.runtime.reading import read_json
from dcjax.training.kept_lines import KeptLines
from dcjax.training.manifest import MANIFEST_FILE, MAX_CONFIG_BYTES, adopt, check_step
from dcjax.training.metrics import read_lines
from dcjax.verify import as_text

SECONDS = 5  # of a processor
PATIENCE = 60  # seconds; a busy machine takes long for little
MEMORY = 2**31
READ_BYTES = 2**26  # of a matrix that states more, the fuzzer reads no more than this
IMAGES = ("jpg", "jpeg", "png", "bmp", "webp")
TABLES = ("npy", "npz", "safetensors", "csv", "parquet", "txt")
GROUPS = (RUN_FILES, tuple(CHECKPOINT_FILES))
PAGES = 16  # of so many files of runs, one becomes a page
STEP = "4"  # the folder of the checkpoint
LIBC, M_PERTURB = ctypes.CDLL(None), -6

# Readers. Each gets the damaged file and a folder of its own.


def read_image(path: pathlib.Path) -> None:
    images = []
    for byte in (85, 170):  # glibc fills new memory with it, so that pixels that were never written differ
        if hasattr(LIBC, "mallopt"):
            LIBC.mallopt(M_PERTURB, byte)
        images.append(_decoded(path))
    if isinstance(images[0], DamagedImageError):
        raise images[0]
    assert images[0].dtype == np.uint8
    np.testing.assert_array_equal(*images)


def _decoded(path: pathlib.Path) -> np.ndarray | DamagedImageError:
    """The image, as a folder that tolerates damage has it, too."""
    try:
        image = decode(path.read_bytes(), str(path))
    except DamagedImageError as error:
        image = error
    folder = TolerantSource(FolderSource(str(path.parent), "train"), 0.5)
    with contextlib.suppress(ValueError):  # of a folder of one damaged image, too many are damaged
        np.testing.assert_array_equal(folder[0][0], image)
    return image


def read_matrices(path: pathlib.Path) -> None:
    for matrix in open_matrices(path, ndim=(1, 2, 4)):
        if len(matrix.shape) == 2:
            done = 0
            for block in matrix.blocks(max(1, 2**20 // max(1, matrix.columns))):
                done += block.nbytes
                if done > READ_BYTES:
                    break
        else:
            matrix.array(READ_BYTES)


def read_weights(path: pathlib.Path) -> None:
    """What `dcjax collapse --weights` computes, of matrices that the fuzzer has time for."""
    arrays = {matrix.name: matrix.array(2**16) for matrix in open_matrices(path, ndim=(2, 4))}
    try:
        matrix_reports(arrays)
        alignments(arrays)
    except ValueError as error:  # the library's, which knows no file
        raise UnreadableError(path, str(error)) from error


def read_own_log(path: pathlib.Path) -> None:
    """Reads a log as the run does that resumes or is probed."""
    for row in read_lines(path):
        warnings_of([row] if "monitor" in row else [], {})
    for line in KeptLines(path, {True: 2**53, False: 2**53}).lines():
        assert line.endswith(b"\n")
    assert losses_line(path.parent).isprintable()


def read_report(path: pathlib.Path) -> None:
    run = read_run(str(path.parent))
    for note in run.notes:
        assert note.isprintable(), note
    if zlib.crc32(path.read_bytes()) % PAGES == 0:  # a page takes as long as all other readers of many cases
        assert page([run]).isascii()


def read_plan(path: pathlib.Path) -> None:
    assert isinstance(resize_of(path.parent), int | None)


def read_step(path: pathlib.Path) -> None:
    """What `dcjax verify` says of a checkpoint, and with --adopt of one without a manifest."""
    folder = next(parent for parent in path.parents if parent.name == STEP)
    check = check_step(folder)
    lines = as_text([check]).split("\n")
    assert len(lines) == 2, lines
    assert all(line.isprintable() for line in lines), lines
    if path.name != MANIFEST_FILE:
        (folder / MANIFEST_FILE).unlink()
        adopt(folder)
        assert not check_step(folder).problem
        if path.name == "metadata":
            read_json(path, MAX_CONFIG_BYTES)
    elif check.problem:
        raise SettingError(f"{path}: {check.problem}")


def readers_of(kind: str, path: pathlib.Path) -> tuple[Callable[[pathlib.Path], None], ...]:
    if kind in IMAGES:
        return (read_image,)
    if kind in TABLES:
        return (read_labels,) if path.suffix == ".txt" else (read_labels, read_matrices, read_weights)
    if kind in CHECKPOINT_FILES:
        return (read_step,)
    own = {"config.json": lambda path: read_config(path.parent), "plan.json": read_plan}
    return (own.get(kind, read_own_log if kind.endswith(".jsonl") else read_report), read_report)


# Cases.


class Fuzzer:
    """Makes and reads cases in a folder. `run` returns the outcome of one: its format, and a kind of outcome."""

    def __init__(self, folder: pathlib.Path, seed: int):
        self.folder, self.seed = folder, seed
        self.marker = folder / "marker"
        self.files = seed_files(self.marker)
        self.kinds = sorted(self.files)

    def make(self, number: int) -> tuple[str, pathlib.Path]:
        """Writes the file of a case, and the whole files of a run that belong to it."""
        draw = random.Random(f"{self.seed} {number}")
        kind = self.kinds[number % len(self.kinds)]
        data = draw.choice(self.files[kind])
        other = draw.choice(self.files[draw.choice(self.kinds) if draw.random() < 0.5 else kind])
        data = damaged(draw, data, other) if draw.random() < 0.97 else other
        suffix = kind if draw.random() < 0.9 else draw.choice(IMAGES if kind in IMAGES else TABLES)
        return kind, self.write(kind, f"case.{suffix}", data)

    def write(self, kind: str, name: str, data: bytes) -> pathlib.Path:
        """Writes a file alone, or a file of a run or a checkpoint beside whole ones."""
        folder = self.folder / f"case{os.getpid()}"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        group = next((group for group in GROUPS if kind in group), ())
        for other in group:
            (folder / other).parent.mkdir(parents=True, exist_ok=True)
            (folder / other).write_bytes(self.files[other][0])
        path = folder / (kind if group else name)
        path.write_bytes(data)
        return path

    def run(self, number: int) -> tuple[str, str]:
        kind, path = self.make(number)
        found = {outcome(reader, path) for reader in readers_of(kind, path)}
        found = next(iter(found - {"read", "refused"}), "read" if "read" in found else "refused")
        if self.marker.exists():
            self.marker.unlink()
            found = "code ran"
        return kind, found


def outcome(reader: Callable[[pathlib.Path], None], path: pathlib.Path) -> str:
    """What became of a file: "read", "refused", or a description of what is bad."""
    try:
        reader(path)
    except ValueError as error:
        return "refused" if fits(error, path) else f"bad message: {error!r}"
    except Exception as error:
        return f"error: {error!r} in {traceback.format_exc()[-300:]}"
    return "read"


def fits(error: ValueError, path: pathlib.Path) -> bool:
    """Whether an error is one printable line that names the file or, of a run, its folder."""
    text = str(error)
    known = path.name in RUN_FILES or STEP in path.parts
    named = path.name in text or (known and str(path.parents[path.name == "metadata"]) in text)
    return type(error).__name__ in ALLOWED and text.isprintable() and len(text) < 2000 and named


ALLOWED = ("ValueError", "SettingError", "DamagedImageError", "UnfitFileError", "UnreadableError")


def memory() -> int:
    """The most bytes that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(connection, folder: str, seed: int) -> None:
    """A worker: reads a number, runs its case, and sends the outcome with the memory taken since the start."""
    faulthandler.enable()
    logging.disable()
    errors = os.open(os.path.join(folder, "stderr"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)  # of C libraries
    os.dup2(errors, 2)
    fuzzer = Fuzzer(pathlib.Path(folder), seed)
    base, pages = memory(), int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    connection.send(base)
    while (number := connection.recv()) is not None:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends the process, also in the middle of native code
        outcome = fuzzer.run(number)
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send((*outcome, memory() - base))


class Worker:
    """A worker process; a new one takes its place when it dies."""

    def __init__(self, folder: str, seed: int):
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        self.connection = ours
        self.process = multiprocessing.get_context("spawn").Process(
            target=work, args=(theirs, folder, seed), daemon=True
        )
        self.process.start()
        theirs.close()
        self.connection.recv()

    def run(self, number: int) -> tuple[str, str, int] | None:
        """The outcome of a case; None if the worker died or hung."""
        self.connection.send(number)
        with contextlib.suppress(EOFError, ConnectionError):
            if self.connection.poll(PATIENCE):
                return self.connection.recv()
        return None

    def close(self) -> None:
        self.process.kill()
        self.process.join()


def outcomes(cases: Iterator[int], seed: int, folder: str) -> Iterator[tuple[int, str, str, int]]:
    """Number, format, outcome and memory of every case."""
    worker = Worker(folder, seed)
    try:
        for number in cases:
            found = worker.run(number)
            if found is None:
                worker.process.join(1)  # one that has died
                hung = worker.process.exitcode in (None, -signal.SIGPROF)
                worker.close()
                kinds = sorted(seed_files(pathlib.Path(folder, "unused")))
                found = kinds[number % len(kinds)], "hang" if hung else f"crash: {worker.process.exitcode}", 0
                worker = Worker(folder, seed)
            yield number, *found
    finally:
        worker.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case, to repeat one")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    began, peak = time.monotonic(), 0
    by_format: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    bad: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, kind, found, used in outcomes(range(flags.first, flags.first + flags.cases), flags.seed, folder):
            by_format[kind][found.partition(":")[0]] += 1
            peak = max(peak, used)
            if found not in ("read", "refused"):
                bad.append({"case": number, "format": kind, "outcome": found[:600]})
    total = sum(by_format.values(), collections.Counter())
    good = {"read", "refused"}
    summary = {
        "cases": {kind: dict(counts) for kind, counts in sorted(by_format.items())},
        **{name: total[name] for name in ("read", "refused", "crash", "hang", "code ran")},
        "other errors": sum(count for name, count in total.items() if name not in {*good, "crash", "hang", "code ran"}),
        "peak memory of a worker above its start, MB": round(peak / 1e6),
        "seconds": round(time.monotonic() - began, 1),
        "bad": bad[:50],
    }
    print(json.dumps(summary, indent=1))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
