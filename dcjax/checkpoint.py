"""Asynchronous Orbax checkpoints: train state, position and config, in a step folder that is whole or absent."""

import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp

from dcjax.errors import SettingError

FOLDER = "checkpoints"


class Checkpointer:
    """Saves and restores a run.

    A step is written under a temporary name and renamed when it is complete, so an interrupted write leaves the earlier
    checkpoints as they were and is not mistaken for one.

    Args:
      workdir: the run's folder; the checkpoints lie in `workdir/checkpoints/<step>`.
      keep: how many of the latest to keep.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 2):
        self._folder = (workdir / FOLDER).absolute()
        # What an interrupted write left behind is the manager's to clean up.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_names=("state", "position", "config"))

    def latest_step(self) -> int | None:
        """The last complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, *, state: Any, position: dict[str, Any], config: dict[str, Any]) -> None:
        """Starts writing a checkpoint; returns once the state is copied off the devices.

        Args:
          step: optimiser steps taken.
          state: the train state, a pytree of arrays.
          position: JSON values that fix the next batch.
          config: the run's config as JSON values.
        """
        if step == self.latest_step():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                position=ocp.args.JsonSave(position),
                config=ocp.args.JsonSave(config),
            ),
        )

    def restore_record(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The position and the config of a checkpoint."""
        args = ocp.args.Composite(position=ocp.args.JsonRestore(), config=ocp.args.JsonRestore())
        found = self._restore(step, args)
        return found["position"], found["config"]

    def restore_state(self, step: int, template: Any) -> Any:
        """The train state of a checkpoint.

        Args:
          step: which one.
          template: the state as `jax.ShapeDtypeStruct` with shardings: how it is laid out on the devices of this run.
        """
        return self._restore(step, ocp.args.Composite(state=ocp.args.StandardRestore(template)))["state"]

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.close()

    def _restore(self, step: int, args: ocp.args.Composite) -> Any:
        try:
            return self._manager.restore(step, args=args)
        except Exception as error:  # Orbax, TensorStore and JSON each raise their own kinds for a damaged file
            others = sorted(set(self._manager.all_steps()) - {step})
            remedy = f"remove it to resume from step {others[-1]}" if others else "remove it to start anew"
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise SettingError(f"checkpoint {self._folder / str(step)} cannot be read ({reason}); {remedy}") from error


def abstract_state(state_shapes: Any, sharding: jax.sharding.Sharding) -> Any:
    """The template of `restore_state`: shapes and dtypes with one sharding for all leaves."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state_shapes)


def check_free_space(workdir: pathlib.Path, state_shapes: Any) -> None:
    """Raises `ValueError` before the run where the disk has no room for two checkpoints."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state_shapes))
    free = shutil.disk_usage(workdir).free
    if free < 2 * size:
        raise SettingError(
            f"workdir {workdir} has {free / 1e6:.0f} MB free, two checkpoints need {2 * size / 1e6:.0f} MB"
        )
