"""Asynchronous Orbax checkpoints of train state, position and config, each in a folder that is whole or absent.

Orbax writes a step into `checkpoints/incomplete`. A thread then hashes its files, writes the manifest beside them, and
renames the folder to `checkpoints/<step>`. An interruption at any moment therefore leaves whole steps alone, and damage
that comes later is found by the hashes.
"""

import concurrent.futures
import contextlib
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from dcjax.runtime.errors import InterruptedRunError, SettingError
from dcjax.runtime.files import reason_of
from dcjax.runtime.lock import HeldLockError, take_lock
from dcjax.training.manifest import (
    FOLDER,
    Check,
    check_step,
    no_checkpoint,
    remove_tree,
    set_aside,
    some_step_folders,
    step_folders,
    sync_folder,
    write_manifest,
)
from dcjax.training.search import NoneWholeError, damage_notice, newest_whole_step

INCOMPLETE = "incomplete"  # what is being written or removed, in `checkpoints`
LOCK_SECONDS = 30.0  # how long a run waits for another process that trains it
MAX_JSON_BYTES = 2**26  # of a file that Orbax parses as a whole
MAX_EXPANSION = 64  # bytes of a state for each byte on disk; parameters and momentum hardly shrink


class CannotSaveError(SettingError):
    """A checkpoint could not be written; the earlier ones are whole."""


class Checkpointer:
    """Saves and restores a run.

    The methods `restore_...` raise `SettingError` if a checkpoint cannot be read.

    Args:
      workdir: the run's folder; the steps lie in `workdir/checkpoints/<step>`.
      read_only: create, move and delete nothing, since another process may be training the run.
      keep: how many of the newest steps are kept; None for all.
      keep_every_steps: steps that are multiples of this are kept for good; None for no others than the newest.
      watch: a function of a phase in words to a context, `Watchdog.phase`, in which a checkpoint is written.

    Raises:
      InterruptedRunError: another process trains the run.
      CannotSaveError: the folder cannot be written to.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        read_only: bool = False,
        keep: int | None = None,
        keep_every_steps: int | None = None,
        watch: Callable[[str], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ):
        self._workdir, self._folder = workdir, (workdir / FOLDER).absolute()
        self._keep, self._keep_every_steps, self._watch = keep, keep_every_steps, watch
        self._writes = not read_only and jax.process_index() == 0
        self._opened = contextlib.ExitStack()
        self._saved: int | None = None
        self._pending: concurrent.futures.Future[None] | None = None
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                state=ocp.StandardCheckpointHandler(),
                position=ocp.JsonCheckpointHandler(),
                config=ocp.JsonCheckpointHandler(),
            )
        )
        logging.getLogger("absl").addFilter(_not_orbax_errors)
        self._opened.callback(logging.getLogger("absl").removeFilter, _not_orbax_errors)
        if self._writes:
            try:
                self._begin_writing()
            except BaseException:
                self._opened.close()
                raise
        self._opened.callback(self._close_orbax)
        self._opened.callback(self._worker.shutdown)

    def _begin_writing(self) -> None:
        try:
            self._folder.mkdir(exist_ok=True)
            held, remedy = f"another process trains the run in {self._workdir}", "end it, or name another --workdir"
            self._opened.enter_context(
                take_lock(self._folder / ".lock", seconds=LOCK_SECONDS, held=held, remedy=remedy)
            )
            self._clear()
        except HeldLockError as error:
            raise InterruptedRunError(str(error)) from error
        except OSError as error:
            raise self._cannot_write(error) from error

    def all_steps(self) -> list[int]:
        """The steps that have a folder, ascending; whether they are whole is another question."""
        return [int(path.name) for path in step_folders(self._workdir)] if self._folder.is_dir() else []

    def check(self, step: int) -> Check:
        """Compares the files of a step with its manifest."""
        return check_step(self._folder / str(step))

    def last_whole_step(self, say: Callable[[str], None] = print) -> int | None:
        """The newest step whose files are as they were written, on which all processes agree; None if there is no step.

        Newer steps, which are damaged, are moved to `checkpoints/damaged`, unless this object is read-only.

        Args:
          say: takes one line about damaged steps, on the first process.

        Raises:
          SettingError: there are steps, but none is whole; nothing is moved then.
          CannotSaveError: a damaged step cannot be moved.
          InterruptedRunError: a file cannot be read at this moment.
        """
        step, bad = newest_whole_step(self._workdir)
        if bad and step is not None:
            moved_to = None
            if self._writes:
                with self._writing():
                    for check in bad:
                        moved_to = set_aside(self._folder / str(check.step)).parent
            say(damage_notice(self._workdir, bad, step, moved_to=moved_to))
        self._saved = step
        return step

    def whole_step_before(self, step: int) -> int | None:
        """The newest whole step before another one; None if there is none. Nothing is moved.

        Raises:
          InterruptedRunError: a file cannot be read at this moment.
        """
        try:
            return newest_whole_step(self._workdir, before=step)[0]
        except NoneWholeError:
            return None

    def save(self, step: int, *, state: Any, position: dict[str, Any], config: dict[str, Any]) -> None:
        """Starts writing a checkpoint unless it was the last one; returns once the state is copied off the devices.

        Args:
          step: optimiser steps taken.
          state: the train state, a pytree of arrays.
          position: JSON values that fix the next batch, and the sums of the log since its last regular line.
          config: the run's config as JSON values.

        Raises:
          CannotSaveError: the folder cannot be written to, e.g. because the disk is full.
        """
        self._finish()
        if step == self._saved:
            return
        with self._writing(), self._watch(f"the checkpoint of step {step}"):
            self._orbax.save(
                self._folder / INCOMPLETE / str(step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    position=ocp.args.JsonSave(position),
                    config=ocp.args.JsonSave(config),
                ),
            )
        self._saved = step
        self._pending = self._worker.submit(self._commit, step, config)

    def raise_if_failed(self) -> None:
        """Raises `CannotSaveError` if the checkpoint under way has failed; waits for nothing."""
        if self._pending is not None and self._pending.done():
            self._finish()

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk, for every process.

        Raises:
          CannotSaveError: it could not be written.
        """
        self._finish()
        if jax.process_count() > 1:
            with self._watch("the other processes' part of the last checkpoint"):
                multihost_utils.sync_global_devices("dcjax: checkpoint")

    def close(self) -> None:
        """Waits until everything of this process is on disk; raises as `wait`."""
        with self._opened:
            self._finish()

    def _close_orbax(self) -> None:
        with self._writing():
            self._orbax.close()

    def restore_record(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The position and the config of a checkpoint."""
        args = ocp.args.Composite(position=ocp.args.JsonRestore(), config=ocp.args.JsonRestore())
        found = self._restore(step, args)
        position, config = found["position"], found["config"]
        if not (isinstance(position, dict) and are_sums(position.get("unlogged")) and isinstance(config, dict)):
            raise self._cannot_read(step, ValueError("its position or its config is of another form"))
        return position, config

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
            self._check_sizes(step)
            saved: Any = self._orbax.metadata(self._folder / str(step))
            tree = saved.item_metadata["state"].tree
            leaves = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)
            stated = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(leaves))
            stored = sum(path.stat().st_size for path in (self._folder / str(step)).rglob("*") if path.is_file())
            if stated > MAX_EXPANSION * stored:
                raise ValueError(f"its state would take {stated / 1e6:,.0f} MB, but it has {stored / 1e6:,.0f} MB")
        except Exception as error:  # of any kind, as in `_restore`
            raise self._cannot_read(step, error) from error
        return self.restore_state(step, leaves)

    def restore_variables(self, step: int, sharding: jax.sharding.Sharding) -> dict[str, Any]:
        """The variables of the frozen network, without the online classifier.

        The classifier is left out because the data may have other classes now.
        """
        state = self.restore_saved(step, sharding)
        params = {name: state["params"].get(name, {}) for name in ("encoder", "projector")}
        return {"params": params, "batch_stats": state["batch_stats"], "constants": state["constants"]}

    def _commit(self, step: int, config: dict[str, Any]) -> None:
        """Makes a step whole, once Orbax has written it, and removes old ones; in the thread."""
        with self._watch(f"the checkpoint of step {step}"):
            self._commit_whole(step, config)

    def _commit_whole(self, step: int, config: dict[str, Any]) -> None:
        self._orbax.wait_until_finished()
        if not self._writes:
            return
        written, target = self._folder / INCOMPLETE / str(step), self._folder / str(step)
        write_manifest(written, step=step, config=config)
        if target.exists():  # left by a run that this one repeats
            set_aside(target)
        os.rename(written, target)
        sync_folder(self._folder)
        for old in self._steps_to_remove():
            # Renamed first, so that an interruption leaves no step that seems to be damaged.
            gone = self._folder / INCOMPLETE / f"removed-{old}"
            try:
                os.rename(self._folder / str(old), gone)
            except OSError as error:  # the newer steps are whole, so this costs room alone
                logging.warning("checkpoint %s could not be removed (%s)", self._folder / str(old), reason_of(error))
            remove_tree(gone)

    def _steps_to_remove(self) -> list[int]:
        every, keep = self._keep_every_steps, self._keep
        return [step for step in self.all_steps()[:-keep] if not every or step % every] if keep else []

    def _clear(self) -> None:
        """Removes what interruptions have left, which no other process is writing, since this one holds the lock."""
        incomplete = self._folder / INCOMPLETE
        remove_tree(incomplete)
        for path in self._folder.glob("*.orbax-checkpoint-tmp*"):  # as Orbax named them in earlier versions
            remove_tree(path)
        incomplete.mkdir(exist_ok=True)

    def _finish(self) -> None:
        """Waits for the checkpoint under way, if there is one, which the thread watches."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._writing():
                pending.result()

    @contextlib.contextmanager
    def _writing(self) -> Any:
        """Turns what Orbax, TensorStore and the system raise into one error, and removes the unfinished files."""
        try:
            yield
        except Exception as error:
            self._saved = None
            if self._writes:
                with contextlib.suppress(OSError):
                    self._clear()
            raise self._cannot_write(error) from error

    def _restore(self, step: int, args: ocp.args.Composite) -> Any:
        try:
            self._check_sizes(step)
            return self._orbax.restore(self._folder / str(step), args=args)
        except Exception as error:  # Orbax, TensorStore and JSON each raise their own kinds for a damaged file
            raise self._cannot_read(step, error) from error

    def _check_sizes(self, step: int) -> None:
        """Raises `ValueError` for a file that Orbax would parse as a whole and that is too large for that."""
        for path in (self._folder / str(step)).rglob("*"):
            if path.parent.name != "d" and path.is_file() and path.stat().st_size > MAX_JSON_BYTES:
                raise ValueError(f"{path.name} has over {MAX_JSON_BYTES} bytes")

    def _cannot_read(self, step: int, error: Exception) -> SettingError:
        if not (self._folder / str(step)).is_dir():
            return SettingError(
                f"checkpoint {self._folder / str(step)} has gone, as the run that is training keeps only its newest; "
                "give the command again"
            )
        others = [other for other in self.all_steps() if other != step]
        remedy = f"to resume from step {others[-1]}" if others else "to start anew"
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return SettingError(
            f"checkpoint {self._folder / str(step)} cannot be read ({reason}); if it is damaged, move it away {remedy}"
        )

    def _cannot_write(self, error: Exception) -> SettingError:
        reason = reason_of(error)
        whole = f"from step {steps[-1]}" if (steps := self.all_steps()) else "from its start"
        return CannotSaveError(
            f"checkpoints cannot be written to {self._folder} ({reason}); make room or mend it, and the same command "
            f"goes on {whole}"
        )


def open_run(workdir: pathlib.Path, step: int | None = None) -> tuple[Checkpointer, int]:
    """The checkpoints of a run, read-only, and `step` or, if that is None, the last whole step.

    Raises:
      SettingError: the run has no whole checkpoint, or none of this step.
      InterruptedRunError: a file cannot be read at this moment.
    """
    steps = [int(path.name) for path in some_step_folders(workdir)]
    if step is not None and step not in steps:
        raise SettingError(
            f"{workdir} holds no complete checkpoint of step {step}; it has {', '.join(map(str, steps))}"
        )
    checkpointer = Checkpointer(workdir, read_only=True)
    with contextlib.ExitStack() as opened:
        opened.callback(checkpointer.close)
        if step is None:
            # On stderr, since stdout may be a command's JSON.
            step = checkpointer.last_whole_step(lambda line: print(line, file=sys.stderr, flush=True))
            if step is None:  # the run that is training has removed it
                raise no_checkpoint(workdir)
        elif problem := (check := checkpointer.check(step)).problem:
            if check.unreadable:
                raise InterruptedRunError(f"checkpoint {workdir / FOLDER / str(step)} cannot be read now: {problem}")
            raise SettingError(f"checkpoint {workdir / FOLDER / str(step)} is damaged: {problem}")
        opened.pop_all()
    return checkpointer, step


def are_sums(value: Any) -> bool:
    """Whether a JSON value is nothing but sums over so many `steps`, as `StepMetrics.sums` has them."""
    if not isinstance(value, dict):
        return False
    numbers = all(isinstance(total, int | float) and not isinstance(total, bool) for total in value.values())
    return numbers and (not value or value.get("steps", 0) >= 1)


def abstract_state(state_shapes: Any, sharding: jax.sharding.Sharding) -> Any:
    """The template of `restore_state`: shapes and dtypes with one sharding for all leaves."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state_shapes)


def check_free_space(workdir: pathlib.Path, state_shapes: Any, *, keep: int) -> None:
    """Raises `SettingError` if the disk has no room for the newest checkpoints that are kept and one more."""
    size = (keep + 1) * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state_shapes))
    free = shutil.disk_usage(workdir).free
    if free < size:
        raise SettingError(
            f"--workdir {workdir} has {free / 1e6:.0f} MB free, but its checkpoints need {size / 1e6:.0f} MB"
        )


def _not_orbax_errors(record: logging.LogRecord) -> bool:
    """Drops Orbax's traceback of a failed write, which the run reports in one line."""
    return not (record.levelno == logging.ERROR and "orbax" in record.pathname)
