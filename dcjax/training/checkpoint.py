"""Asynchronous Orbax checkpoints of train state, position and config, each in a folder that is whole or absent."""

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

    A step is written under a temporary name and renamed when it is complete. An interrupted write therefore leaves the
    earlier checkpoints as they were and is not mistaken for one. The methods `restore_...` raise `SettingError` if a
    checkpoint cannot be read.

    Args:
      workdir: the run's folder; the latest two checkpoints lie in `workdir/checkpoints/<step>`.
      read_only: create and delete nothing, since another process may be training the run.
    """

    def __init__(self, workdir: pathlib.Path, *, read_only: bool = False):
        self._folder = (workdir / FOLDER).absolute()
        # Only the writer removes temporary folders: they may belong to a write that is still going on.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else KEEP, cleanup_tmp_directories=not read_only, create=not read_only
        )
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "position": ocp.JsonCheckpointHandler(),
            "config": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def all_steps(self) -> list[int]:
        """The steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The step of the last complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, *, state: Any, position: dict[str, Any], config: dict[str, Any]) -> None:
        """Starts writing a checkpoint unless the step has one; returns once the state is copied off the devices.

        Args:
          step: optimiser steps taken.
          state: the train state, a pytree of arrays.
          position: JSON values that fix the next batch, and the sums of the log since its last regular line.
          config: the run's config as JSON values.

        Raises:
          SettingError: the folder cannot be written to, e.g. because the disk is full.
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
          step: the step of the checkpoint.
          template: the state as `jax.ShapeDtypeStruct` with shardings, which lay it out on the devices of this run.
        """
        return self._restore(step, ocp.args.Composite(state=ocp.args.StandardRestore(template)))["state"]

    def restore_saved(self, step: int, sharding: jax.sharding.Sharding) -> dict[str, Any]:
        """The train state of a checkpoint as nested dicts, in the saved shapes and with one sharding for all leaves."""
        try:
            saved = self._manager.item_metadata(step)["state"]
        except Exception as error:  # of any kind, as in `_restore`
            raise self._cannot_read(step, error) from error
        leaves = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), saved.tree)
        return self.restore_state(step, leaves)

    def restore_variables(self, step: int, sharding: jax.sharding.Sharding) -> dict[str, Any]:
        """The variables of the frozen network, without the online classifier.

        The classifier is left out because the data may have other classes now.
        """
        state = self.restore_saved(step, sharding)
        params = {name: state["params"].get(name, {}) for name in ("encoder", "projector")}
        return {"params": params, "batch_stats": state["batch_stats"], "constants": state["constants"]}

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
          SettingError: the last checkpoint could not be written.
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
            f"checkpoints cannot be written to {self._folder} ({error}); the run can resume from the earlier ones"
        )


def open_run(workdir: pathlib.Path, step: int | None = None) -> tuple[Checkpointer, int]:
    """The checkpoints of a run, read-only, and `step` or, if that is None, the last step.

    Raises:
      SettingError: the run has no complete checkpoint, or none of this step.
    """
    if not workdir.is_dir():
        raise SettingError(f"{workdir} is no folder; name the folder of a run of dcjax main")
    if not (workdir / FOLDER).is_dir():
        raise SettingError(f"{workdir} holds no checkpoints; name the folder of a run of dcjax main")
    checkpointer = Checkpointer(workdir, read_only=True)
    steps = checkpointer.all_steps()
    if not steps:
        raise SettingError(f"{workdir} holds no complete checkpoint; train the run until its first")
    if step is not None and step not in steps:
        raise SettingError(
            f"{workdir} holds no complete checkpoint of step {step}; it has {', '.join(map(str, steps))}"
        )
    return checkpointer, steps[-1] if step is None else step


def holds_checkpoint(workdir: str | os.PathLike[str]) -> bool:
    """Whether a run's folder holds a complete checkpoint; creates nothing."""
    folder = pathlib.Path(workdir).expanduser() / FOLDER
    return folder.is_dir() and any(entry.name.isdigit() for entry in folder.iterdir())


def abstract_state(state_shapes: Any, sharding: jax.sharding.Sharding) -> Any:
    """The template of `restore_state`: shapes and dtypes with one sharding for all leaves."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state_shapes)


def check_free_space(workdir: pathlib.Path, state_shapes: Any) -> None:
    """Raises `SettingError` if the disk has no room for the checkpoints that are kept and one more."""
    size = (KEEP + 1) * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state_shapes))
    free = shutil.disk_usage(workdir).free
    if free < size:
        raise SettingError(
            f"--workdir {workdir} has {free / 1e6:.0f} MB free, but its checkpoints need {size / 1e6:.0f} MB"
        )
