"""The command `dcjax`: lists the commands of the package and starts one."""

import contextlib
import importlib
import importlib.metadata
import platform
import sys
from collections.abc import Sequence

from dcjax.runtime import cli
from dcjax.runtime.errors import SettingError, unknown_name

# For each name, the module whose `main` runs the command, and a line of help.
COMMANDS = {
    "main": ("dcjax.main", "train the encoder of a config file, or resume a run"),
    "probe": ("dcjax.probe", "score the frozen encoder of a run: linear probe, nearest neighbours, effective rank"),
    "verify": ("dcjax.verify", "check every checkpoint of a run for damage"),
    "collapse": ("dcjax.collapse.__main__", "tell whether the embeddings in a file or of a run have collapsed"),
    "report": ("dcjax.report.__main__", "write one HTML file about a run, or about several runs side by side"),
    "compile": (
        "dcjax.compile",
        "see if the training step fits a TPU or GPU that need not be there",
    ),
    "prepare": ("dcjax.data.prepare", "prepare a data set once, from class folders or with TFDS"),
    "toy": ("dcjax.toy.__main__", "check the theorems and the toy figures of the paper"),
}


def usage() -> str:
    """The list of the commands."""
    lines = ["usage: dcjax COMMAND ...          (dcjax COMMAND --help lists its flags)", ""]
    return "\n".join([*lines, *(f"  {name:<9}{about}" for name, (_, about) in COMMANDS.items())])


def versions() -> str:
    """The versions that a report of an error should name."""
    found = {"Python": platform.python_version()}
    for package in ("dcjax", "jax", "jaxlib", "flax", "orbax-checkpoint"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a checkout on PYTHONPATH
            found[package] = importlib.metadata.version(package)
    return ", ".join(f"{name} {version}" for name, version in found.items())


def start(argv: Sequence[str]) -> None:
    """Runs the command that the first argument names.

    Raises:
      SettingError: the command is missing or unknown, or it raises this itself.
    """
    if not argv:
        raise SettingError(f"a command is missing; known: {', '.join(COMMANDS)} (dcjax --help)")
    name, *rest = argv
    if name in ("-h", "--help"):
        print(usage())
        return
    if name == "--version":
        print(versions())
        return
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    importlib.import_module(COMMANDS[name][0]).main(rest)


def main() -> None:
    """The console script."""
    cli.run(start, sys.argv[1:])


if __name__ == "__main__":
    main()
