"""Asynchronous Orbax checkpoints: train state, position and config, in a step folder that is whole or absent."""

import os
import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp

from dcjax.runtime.errors import SettingError

FOLDER = "checkpoints"
KEEP = 2


class Checkpointer:
    """Saves and restores a run.

    A step is written under a temporary name and renamed when it is complete, so an interrupted write leaves the earlier
    checkpoints as they were and is not mistaken for one.

    Args:
      workdir: the run's folder; the checkpoints lie in `workdir/checkpoints/<step>`, the latest two of them.
      read_only: leave everything as it is, also what a run that is still going is writing.
    """

    def __init__(self, workdir: pathlib.Path, *, read_only: bool = False):
        self._folder = (workdir / FOLDER).absolute()
        # What an interrupted write left behind is the writer's to clean up.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else KEEP, cleanup_tmp_directories=not read_only, create=not read_only
        )
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "position": ocp.JsonCheckpointHandler(),
            "config": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def latest_step(self) -> int | None:
        """The last complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, *, state: Any, position: dict[str, Any], config: dict[str, Any]) -> None:
        """Starts writing a checkpoint; returns once the state is copied off the devices.

        Args:
          step: optimiser steps taken.
          state: the train state, a pytree of arrays.
          position: JSON values that fix the next batch, and the sums of the log that no line holds yet.
          config: the run's config as JSON values.

        Raises:
          ValueError: the folder cannot be written to, e.g. because the disk is full.
        """
        if step == self.latest_step():
            return
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    position=ocp.args.JsonSave(position),
                    config=ocp.args.JsonSave(config),
                ),
            )
        except OSError as error:
            raise self._cannot_write(error) from error

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

    def restore_saved(self, step: int, sharding: jax.sharding.Sharding) -> dict[str, Any]:
        """The train state of a checkpoint as nested dicts, in the shapes that were saved, whatever the data is now."""
        try:
            saved = self._manager.item_metadata(step)["state"]
        except Exception as error:  # as below
            raise self._cannot_read(step, error) from error
        leaves = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), saved.tree)
        return self.restore_state(step, leaves)

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
          ValueError: the last checkpoint could not be written.
        """
        try:
            self._manager.close()
        except OSError as error:
            raise self._cannot_write(error) from error

    def _restore(self, step: int, args: ocp.args.Composite) -> Any:
        try:
            return self._manager.restore(step, args=args)
        except Exception as error:  # Orbax, TensorStore and JSON each raise their own kinds for a damaged file
            raise self._cannot_read(step, error) from error

    def _cannot_read(self, step: int, error: Exception) -> SettingError:
        others = sorted(set(self._manager.all_steps()) - {step})
        remedy = f"to resume from step {others[-1]}" if others else "to start anew"
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return SettingError(
            f"checkpoint {self._folder / str(step)} cannot be read ({reason}); if it is damaged, move it away {remedy}"
        )

    def _cannot_write(self, error: OSError) -> SettingError:
        return SettingError(
            f"checkpoints cannot be written to {self._folder} ({error}); the earlier ones are as they were"
        )


def holds_checkpoint(workdir: str | os.PathLike[str]) -> bool:
    """Whether a run's folder holds a complete checkpoint; creates nothing."""
    folder = pathlib.Path(workdir).expanduser() / FOLDER
    return folder.is_dir() and any(entry.name.isdigit() for entry in folder.iterdir())


def abstract_state(state_shapes: Any, sharding: jax.sharding.Sharding) -> Any:
    """The template of `restore_state`: shapes and dtypes with one sharding for all leaves."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state_shapes)


def check_free_space(workdir: pathlib.Path, state_shapes: Any) -> None:
    """Raises `ValueError` before the run where the disk has no room for the checkpoints kept and one more."""
    size = (KEEP + 1) * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state_shapes))
    free = shutil.disk_usage(workdir).free
    if free < size:
        raise SettingError(
            f"--workdir {workdir} has {free / 1e6:.0f} MB free, its checkpoints need {size / 1e6:.0f} MB"
        )
