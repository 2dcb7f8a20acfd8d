"""Compiled programs are kept between processes, so that a command that was run before starts without compiling.

JAX has the cache; here it gets a folder of the user, a bound, and a folder for each kind of processor.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import sys
from collections.abc import MutableMapping

MAX_BYTES = 4 * 2**30  # a ResNet-50's step on a TPU takes some 200 MB; the programs used longest ago are dropped
FOLDER = "JAX_COMPILATION_CACHE_DIR"


def use_compile_cache(env: MutableMapping[str, str] = os.environ) -> None:
    """Names the folder of compiled programs in the environment, where JAX finds it; to be called before JAX is loaded.

    The folder is `dcjax/programs-...` below `$XDG_CACHE_HOME` (`~/.cache`). A user's own `JAX_COMPILATION_CACHE_DIR` is
    left as it is, and `JAX_ENABLE_COMPILATION_CACHE=false` switches the cache off, as everywhere in JAX. Where the
    folder cannot be written to, or JAX is loaded already, nothing happens. A run of several CPU processes does not use
    the cache (`dcjax.runtime.mesh.start_processes`).

    Args:
      env: the environment, which is changed.
    """
    switched_off = env.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "false", "off", "no")
    if FOLDER in env or switched_off or "jax" in sys.modules:
        return
    try:
        base = env.get("XDG_CACHE_HOME") or pathlib.Path(env.get("HOME") or pathlib.Path.home()) / ".cache"
        folder = pathlib.Path(base) / "dcjax" / f"programs-{_processor()}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the second: there is no home
        return
    if not os.access(folder, os.W_OK):
        return
    env[FOLDER] = str(folder)
    env.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MAX_BYTES))
    if _logs_each_program() and _cpu_alone(env):
        env.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _cpu_alone(env: MutableMapping[str, str]) -> bool:
    """Whether JAX can only run on the CPU, as far as can be told without loading it."""
    plugins = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "jax_rocm60_plugin")
    return env.get("JAX_PLATFORMS") == "cpu" or not any(map(importlib.util.find_spec, plugins))


@functools.cache
def _processor() -> str:
    """A name for this kind of processor: programs for a CPU use its own instructions, and a home may be shared."""
    found = f"{platform.machine()} {platform.processor()}"
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        found += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass
    return hashlib.sha256(found.encode()).hexdigest()[:8]


def _logs_each_program() -> bool:
    """Whether this JAX prints two lines of some 3,000 characters for each program that it loads for a CPU.

    From 0.9 to 0.10 XLA takes two settings of its own compiler (prefer-no-gather, prefer-no-scatter) for instructions
    that the processor lacks, and complains; here it loads the program all the same (jax issue 38445).
    """
    version = importlib.metadata.version("jax").split(".")
    return version[0] == "0" and version[1] in ("9", "10")
