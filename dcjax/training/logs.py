"""Log files and screen of a run, whose failures end nothing: a full disk must not cost the training."""

import collections
import contextlib
import os
import pathlib
import struct
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c
from tqdm import tqdm

from dcjax.runtime.files import Screen, reason_of, replacing

EVENTS: Any = event_pb2  # a protocol buffer, whose attributes no type checker sees

MAX_WAITING = 16 * 2**20  # bytes of a log that wait in memory for room on the disk


class LogFile:
    """A file to which pieces are appended, each whole or not at all.

    A piece that cannot be written waits in memory and is tried again with the next one and at `close`. The first
    failure prints a line, and so does `close` if pieces are lost. Beyond `MAX_WAITING` bytes, new pieces are dropped.

    Args:
      path: the file; its folder is made if it is missing.
      unit: the name of a piece, for messages.
      start: gives the parts of the text that replaces the file before the first piece, which it may read from the file
        itself; None keeps the file as it is.
    """

    def __init__(self, path: pathlib.Path, *, unit: str, start: Callable[[], Iterable[bytes]] | None = None):
        self._path, self._unit, self._start = path, unit, start
        self._file: int | None = None
        self._end: int | None = None  # the file's size after its last whole piece
        self._waiting: collections.deque[bytes] = collections.deque()
        self._dropped, self._warned = 0, False
        self._write()

    def append(self, piece: bytes) -> None:
        """Writes a piece after those that wait."""
        if sum(map(len, self._waiting)) + len(piece) > MAX_WAITING:
            self._dropped += 1
        else:
            self._waiting.append(piece)
        self._write()

    def close(self) -> None:
        """Tries once more to write what waits, and closes the file."""
        error = self._write() or self._close()
        lost = self._dropped + len(self._waiting)
        if lost:
            reason = f" ({reason_of(error)})" if error else ""
            say(f"dcjax: {self._path.name} lacks {lost} {self._unit}(s) that could not be written{reason}")

    def _write(self) -> OSError | None:
        try:
            self._open()
            while self._waiting:
                self._put(self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            self._close()  # opened anew for the next try, since a file handle of a network disk may be stale
            if not self._warned:
                self._warned = True
                say(
                    f"dcjax: {self._path.name} cannot be written ({reason_of(error)}); the run goes on and tries again "
                    f"with each {self._unit}"
                )
            return error
        return None

    def _open(self) -> None:
        if self._file is not None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._start is not None:
            with replacing(self._path) as partial, partial.open("wb") as file:
                file.writelines(self._start())
            self._start = None
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        size = os.fstat(self._file).st_size
        if self._end is not None and size > self._end:  # a part of a piece, which could not be taken back at once
            os.ftruncate(self._file, self._end)
        else:
            self._end = size

    def _put(self, piece: bytes) -> None:
        assert self._file is not None
        assert self._end is not None
        try:
            written = 0
            while written < len(piece):  # a disk that becomes full takes a part
                written += os.write(self._file, piece[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(piece)

    def _close(self) -> OSError | None:
        file, self._file = self._file, None
        try:
            if file is not None:
                os.close(file)
        except OSError as error:  # a network disk may tell only now
            return error
        return None


class EventFile:
    """TensorBoard's events of a run, in a new file; TensorBoard hides earlier ones from `first_step` on.

    tensorboardX makes the events. Its own writer hands them to a thread through a bounded queue: a full disk ends the
    thread, and the run then waits for it for ever.

    Args:
      folder: the folder of the files of events.
      first_step: the first step of the new events.
    """

    def __init__(self, folder: pathlib.Path, first_step: int):
        name = f"events.out.tfevents.{int(time.time()):010d}.{os.uname().nodename}.{os.getpid()}"
        self._log = LogFile(folder / name, unit="event")
        self._add(EVENTS.Event(file_version="brain.Event:2"))
        start = EVENTS.SessionLog(status=EVENTS.SessionLog.START)
        self._add(EVENTS.Event(step=first_step, session_log=start))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Adds a point of a curve."""
        self._add(EVENTS.Event(step=step, summary=summary.scalar(name, value)))

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Adds an image `[h, w, 3]` of uint8."""
        self._add(EVENTS.Event(step=step, summary=summary.image(name, image, dataformats="HWC")))

    def add_text(self, name: str, text: str, step: int) -> None:
        """Adds a text."""
        self._add(EVENTS.Event(step=step, summary=summary.text(name, text)))

    def close(self) -> None:
        """Closes the file."""
        self._log.close()

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        data = event.SerializeToString()
        # A record of the TFRecord format: the length, its checksum, the data, their checksum.
        length = struct.pack("<Q", len(data))
        sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
        self._log.append(length + next(sums) + data + next(sums))


SCREEN = Screen(lambda: sys.stderr)


def say(line: str) -> None:
    """Prints a line on stderr, above the progress bar."""
    tqdm.write(line, file=SCREEN)
    SCREEN.flush()
