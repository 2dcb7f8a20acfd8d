"""The versions of JAX that the package runs on, checked before JAX is imported."""

import importlib.metadata
import os
import re
import sys

# These repeat pyproject.toml; a test checks that they agree. The package's own metadata would not do: a checkout on
# PYTHONPATH has none, and those of an editable install date from the day of the install.
JAX_MINIMUM = (0, 7, 2)
JAX_BROKEN = {"0.10.2": "computes wrong values on CPU without an error (https://github.com/jax-ml/jax/issues/39103)"}


def jax_requirement() -> str:
    """The versions of JAX that are allowed, as a requirement for pip."""
    return ",".join([f"jax>={'.'.join(map(str, JAX_MINIMUM))}", *(f"!={version}" for version in JAX_BROKEN)])


def jax_problem() -> str | None:
    """One line about the installed JAX if the package must not run on it; None if it may, or if there is no JAX."""
    try:
        found = importlib.metadata.version("jax")
    except importlib.metadata.PackageNotFoundError:
        return None  # the first import of JAX reports it
    numbers = re.match(r"\d+(?:\.\d+)*", found)  # a local build has a name like 0.10.2.dev20260601+abc
    release = tuple(map(int, numbers[0].split("."))) if numbers else JAX_MINIMUM
    if release < JAX_MINIMUM:
        fault = f"is older than {'.'.join(map(str, JAX_MINIMUM))}"
    elif found.partition("+")[0] in JAX_BROKEN:
        fault = JAX_BROKEN[found.partition("+")[0]]
    else:
        return None
    return f"jax {found} is installed, which {fault}; install another: pip install '{jax_requirement()}'"


def is_command() -> bool:
    """Whether Python was started for a command of the package: `python -m dcjax...`, or a script named dcjax."""
    arguments = sys.orig_argv[1:]
    module = arguments[arguments.index("-m") + 1] if "-m" in arguments[:-1] else ""
    return module.split(".")[0] == "dcjax" or os.path.basename(sys.argv[0]) == "dcjax"
