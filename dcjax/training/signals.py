"""SIGINT and SIGTERM stop a run between two steps, with a checkpoint."""

import os
import signal
import sys
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Turns SIGINT and SIGTERM into a request that the loop sees between two steps.

    A second SIGINT raises KeyboardInterrupt, as usual. With several processes, one of them needs the signal: JAX's
    preemption service tells the others, and all stop at the same step.
    """

    def __init__(self) -> None:
        self._requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if jax.process_count() == 1:
            handlers = {signal.SIGINT: self._request, signal.SIGTERM: self._request}
        else:
            handlers = {signal.SIGINT: self._pass_on}  # the preemption service handles SIGTERM
        try:
            self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        except ValueError:  # outside the main thread Python refuses handlers; the caller handles signals there
            self._before = {}
        return self

    def reached(self, step: int) -> bool:
        """Whether to stop now; every process must ask at every step.

        Args:
          step: optimiser steps taken.
        """
        return self._requested or multihost_utils.reached_preemption_sync_point(step)

    def _request(self, number: int, _frame: Any) -> None:
        self._requested = True
        self._announce()

    def _pass_on(self, number: int, _frame: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        self._announce()

    def _announce(self) -> None:
        print("dcjax: stopping after this step, with a checkpoint", file=sys.stderr, flush=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before and jax.process_count() > 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # after the loop, the service would ignore the signal
