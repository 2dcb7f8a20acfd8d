"""Compiling the training step for devices that need not be there, and reading what the compiler made of it.

This file loads no JAX, so that the environment can be set before.
"""

import contextlib
import os
import sys
from collections.abc import Iterator


def leave_devices_alone() -> None:
    """Sets the environment that JAX and its plugins read; to be called before JAX is imported.

    The devices of this machine stay free: JAX's own platform is the CPU, and libtpu neither looks for a TPU nor takes
    the lock that keeps one process from the TPU of another.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # so that the compile time is a real one
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # the plugins report at length that no such device is here


@contextlib.contextmanager
def quiet_plugins() -> Iterator[None]:
    """Keeps libraries from writing to stderr: JAX's plugins report at length that no such device is here."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
