"""Flips, truncations and deletions of every file of a checkpoint: none goes unnoticed, and an older step is used."""

import contextlib
import pathlib
import random
import resource
import shutil
import time
from typing import Any

import mutations
import numpy as np
from harness import Child, run, save_steps, saved_arrays, small_run, training, value_of

from dcjax.runtime.errors import SettingError
from dcjax.runtime.mesh import make_mesh, replicated
from dcjax.training.checkpoint import Checkpointer, open_run
from dcjax.training.manifest import MANIFEST_FILE, adopt

KINDS = ("bit", "byte", "cut", "empty", "longer", "delete", "zeros", "swap")
SECONDS, MEMORY = 5, 2**30  # for one hostile checkpoint


def damage(rng: random.Random, folder: pathlib.Path) -> str:
    """Damages one file of a step; returns what was done, or nothing if the file has the same bytes as before."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file, kind = rng.choice(files), rng.choice(KINDS)
    before = file.read_bytes()
    data = bytearray(before)
    at = rng.randrange(max(len(data), 1))
    match kind:
        case "bit" if data:
            data[at] ^= 1 << rng.randrange(8)
        case "byte" if data:
            data[at] = rng.randrange(256)
        case "cut":
            del data[at:]
        case "empty":
            data.clear()
        case "longer":
            data += bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
        case "zeros":
            data[at : at + 512] = bytes(len(data[at : at + 512]))
        case "swap":
            other = rng.choice(files)
            data, content = bytearray(other.read_bytes()), bytes(data)
            other.write_bytes(content)
    if kind == "delete":
        file.unlink()
    else:
        file.write_bytes(data)
    return f"{kind} {file.relative_to(folder)}" if kind == "delete" or bytes(data) != before else ""


def content(workdir: pathlib.Path, step: int) -> Any:
    """All that is restored from a checkpoint: its arrays as bytes, its position and its config. For a child."""
    arrays = {name: array.tobytes() for name, array in saved_arrays(workdir, step).items()}
    with contextlib.closing(Checkpointer(workdir, read_only=True)) as checkpointer:
        return arrays, checkpointer.restore_record(step)


def damage_checkpoints(folder: pathlib.Path, count: int, *, seed: int = 0) -> dict[str, Any]:
    """Damages one or both of the two checkpoints of a run, and restores as a resume and as a reader do."""
    whole = folder / "whole"
    whole.mkdir()
    assert Child(lambda: save_steps(whole, 2, 4), whole).wait().status == 0

    def injure() -> dict[str, Any]:
        rng = random.Random(seed)
        expected = {step: content(whole, step) for step in (2, 4)}
        wrong, stopped, moved, both, injected = [], [], [], 0, 0
        while injected < count:
            workdir = shutil.copytree(whole, folder / "damaged")
            hit = rng.choice([(4,), (4,), (4,), (2,), (2, 4)])
            done = {step: damage(rng, workdir / "checkpoints" / str(step)) for step in hit}
            damaged = {step for step, what in done.items() if what}
            if damaged:
                injected += 1
                both += damaged == {2, 4}
                left = sorted({2, 4} - damaged)
                try:  # as a reader, which moves nothing
                    with contextlib.closing(Checkpointer(workdir, read_only=True)) as checkpointer:
                        step = checkpointer.last_whole_step(lambda _: None)
                    if content(workdir, step) != expected[step]:
                        wrong.append(f"{done}: step {step}, as a reader")
                except SettingError as error:
                    if left:
                        stopped.append(f"{done}: {error}, as a reader")
                with contextlib.closing(Checkpointer(workdir)) as checkpointer:
                    try:
                        step = checkpointer.last_whole_step(lambda _: None)
                    except SettingError as error:
                        step = None
                        if left or "\n" in str(error):
                            stopped.append(f"{done}: {error}")
                        if checkpointer.all_steps() != [2, 4]:
                            moved.append(f"{done}: moved although no step was whole")
                # A step of which no byte that counts has changed is whole: blanks in its manifest do not.
                if step is not None and content(workdir, step) != expected[step]:
                    wrong.append(f"{done}: step {step}")
            shutil.rmtree(workdir)
        return {
            "injected": injected, "both_steps_damaged": both, "silently_wrong": len(wrong),
            "could_not_go_on_though_a_step_was_whole": len(stopped), "problems": wrong + stopped + moved,
        }  # fmt: skip

    return value_of(injure, folder)


def restore_hostile(folder: pathlib.Path, count: int, *, seed: int = 0) -> dict[str, Any]:
    """Restores checkpoints of which a file was changed on purpose and the manifest written anew, as a stranger could.

    A checkpoint may be read or refused in one line. Anything else is a problem: another error, a crash, a case of more
    than `SECONDS`, or more than `MEMORY` bytes beyond the first one's.
    """
    whole, progress = folder / "whole", folder / "progress"
    whole.mkdir()
    assert Child(lambda: save_steps(whole, 4), whole).wait().status == 0

    def restore() -> dict[str, Any]:
        names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and "4" in path.parts)
        names = [name for name in names if name.name != MANIFEST_FILE]
        outcomes, problems, first = {"read": 0, "refused": 0, "not adopted": 0}, [], 0
        for number in range(count):
            rng = random.Random(f"{seed} {number}")
            name, other = rng.choice(names), rng.choice(names)
            progress.write_text(f"case {number}: {name}")
            workdir, begin = shutil.copytree(whole, folder / "hostile"), time.process_time()
            (workdir / name).write_bytes(
                mutations.damaged(rng, (whole / name).read_bytes(), (whole / other).read_bytes())
            )
            step = workdir / "checkpoints" / "4"
            (step / MANIFEST_FILE).unlink()
            try:
                adopt(step)
            except SettingError:
                outcomes["not adopted"] += 1
            else:
                try:
                    checkpointer, _ = open_run(workdir)
                    with contextlib.closing(checkpointer):
                        checkpointer.restore_record(4)
                        checkpointer.restore_saved(4, replicated(make_mesh(1)))
                    outcomes["read"] += 1
                except SettingError as error:
                    outcomes["refused"] += 1
                    if not str(error).isprintable() or len(str(error)) > 2000:
                        problems.append(f"{progress.read_text()}: {error!r}")
                except Exception as error:
                    problems.append(f"{progress.read_text()}: {error!r}")
            if time.process_time() - begin > SECONDS:
                problems.append(f"{progress.read_text()}: {time.process_time() - begin:.0f} s")
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            first = first or used
            if used - first > MEMORY:
                problems.append(f"{progress.read_text()}: {used - first:,} bytes")
                first = used
            shutil.rmtree(workdir)
        return {"cases": count, **outcomes, "problems": problems}

    try:
        return value_of(restore, folder)
    except AssertionError as error:
        return {"problems": [f"the process ended in {progress.read_text()}: {str(error)[-300:]}"]}


def resume_damaged(folder: pathlib.Path) -> dict[str, Any]:
    """The whole command: the newest of two checkpoints is damaged, and the run repeats its steps."""
    config = small_run(total_steps=6, checkpoint_every_steps=2, probe__after_training=False)
    expected, workdir = folder / "expected", folder / "resumed"
    assert run(config, expected).status == 0
    shutil.copytree(expected, workdir)
    damage(random.Random(3), workdir / "checkpoints" / "6" / "state" / "ocdbt.process_0")
    ended = Child(training(config, workdir), workdir).wait()
    (line,) = (line for line in ended.output.splitlines() if line.startswith("dcjax: checkpoint 6"))
    same = value_of(
        lambda: all(
            np.array_equal(a, b)
            for a, b in zip(saved_arrays(workdir).values(), saved_arrays(expected).values(), strict=True)
        ),
        folder,
    )
    problems = [] if ended.status == 0 and same and "2 steps are repeated" in line else [ended.errors[-300:], line]
    return {
        "status": ended.status, "line": line.replace(str(folder), ""), "identical": same, "problems": problems,
    }  # fmt: skip
