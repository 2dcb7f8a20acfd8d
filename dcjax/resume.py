"""Where a run begins: its folder, and its state from the last checkpoint or from the seed."""

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from dcjax.components import Components
from dcjax.config import check_same_run
from dcjax.program import make_schedule, run_lengths
from dcjax.runtime.errors import SettingError
from dcjax.runtime.mesh import replicated
from dcjax.schema import Config, flatten, from_keys
from dcjax.training.checkpoint import Checkpointer, abstract_state, check_free_space
from dcjax.training.manifest import holds_checkpoint
from dcjax.training.state import TrainState, init_state


@dataclasses.dataclass(frozen=True)
class Saved:
    """The part of a checkpoint that is not the train state.

    Attributes:
      step: optimiser steps taken.
      config: the run's config when the checkpoint was written, nested.
      unlogged: `StepMetrics.sums` at that step.
    """

    step: int
    config: dict[str, Any]
    unlogged: dict[str, float]


def start_or_resume(
    components: Components,
    optimizer: optax.GradientTransformation,
    checkpointer: Checkpointer,
    workdir: pathlib.Path,
    *,
    phase: Callable[[str], contextlib.AbstractContextManager[None]],
) -> tuple[TrainState, Saved | None]:
    """The first state: the last checkpoint's with the rest of this checkpoint, or one drawn from the seed with None.

    Args:
      components: the parts of the run.
      optimizer: its optimiser.
      checkpointer: its checkpoints.
      workdir: its folder.
      phase: `Watchdog.phase`, in which checkpoints are read.

    Raises:
      InterruptedRunError: a file cannot be read at this moment.
      SettingError: the checkpoint cannot be read or belongs to another config or data set, or the disk is too full.
    """
    config, everywhere = components.config, replicated(components.mesh)

    def initial_state() -> TrainState:
        return init_state(components.network, optimizer, seed=config.seed, image_size=config.data.image_size)

    shapes = jax.eval_shape(initial_state)
    with phase("the check of the checkpoints"):
        step = checkpointer.last_whole_step()
    if step is None:
        check_free_space(workdir, shapes, keep=config.checkpoint.keep)
        return jax.jit(initial_state, out_shardings=everywhere)(), None
    with phase("the restored checkpoint"):
        position, saved_config = checkpointer.restore_record(step)
    check_same_run(saved_config, config)
    if position.get("data") != components.train_source.fingerprint:
        raise SettingError(
            f"data.dir {config.data.dir or '(default)'} holds other images than the run in {workdir} was trained on; "
            "point it at the same images or use another --workdir"
        )
    with phase("the restored checkpoint"):
        state = checkpointer.restore_state(step, abstract_state(shapes, everywhere))
    return state, Saved(step, saved_config, position["unlogged"])


def check_length(saved: Saved, components: Components, schedule: optax.Schedule, *, extend: bool) -> None:
    """Refuses another length of a run if the learning rate would jump; with `extend`, prints the jump instead.

    The schedule depends on the length: a run that ended with a rate near zero resumes with a large one when its length
    is doubled. During the warm-up nothing jumps, and another length is accepted.

    Raises:
      SettingError: the rate of the next step differs and `extend` is not set, or the run is already longer.
    """
    images = len(components.train_source)
    before = from_keys(flatten(saved.config))
    lengths = [run_lengths(config, images)[0] for config in (before, components.config)]
    setting = "total_steps" if components.config.total_steps is not None else "total_epochs"
    if lengths[1] < saved.step:
        raise SettingError(
            f"{setting} gives {lengths[1]} steps, but the run has taken {saved.step}; give at least as many"
        )
    if lengths[1] == saved.step:  # nothing is left to train
        return
    rates = [float(np.asarray(rule(saved.step))) for rule in (make_schedule(before, images), schedule)]
    if rates[0] == rates[1]:
        return
    change = (
        f"another length ({lengths[0]} steps before, {lengths[1]} now) moves the learning rate of step "
        f"{saved.step + 1} from {rates[0]:.4g} to {rates[1]:.4g}"
    )
    if not extend:
        raise SettingError(
            f"{setting}: {change}; use the old value, another --workdir, or --extend to resume all the same"
        )
    if jax.process_index() == 0:
        print(f"dcjax: {change}", flush=True)


def check_kept(config: Config) -> None:
    """Raises `SettingError` if `checkpoint.keep_every_steps` names steps at which no checkpoint is written."""
    kept, every = config.checkpoint.keep_every_steps, config.checkpoint_every_steps
    if kept is not None and kept % every:
        near = max(kept // every, 1) * every
        raise SettingError(
            f"checkpoint.keep_every_steps must be a multiple of checkpoint_every_steps, which is {every}, e.g. {near}; "
            f"found {kept}"
        )


def open_workdir(workdir: str | os.PathLike[str], *, extend: bool) -> pathlib.Path:
    """The absolute path of the run's folder, which is created if it is missing.

    Raises:
      SettingError: the folder is an address, cannot be created or written to, or holds no run to extend.
    """
    if "://" in str(workdir):
        raise SettingError(f"--workdir must be a path that every host has mounted, found the address {workdir}")
    if extend and not holds_checkpoint(workdir):
        raise SettingError(
            f"--extend resumes a run, but --workdir {workdir} holds none; leave --extend out to begin one"
        )
    path = pathlib.Path(workdir).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        reason = error.strerror
        raise SettingError(f"--workdir {path} cannot be written to ({reason}); name another folder") from error
    return path
