"""A lock on a file, which one process holds and which ends with this process, however it ends."""

import fcntl
import pathlib
import time
from typing import IO

from dcjax.runtime.errors import SettingError


class HeldLockError(SettingError):
    """Another process holds the lock."""


def take_lock(path: pathlib.Path, *, held: str, remedy: str, seconds: float = 0.0) -> IO[str]:
    """Locks a file, which is made if it is missing; closing what is returned gives the lock back.

    On a file system without locks, every process gets one, and a line says so.

    Args:
      path: the file.
      held: the words for "another process holds it".
      remedy: what to do then.
      seconds: how long to wait for a lock, after a line that says so: the process before may be about to end.

    Raises:
      HeldLockError: another process holds the lock.
      OSError: the file cannot be made.
    """
    lock = path.open("w")
    patience = time.monotonic() + seconds
    waits = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError as error:
            if time.monotonic() >= patience:
                lock.close()
                raise HeldLockError(f"{held}; {remedy}") from error
            if not waits:
                print(f"dcjax: {held}; waiting up to {seconds:g} seconds for its end", flush=True)
            waits = True
            time.sleep(min(0.2, seconds))
        except OSError as error:
            print(
                f"dcjax: {path.parent} has no locks ({error.strerror}): see to it that one process uses it", flush=True
            )
            return lock
