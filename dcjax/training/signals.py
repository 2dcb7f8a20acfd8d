"""SIGINT and SIGTERM stop a run between two steps, with a checkpoint."""

import contextlib
import os
import signal
import sys
from typing import Any

import jax
from jax.experimental import multihost_utils

from dcjax.runtime.signals import answer_signals, listens


class StopRequest:
    """Turns SIGINT and SIGTERM into a request that the loop sees between two steps.

    A second SIGINT raises KeyboardInterrupt, as usual, or ends a command at once. With several processes, one of them
    needs the signal: JAX's preemption service tells the others, and all stop at the same step.

    Before its first step, a process has nothing to save. A command of one process (`end_on_signals`) is then ended at
    once, also during the first compilation; several processes stop together after that step.
    """

    def __init__(self) -> None:
        self._requested = False
        self._begun = False
        self._interrupts = 0
        self._contexts = contextlib.ExitStack()

    def __enter__(self) -> "StopRequest":
        several = jax.process_count() > 1
        # The preemption service, which is not of Python, handles SIGTERM for several processes.
        handlers = {signal.SIGINT: self._pass_on if several else self._request}
        if not several:
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
        self._begun = False

    def reached(self, step: int) -> bool:
        """Whether to stop now; every process must ask at every step.

        Args:
          step: optimiser steps taken.
        """
        return self._requested or multihost_utils.reached_preemption_sync_point(step)

    def _answers(self, number: int) -> bool:
        """Whether a handler here deals with a signal, in words of `answer_signals`."""
        self._interrupts += number == signal.SIGINT
        return self._interrupts < 2 and (self._begun or jax.process_count() > 1)

    def _request(self, number: int, _frame: Any) -> None:
        self._requested = True
        if self._begun or not listens():  # or else the process is ending at this moment
            self._announce()

    def _pass_on(self, number: int, _frame: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        self._announce()

    def _announce(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # stderr may lie on a full disk
            print("dcjax: stopping after this step, with a checkpoint", file=sys.stderr, flush=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        self._contexts.close()
