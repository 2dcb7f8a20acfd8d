"""Files that are whole or absent: they are written under another name first, then renamed."""

import contextlib
import errno
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dcjax.runtime.errors import SettingError


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the name under which the body writes a file, which then becomes `path`.

    An interruption or a failure leaves the earlier file as it was; after a failure, nothing else is left behind.

    Raises:
      OSError: the file cannot be written, e.g. because the disk is full.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # without it, a power cut could leave an empty file under the final name
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def replace_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file as `replacing` does."""
    with replacing(path) as partial:
        partial.write_text(text)


def replace_npz(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    """Writes an .npz file as `replacing` does."""
    with replacing(path) as partial, partial.open("wb") as file:  # NumPy would add .npz to a file name
        np.savez(file, **arrays)


@contextlib.contextmanager
def refusing(path: str | os.PathLike[str], flag: str = "", remedy: str = "name another file") -> Iterator[None]:
    """Raises `SettingError` if the body cannot write the file or folder `path`, which `flag` names."""
    try:
        yield
    except OSError as error:
        named = f"{flag} {path}" if flag else path
        raise SettingError(f"{named} cannot be written ({reason_of(error)}); {remedy}") from error


@contextlib.contextmanager
def forgiving(path: pathlib.Path, remedy: str) -> Iterator[None]:
    """Prints one line if the body cannot write the file `path`, for files without which a run can go on."""
    try:
        yield
    except OSError as error:
        warn_of(path, reason_of(error), remedy)


def warn_of(path: pathlib.Path, reason: str, remedy: str) -> None:
    """Prints one line on stderr about a file that cannot be written."""
    with contextlib.suppress(OSError):  # stderr itself may go to a file on the full disk
        line = f"dcjax: {path.name} cannot be written ({reason}); {remedy}"
        print(line, file=sys.stderr, flush=True)


def reason_of(error: BaseException) -> str:
    """The system's words for an error or for one of its causes, such as "No space left on device", or its own words."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())  # a library may put the system's words into its own
    numbers = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EACCES)
    known = [os.strerror(number) for number in numbers if os.strerror(number).lower() in text.lower()]
    return known[0] if known else text[:200] or type(error).__name__


class Screen:
    """stdout or stderr as a file that takes everything: it may itself lie on a full disk.

    Args:
      stream: returns the stream, at each use.

    Attributes:
      error: the last error of the stream; None if it has had none.
    """

    def __init__(self, stream: Callable[[], Any]):
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> None:
        try:
            self._stream().write(text)
        except OSError as error:
            self.error = error

    def flush(self) -> None:
        try:
            self._stream().flush()
        except OSError as error:
            self.error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream(), name)


@contextlib.contextmanager
def forgiving_stdout() -> Iterator[None]:
    """Lets a long command go on where its output goes to a file that can no longer be written."""
    stream = sys.stdout
    screen = Screen(lambda: stream)
    file: Any = screen
    with contextlib.redirect_stdout(file):
        yield
    screen.flush()
    if screen.error:
        with contextlib.suppress(OSError):
            reason = reason_of(screen.error)
            print(f"dcjax: some of the output is lost ({reason}); the run's folder has its results", file=sys.stderr)
        with open(os.devnull, "w") as nothing:  # or else Python would fail in the same way when it ends
            os.dup2(nothing.fileno(), stream.fileno())
