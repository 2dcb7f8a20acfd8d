"""A run small enough to test, and what the tests of several parts share."""

import contextlib
import functools
import importlib
import inspect
import os
import pathlib
import subprocess
import sys

import cv2
import jax
import numpy as np

from dcjax.config import load_config
from dcjax.evaluation import Features, place_rows, rows_per_process
from dcjax.evaluation.features import NO_IMAGE
from dcjax.models.resnet import ENCODERS, BasicBlock, ResNet
from dcjax.schema import flatten
from dcjax.training.checkpoint import Checkpointer

ROOT = pathlib.Path(__file__).parent.parent

# One residual block: compiles in a tenth of the time of a ResNet-18. New processes know it by importing this module.
ENCODERS["one_block"] = functools.partial(ResNet, stage_sizes=(1,), block=BasicBlock)


@contextlib.contextmanager
def double_precision():
    """`jax.enable_x64(True)`, which jax 0.7 does not have."""
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


def vmapped_product_error(dtype, rows):
    """The largest error, relative to the terms, of sum((M x_i)^2) for every row i, as `jit` of `vmap` computes it."""
    rng = np.random.default_rng(0)
    matrix, x = rng.standard_normal((3, 3)).astype(dtype), rng.standard_normal((rows, 3)).astype(dtype)
    expected = np.sum((x.astype(np.float64) @ matrix.astype(np.float64).T) ** 2, axis=1)
    with double_precision():
        found = jax.jit(jax.vmap(lambda row: ((matrix @ row) ** 2).sum()))(x)
        return np.max(np.abs(found - expected) / (1 + expected))


def tiny_config(**overrides):
    """The quickstart, shrunk: 8 px digits, one block of 32 channels, batches of 16, 4 steps. Overrides: dotted keys."""
    config = load_config("configs/quickstart.py")
    shrunk = {
        "batch_size": 16,
        "total_steps": 4,
        "devices": 1,
        "log_every_steps": 1,
        "checkpoint_every_steps": 2,
        "monitor.every_steps": None,  # its forward pass is a program more to compile
        "model.name": "one_block",
        "model.width": 0.5,
        "projector.d0": 16,
        "projector.hidden": 16,
        "projector.features": 8,
        "loss.temperature": 0.1,
        "optimizer.learning_rate": 1.5,
        "optimizer.warmup_steps": 1,
        "data.image_size": 8,
        "probe.after_training": False,
        "probe.batch_size": 64,
        "probe.eval_batch_size": 64,
    }
    for key, value in (shrunk | {key.replace("__", "."): value for key, value in overrides.items()}).items():
        section = config
        *parents, name = key.split(".")
        for parent in parents:
            section = section[parent]
        section[name] = value
    if config.total_steps == 1:
        config.optimizer.warmup_steps = 0
    return config


def saved_state(workdir, step, like):
    """The state of a checkpoint, with the shapes and shardings of the state `like`."""
    checkpointer = Checkpointer(workdir)
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like)
    state = checkpointer.restore_state(step, template)
    checkpointer.close()
    return state


def flip(file, *, byte, bit=0):
    """Changes one bit of a file."""
    data = bytearray(file.read_bytes())
    data[byte] ^= 1 << bit
    file.write_bytes(data)


def assert_identical(one, two):
    """Two trees of the same structure, equal in every bit."""
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(np.testing.assert_array_equal, one, two)


def place(x, labels, mesh):
    """Features `[n, d]` and labels as the rows of a mesh."""
    rows = rows_per_process(len(x), batch_size=mesh.size, processes=1, devices=mesh.size)
    index = np.full(rows, NO_IMAGE, np.int32)
    index[: len(x)] = np.arange(len(x))
    padded = np.zeros((rows, x.shape[1]), x.dtype)
    padded[: len(x)] = x
    return place_rows(Features(padded, None, index, len(x), np.asarray(labels)), mesh)


def as_flags(config):
    """A config as the overrides of `--config=configs/quickstart.py`."""
    before = flatten(load_config("configs/quickstart.py"))
    changed = {key: value for key, value in flatten(config).items() if value != before[key]}
    return ["--config=configs/quickstart.py", *(f"--config.{key}={value}" for key, value in changed.items())]


def new_process(devices=None, optimised=False):
    """The environment of a new process with so many CPU devices, which finds the package and these helpers.

    With `devices` None it takes as many as it would for a user. Where it is `optimised`, XLA compiles as it does for
    users, not as `conftest.py` asks it to.
    """
    ours = ("device_count", "fusion_emitters") if optimised else ("device_count",)
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if not any(name in flag for name in ours)]
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "XLA_FLAGS": " ".join([*flags, *([f"--xla_force_host_platform_device_count={devices}"] if devices else [])]),
        **({"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"} if optimised else {}),
    }


def run_main(workdir, config, *flags, before=""):
    """Runs `dcjax.main` in a new process with one device, after some lines of code.

    Compiled as users compile it; the programs of the other tests, which are not optimised, lie in another cache.
    """
    argv = ["dcjax", *as_flags(config), f"--workdir={workdir}", *flags]
    run = "from dcjax import main\nfrom dcjax.runtime import cli\ncli.run(main.main)"
    code = f"import sys, helpers\nsys.argv = {argv!r}\n{before}\n{run}"
    env = new_process(1, optimised=True) | {"JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "cache")}
    return subprocess.run([sys.executable, "-c", code], env=env, cwd=workdir.parent, capture_output=True, text=True)


def write_images(folder, count, size=8, seed=0):
    """Writes random PNG images."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:03d}.png"), rng.integers(256, size=(size, size, 3), dtype=np.uint8))


class ParsedError(BaseException):
    """Raised, under the fixture `stops_after_parsing`, where a command has taken its flags and would begin its work.

    It is no `Exception`, which `dcjax collapse` would take for an error of its own, and end the process.
    """


def start_module(module, *arguments, monkeypatch):
    """Starts the command `python -m MODULE ARGUMENTS` in this process."""
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    main = importlib.import_module(module).main
    if inspect.signature(main).parameters:
        main(list(arguments))
    else:
        main()
