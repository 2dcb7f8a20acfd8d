"""Ends a run that hangs, with the stacks of all threads, so that whoever started it can start it again."""

import contextlib
import dataclasses
import faulthandler
import tempfile
import threading
import time
from collections.abc import Iterator

import jax

from dcjax.runtime.cli import leave

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: a failure that another try may not meet
TICK_SECONDS = 1.0


@dataclasses.dataclass(eq=False)
class _Phase:
    name: str
    began: float
    seconds: float = 0.0


class Watchdog:
    """Ends the process with status 75 if a phase takes longer than allowed; to be used as a context.

    A thread looks at the phases every second. A hang in native code that keeps Python's lock stops this thread too and
    is not noticed. Time in which the whole process stands still (SIGSTOP, a laptop that sleeps) does not count.

    Args:
      seconds: how long a phase may take; 0 for no limit.
    """

    def __init__(self, seconds: float):
        self._limit = seconds
        self._phases: set[_Phase] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._limit:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._limit:
            self._thread.join()

    @contextlib.contextmanager
    def phase(self, name: str, *, limited: bool = True) -> Iterator[None]:
        """Watches the time in a context; several may overlap, in several threads.

        Args:
          name: the phase in words, as the subject of "has taken more than".
          limited: false for a phase that may take any time, such as the first compilation.
        """
        if not (limited and self._limit):
            yield
            return
        phase = _Phase(name, time.monotonic())
        with self._lock:
            self._phases.add(phase)
        try:
            yield
        finally:
            with self._lock:
                self._phases.remove(phase)

    def _look(self) -> None:
        tick = min(TICK_SECONDS, self._limit / 4)
        last = time.monotonic()
        while not self._stop.wait(tick):
            now = time.monotonic()
            passed, last = min(now - last, 2 * tick), now  # more than that passes only where the process stands still
            with self._lock:
                for phase in self._phases:
                    phase.seconds += min(passed, now - phase.began)  # it may have begun since the last look
                late = [phase for phase in self._phases if phase.seconds > self._limit]
            if late:
                self._end(max(late, key=lambda phase: phase.seconds))

    def _end(self, phase: _Phase) -> None:
        this = f"process {jax.process_index()} of {jax.process_count()}: " if jax.process_count() > 1 else ""
        leave(
            EXIT_STATUS,
            f"{this}{phase.name} has taken more than {self._limit:g} seconds; the stacks of all threads are above. If "
            "it hung, the same command goes on from the last checkpoint; if it is merely slow, raise watchdog_seconds",
            before=_stacks,
        )


def _stacks() -> str:
    """The stacks of all threads, on lines below that of the progress bar."""
    with tempfile.TemporaryFile("w+") as file:  # `faulthandler` writes with Python's lock held, and a pipe may be full
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return f"\n{file.read()}"
