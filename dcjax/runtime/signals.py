"""SIGINT and SIGTERM end a command at once, also while XLA compiles, unless a training loop has steps to save."""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from dcjax.runtime.cli import leave
from dcjax.runtime.errors import StoppedRunError

NUMBERS = (signal.SIGINT, signal.SIGTERM)

# Takes the number of a signal, and says whether a handler deals with it; as `answer_signals` set it.
_answers: Callable[[int], bool] | None = None
LOST = "the steps since the last checkpoint are lost, and the same command goes on from there"
_listens = False  # whether a thread of `end_on_signals` does


@contextlib.contextmanager
def end_on_signals(note: str) -> Iterator[None]:
    """Ends the process at SIGINT with status 130 and at SIGTERM with 143, unless `answer_signals` says otherwise.

    Python runs its handlers on the main thread and between two of its instructions, and a compilation is one that may
    take minutes. This context has a thread that gets the signals' numbers at once. Outside the main thread, where
    Python allows no handlers, it does nothing.

    Args:
      note: the end of the line that is printed, after "ended by SIGTERM; ".
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _listens
    near, far = socket.socketpair()
    far.setblocking(False)
    handlers = {number: signal.signal(number, _nothing) for number in NUMBERS}  # only a handler of Python's is heard
    wakeup = signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(near, note), name="signals", daemon=True).start()
    _listens = True
    try:
        yield
    except StoppedRunError:
        handlers = dict.fromkeys(NUMBERS, signal.SIG_IGN)  # the process is about to end: another signal changes nothing
        raise
    finally:
        _listens = False
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        far.close()  # which ends the thread


@contextlib.contextmanager
def answer_signals(answers: Callable[[int], bool]) -> Iterator[None]:
    """While the context lasts, `answers` decides for each signal whether its handler deals with it.

    Args:
      answers: a function of the signal's number, which is called from another thread; if it returns false, the process
        ends at once.
    """
    global _answers
    before, _answers = _answers, answers
    try:
        yield
    finally:
        _answers = before


def listens() -> bool:
    """Whether the program is inside of `end_on_signals`."""
    return _listens


def _listen(near: socket.socket, note: str) -> None:
    answered = False
    with near:
        while numbers := near.recv(64):
            for number in numbers:
                if number in NUMBERS and not (_answers and _answers(number)):
                    # In the loop, the line of the progress bar is ended first.
                    name, before = signal.Signals(number).name, (lambda: "\n") if _answers else None
                    if answered:  # the loop wanted to save, and is not waited for
                        leave(128 + number, f"ended by a second {name}; {LOST}", before=before)
                    leave(128 + number, f"ended by {name}; {note}", before=before)
                answered |= number in NUMBERS


def _nothing(number: int, _frame: Any) -> None:
    """The handler of the main thread, which leaves the signal to the thread of `end_on_signals`."""
