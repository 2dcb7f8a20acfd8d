"""A small tmpfs that fills up during a run: the checkpoints before stay whole, and a run with room goes on."""

import contextlib
import pathlib
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from harness import Child, differences, run, small_run, training

from dcjax.training.manifest import check_step, step_folders
from dcjax.training.metrics import read_metrics


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: str) -> Iterator[bool]:
    """Mounts a tmpfs of so many bytes (`4m`) on a folder; false where that is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: pathlib.Path, left: int) -> pathlib.Path:
    """Writes a file that leaves so many bytes of a disk."""
    file = folder / "filler"
    with contextlib.suppress(OSError), file.open("wb") as out:
        out.truncate(0)
        while (free := shutil.disk_usage(folder).free) > left:
            out.write(bytes(min(free - left, 1 << 16)))
            out.flush()
    return file


def full_disk(folder: pathlib.Path) -> dict[str, Any]:
    """The disk is filled after step 7 of a run; then there is room again, and the same command ends the run."""
    from dcjax.training.metrics import StepMetrics

    config, whole = small_run(probe__after_training=False), folder / "whole"
    assert run(config, whole).status == 0
    report: dict[str, Any] = {}
    for left in (0, 20_000, 60_000):  # no byte, a part of a checkpoint, most of one
        with small_disk(folder / "disk", "16m") as mounted:
            if not mounted:
                return {"skipped": "mounting is not allowed"}
            workdir = folder / "disk" / "run"
            workdir.mkdir()

            def change(left: int = left) -> None:
                push = StepMetrics.push

                def push_and_fill(metrics: StepMetrics, step: int, scalars: Any) -> None:
                    push(metrics, step, scalars)
                    if step == 7:
                        fill(folder / "disk", left)

                StepMetrics.push = push_and_fill

            files = folder / f"files-{left}"
            files.mkdir()
            ended = Child(training(config, workdir, before=change), files).wait()
            checks = [check_step(path) for path in step_folders(workdir)]
            (folder / "disk" / "filler").unlink()
            lines = len(read_metrics(workdir))
            again = Child(training(config, workdir), files).wait()
            same = [name for name in differences_without_probe(workdir, whole)] if again.status == 0 else [again.errors]
            said = [line for line in ended.errors.splitlines() if line.startswith("dcjax:")]
            report[f"{left} bytes left"] = {
                "status": ended.status, "said": [line.replace(str(folder), "") for line in said],
                "damaged": sum(bool(check.problem) for check in checks), "whole": len(checks), "lines": lines,
                "problems": same + [check.problem for check in checks if check.problem]
                + ([] if ended.status == 2 and "Traceback" not in ended.errors else [ended.errors[-300:]]),
            }  # fmt: skip
    return report


def differences_without_probe(one: pathlib.Path, two: pathlib.Path) -> list[str]:
    """As `differences`, for runs without a probe."""
    for folder in (one, two):
        (folder / "probe.json").write_text("")
    return differences(one, two)
