"""SIGINT and SIGTERM stop a run between two steps, with a checkpoint."""

import contextlib
import os
import signal
import sys
import time
from typing import Any

import jax
import numpy as np

from dcjax.runtime.mesh import from_processes, told_to_stop
from dcjax.runtime.signals import answer_signals, listens

NOTICE_SECONDS = 2.0  # JAX's preemption service looks for a signal once a second, and tells the others


class StopRequest:
    """Turns SIGINT and SIGTERM into a request that the loop sees between two steps.

    A second SIGINT raises KeyboardInterrupt, as usual, or ends a command at once. With several processes, one of them
    needs the signal: JAX's preemption service tells the others, and all stop at the same step.

    Before its first step, a process has nothing to save. A command of one process (`end_on_signals`) is then ended at
    once, also during the first compilation; several processes stop together, before or after their first step.
    """

    def __init__(self) -> None:
        self._several = jax.process_count() > 1
        self._requested = False
        self._begun = self._finished = False
        self._interrupts = 0
        self._contexts = contextlib.ExitStack()

    def __enter__(self) -> "StopRequest":
        # The preemption service, which is not of Python, handles SIGTERM for several processes.
        handlers = {signal.SIGINT: self._pass_on if self._several else self._request}
        if not self._several:
            handlers[signal.SIGTERM] = self._request
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        except ValueError:  # outside the main thread Python refuses handlers; the caller handles signals there
            return self
        # SIGTERM as well with several processes: after the loop, the service would ignore the signal.
        for number, handler in before.items():
            self._contexts.callback(signal.signal, number, handler or signal.SIG_DFL)
        # Left before the handlers are, so that every signal is answered here or ends the command.
        self._contexts.enter_context(answer_signals(self._answers))
        return self

    def begin(self) -> None:
        """Notes that this process has taken a step, which a signal must not lose."""
        self._begun = True

    def finish(self) -> None:
        """Notes that nothing is left to save: from now on, a signal may end the process at once."""
        self._begun, self._finished = False, True

    def reached(self) -> bool:
        """Whether to stop now; every process must ask before every step."""
        return told_to_stop() if self._several else self._requested

    def loop_ended(self) -> None:
        """Notes that no step follows."""
        with contextlib.suppress(ValueError):  # outside the main thread, as in `__enter__`
            signal.signal(signal.SIGTERM, self._request)  # the preemption service's answer would come too late

    def came_late(self) -> bool:
        """Whether a signal came during the last step or after it.

        Every process must ask once, after all of them have called `loop_ended` and each has called `finish`.
        """
        if not self._several:
            return self._requested
        time.sleep(NOTICE_SECONDS)  # then the service knows of every signal from before `loop_ended`
        found = told_to_stop() or self._requested
        return bool(from_processes(np.array([found])).any())

    def _answers(self, number: int) -> bool:
        """Whether a handler here deals with a signal, in words of `answer_signals`."""
        self._interrupts += number == signal.SIGINT
        return self._interrupts < 2 and (self._begun or (self._several and not self._finished))

    def _request(self, number: int, _frame: Any) -> None:
        self._requested = True
        if self._begun or not listens():  # or else the process is ending at this moment
            self._announce(number)

    def _pass_on(self, number: int, _frame: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        self._announce(number)

    def _announce(self, number: int) -> None:
        with contextlib.suppress(OSError, ValueError):  # stderr may lie on a full disk
            # A line of its own, below the progress bar, which shows a step that the devices have left behind.
            print("\ndcjax: stopping after the steps under way, with a checkpoint", file=sys.stderr, flush=True)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        self._contexts.close()
