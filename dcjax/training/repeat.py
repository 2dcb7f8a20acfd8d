"""After a NaN or an infinity: restores the last good state and repeats the steps, so that the cause can be found."""

import contextlib
from collections.abc import Callable

import jax
from flax import linen as nn
from jax.sharding import Mesh

from dcjax.data import Augmentation, TrainLoader
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
    network: nn.Module,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    augmentation: Augmentation,
    image_size: int,
    seed: int,
    mesh: Mesh,
) -> NotFiniteError:
    """Repeats the steps since the last checkpoint up to that of the error, and names what was not finite first.

    All processes do so together: they read the same scalars, so they meet the error at the same step.

    Args:
      error: of one of the steps that were taken.
      state: the state after the last step that was taken; its memory is freed.
      initial_state: draws the state before the first step; it is jitted.
      train_step: the compiled step.
      checkpointer: the run's checkpoints.
      loader: the batches.
      phase: `Watchdog.phase`.
      stop: asked before every step; a signal ends the search.
      network, loss, augmentation, image_size, seed, mesh: as `make_train_step` takes them.

    Returns:
      The error with the cause. If anything fails on the way, the error with its own message and a note.
    """
    everywhere = replicated(mesh)
    try:
        template = abstract_state(state, everywhere)
        for leaf in jax.tree.leaves(state):
            leaf.delete()
        with phase("the restored checkpoint"):
            checkpointer.wait()  # one may be on its way to the disk
            good_step = checkpointer.whole_step_before(error.step)
            if good_step is not None:
                state = checkpointer.restore_state(good_step, template)
        if good_step is None:  # compiled, so in no phase
            state = jax.jit(initial_state, out_shardings=everywhere)()
        first = (good_step or 0) + 1
        if jax.process_index() == 0:
            steps = f"steps {first} to {error.step}" if first < error.step else f"step {first}"
            line = f"dcjax: {error.found}; repeating {steps} to find the first module that is not finite"
            say(line)
        loader.seek(first - 1)
        for step in range(first, error.step):
            if stop.reached():
                raise InterruptedError("a signal stopped it")
            with phase(f"the repeated step {step}"):
                state, _ = jax.block_until_ready(train_step(state, to_devices(next(loader), mesh)))
        return diagnose(
            error,
            network=network,
            loss=loss,
            augmentation=augmentation,
            image_size=image_size,
            seed=seed,
            mesh=mesh,
            train_step=train_step,
            state=state,
            batch=to_devices(next(loader), mesh),
            good_step=good_step,
        )
    except Exception as failure:  # of any kind: the error of the run itself is what its user has to see
        return error.explained(f"{error} (the search for the cause failed: {first_line(failure)[:NOTE_LENGTH]})")
