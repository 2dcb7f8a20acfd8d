"""After a number that is not finite: goes back to the last good state, repeats the steps, and asks for the cause."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax

from dcjax.data import TrainLoader
from dcjax.runtime.errors import first_line
from dcjax.runtime.mesh import replicated, to_devices
from dcjax.training.checkpoint import Checkpointer, abstract_state
from dcjax.training.logs import say
from dcjax.training.metrics import NotFiniteError
from dcjax.training.not_finite import diagnose
from dcjax.training.signals import StopRequest
from dcjax.training.state import TrainState
from dcjax.training.step import TrainStep

NOTE_LENGTH = 200  # characters of another library's message


def explain(
    error: NotFiniteError,
    *,
    state: TrainState,
    initial_state: Callable[[], TrainState],
    train_step: TrainStep,
    checkpointer: Checkpointer,
    loader: TrainLoader,
    phase: Callable[..., contextlib.AbstractContextManager[None]],
    stop: StopRequest,
    taken: int,
    **parts: Any,
) -> NotFiniteError:
    """Repeats the steps since the last checkpoint up to that of the error, and names what was not finite first.

    All processes do so together: they read the same scalars, so they meet the error at the same step.

    Args:
      error: of one of the steps that were taken.
      state: the state after `taken` steps; its memory is given free.
      initial_state: draws the state before the first step; it is jitted.
      train_step: the compiled step.
      checkpointer: the run's checkpoints.
      loader: the batches.
      phase: `Watchdog.phase`.
      stop: asked before every step; a signal ends the search.
      taken: steps that were dispatched, so at least that of the error.
      **parts: the arguments of `diagnose` that are not found here.

    Returns:
      The error with the cause. If anything fails on the way, the error with its own message and a note.
    """
    everywhere = replicated(parts["mesh"])
    try:
        template = abstract_state(state, everywhere)
        for leaf in jax.tree.leaves(state):
            leaf.delete()
        with phase("the restored checkpoint"):
            checkpointer.wait()  # one may be on its way to the disk
            good_step = checkpointer.last_whole_step(before=error.step)
            if good_step is None:
                state = jax.jit(initial_state, out_shardings=everywhere)()
            else:
                state = checkpointer.restore_state(good_step, template)
        first = (good_step or 0) + 1
        if jax.process_index() == 0:
            steps = f"steps {first} to {error.step}" if first < error.step else f"step {first}"
            line = f"dcjax: {error.found}; repeating {steps} to find the first module that is not finite"
            say(line)
        loader.seek(first - 1)
        for step in range(first, error.step):
            if stop.reached(taken + step):  # the processes agree by a number that only grows
                raise InterruptedError("a signal stopped it")
            with phase(f"the repeated step {step}"):
                state, _ = jax.block_until_ready(train_step(state, to_devices(next(loader), parts["mesh"])))
        batch = to_devices(next(loader), parts["mesh"])
        return diagnose(error, train_step=train_step, state=state, batch=batch, good_step=good_step, **parts)
    except Exception as failure:  # of any kind: the error of the run itself is what its user has to see
        return error.explained(f"{error} (the search for the cause failed: {first_line(failure)[:NOTE_LENGTH]})")
