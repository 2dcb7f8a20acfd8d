"""The newest whole checkpoint of a run, on which all of its processes agree, and the words about damaged ones."""

import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from dcjax.runtime.errors import InterruptedRunError, SettingError, some
from dcjax.runtime.mesh import from_process
from dcjax.training.manifest import FOLDER, NO_MANIFEST, Check, check_step, step_folders

NO_STEP, NONE_WHOLE, UNREADABLE = -1, -2, -3  # what the first process tells the others in place of a step


class NoneWholeError(SettingError):
    """There are checkpoints, but none is whole."""


def newest_whole_step(workdir: pathlib.Path, *, before: int | None = None) -> tuple[int | None, list[Check]]:
    """Looks for the newest step whose files are as they were written; the first process does so for all.

    Args:
      workdir: the run's folder.
      before: look only at steps before this one.

    Returns:
      The step, None if there is none to look at; and, on the first process, the damaged steps after it, the newest
      first.

    Raises:
      NoneWholeError: there are steps, but none is whole.
      InterruptedRunError: a file cannot be read at this moment.
    """
    found: int | None = None
    bad: list[Check] = []
    if jax.process_index() == 0:
        found, bad = _search(workdir, before)
    outcome = NO_STEP if found is None else found
    if any(check.unreadable for check in bad):
        outcome = UNREADABLE
    elif found is None and bad:
        outcome = NONE_WHOLE
    if jax.process_count() > 1:
        outcome = int(from_process(np.array([outcome]), 0)[0])
    folder = workdir / FOLDER
    problems = some([f"{check.step} ({check.problem})" for check in bad]) or "the first process says which"
    if outcome == UNREADABLE:
        raise InterruptedRunError(f"checkpoints in {folder} cannot be read now: {problems}; try again")
    if outcome == NONE_WHOLE:
        adopt = f"dcjax verify {workdir} --adopt takes those without a manifest as they are, or " if _bare(bad) else ""
        raise NoneWholeError(
            f"no checkpoint in {folder} is whole: {problems}; {adopt}bring one back from a copy, or train anew in "
            "another folder"
        )
    return None if outcome == NO_STEP else outcome, bad


def damage_notice(workdir: pathlib.Path, bad: Sequence[Check], step: int, *, moved_to: pathlib.Path | None) -> str:
    """The line about damaged steps, the newest first, in place of which `step` is used."""
    if len(bad) == 1:
        line = f"dcjax: checkpoint {bad[0].step} is damaged ({bad[0].problem})"
    else:
        numbers = some([str(check.step) for check in bad])
        line = f"dcjax: checkpoints {numbers} are damaged (the newest: {bad[0].problem})"
    if moved_to is None:
        return f"{line}; step {step} is used instead"
    steps = bad[0].step - step
    line += f"; moved to {moved_to}; step {step} is used, and {steps} step{'s are' if steps > 1 else ' is'} repeated"
    if _bare(bad):
        line += f" (to take what has no manifest as it is, move it back and use dcjax verify {workdir} --adopt)"
    return line


def _search(workdir: pathlib.Path, before: int | None) -> tuple[int | None, list[Check]]:
    bad = []
    for folder in reversed(step_folders(workdir)) if (workdir / FOLDER).is_dir() else ():
        if before is not None and int(folder.name) >= before:
            continue
        check = check_step(folder)
        if not check.problem:
            return check.step, bad
        if check.unreadable or os.path.isdir(folder):  # or else the run that is training has removed it
            bad.append(check)
    return None, bad


def _bare(bad: Sequence[Check]) -> bool:
    return any(check.problem == NO_MANIFEST for check in bad)
