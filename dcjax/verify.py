"""Checks every checkpoint of a run against its manifest: no file may be missing, cut short or changed.

    dcjax verify runs/directclr        (or python -m dcjax.verify)

The command prints a table and changes nothing. It ends with status 2 if a checkpoint is damaged or cannot be read; the
run itself resumes from the newest whole one, if there is one. With --adopt, a checkpoint without a manifest, such as
one that an earlier version wrote, first gets one for its files as they are; one that has a manifest is left alone.
"""

import os
import pathlib
from collections.abc import Sequence

from dcjax.runtime import cli
from dcjax.runtime.errors import SettingError, printable, some
from dcjax.training.manifest import DAMAGED, FOLDER, MANIFEST_FILE, Check, adopt, check_steps, some_step_folders


def main(argv: Sequence[str]) -> None:
    """Parses the command line, checks and prints."""
    parser = cli.Parser(prog="dcjax verify", description=__doc__ or "")
    cli.add_run(parser)
    parser.add_argument("--adopt", action="store_true", help="write the manifest of each checkpoint that has none")
    flags = parser.parse_args(argv)
    workdir = pathlib.Path(cli.chosen_run(flags)).expanduser()
    folders = some_step_folders(workdir)
    for folder in folders if flags.adopt else ():
        if not os.path.exists(folder / MANIFEST_FILE):
            adopt(folder)
            print(f"dcjax: checkpoint {folder.name} has a manifest of its files as they are now")
    checks = check_steps(workdir)
    print(as_text(checks))
    bad = [check for check in checks if check.problem]
    aside = workdir / FOLDER / DAMAGED
    if aside.is_dir() and (names := sorted(path.name for path in aside.iterdir())):
        print(printable(f"dcjax: set aside in {aside}, to be deleted when no longer needed: {some(names)}"))
    kinds = {"not whole": False, "not readable now": True}
    steps = {kind: [str(check.step) for check in bad if check.unreadable is flag] for kind, flag in kinds.items()}
    if bad:
        total = f"of {len(checks)} checkpoints in {workdir}"
        raise SettingError("; ".join(f"{len(of)} {total} {kind}: {some(of)}" for kind, of in steps.items() if of))


def as_text(checks: Sequence[Check]) -> str:
    """The table of some checks, a printable line for each."""
    rows = [
        [
            str(check.step),
            str(check.files) if check.files else "",
            f"{check.size / 1e6:,.1f}" if check.files else "",
            printable(check.config[:8]),
            printable(check.versions.get("jax", ""), 20),
            printable(check.problem) or "whole",
        ]
        for check in checks
    ]
    rows.insert(0, ["step", "files", "MB", "config", "jax", "state"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)) for row in rows]
    return "\n".join(f"{line}  {row[-1]}" for line, row in zip(lines, rows, strict=True))


if __name__ == "__main__":
    cli.run(main)
