"""The step compiled for a TPU slice and for GPUs that are not here; run with `python -m pytest -m aot -n 0`."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
# A ResNet-18 at a quarter of its width, in bfloat16: the structure of the real step, compiled within a minute or two.
SMALL = [
    "--config=configs/directclr.py:cifar10", "--config.model.width=0.25", "--config.projector.d0=16",
    "--config.batch_size=64", "--classes=10", "--images=50000",
]  # fmt: skip
CONVOLUTIONS, NORMS = 20, 20  # of a ResNet-18, the shortcuts included

pytestmark = pytest.mark.aot
NEEDS_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'jax[tpu]'"
)


def compiled(tmp_path, topology, *flags):
    """The figures of the small step and the text of its program, from the command in a process of its own."""
    argv = [sys.executable, "-m", "dcjax.compile", *SMALL, f"--topology={topology}", f"--dump={tmp_path}", *flags]
    env = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run([*argv, "--json"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (program,) = pathlib.Path(tmp_path).glob("*.hlo.txt")
    return json.loads(done.stdout.splitlines()[-1]), program.read_text()


def check_step(found):
    assert found["fits"]
    assert found["host_transfers"] == []
    # The state is updated in place: all of it but the scalars of the log is aliased.
    memory = found["memory_bytes"]
    assert memory["aliased"] > 0.95 * memory["outputs"]
    kinds = {each["kind"]: each for each in found["collectives"]}
    assert "all-to-all" not in kinds
    # What is gathered, over all devices, is less than the logits: labels, positions or embeddings.
    gathered = kinds.get("all-gather", {"bytes": 0})["bytes"] * found["devices"]
    assert gathered < 64 * 64 * 4, kinds
    return kinds


def sums_of_gradients(text):
    """The dtypes of all arrays that are summed over devices, the gradients among them."""
    lines = [line for line in text.splitlines() if re.search(r" all-reduce(-start)?\(", line)]
    assert lines
    return [
        dtype
        for line in lines
        for dtype in re.findall(r"(f32|bf16|f16)\[", line.split(" all-reduce")[0].split(" = ")[1])
    ]


@NEEDS_LIBTPU
@pytest.mark.parametrize(
    ("name", "chips"), [("v4:2x2x1", 4), ("v5e:1x1", 1), ("v5e:2x4", 8), ("v5p:2x2x1", 4), ("v6e:4x8", 32)]
)
def test_a_device_for_each_chip(name, chips):
    code = "from dcjax import aot\naot.leave_devices_alone()\nfrom dcjax.aot.topology import topology_mesh\n"
    code += f"mesh = topology_mesh({name!r})\nprint(mesh.size, mesh.axis_names)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == [str(chips), "('data',)"], done.stderr[-2000:]


@NEEDS_LIBTPU
def test_a_tpu_slice(tmp_path):
    found, text = compiled(tmp_path, "v5e:2x2")
    kinds = check_step(found)
    # Sums over devices: the gradients, and for each view the statistics of each norm forward and backward; the compiler
    # joins those that are ready together, so there are at most this many and at least one for each norm and direction.
    assert NORMS <= kinds["all-reduce"]["count"] <= 2 * (2 * NORMS + CONVOLUTIONS)
    assert set(sums_of_gradients(text)) == {"f32"}


@pytest.mark.skipif(
    not any(importlib.util.find_spec(f"jax_cuda{cuda}_plugin") for cuda in ("12", "13")),
    reason="needs the compiler for NVIDIA GPUs: pip install 'dcjax[cuda13]'",
)
@pytest.mark.parametrize("gpus", [1, 8])
def test_gpus(tmp_path, gpus):
    found, text = compiled(tmp_path, f"h100:1x1x{gpus}")
    kinds = check_step(found)
    if gpus == 1:
        assert not kinds
        return
    assert NORMS <= kinds["all-reduce"]["count"] <= 2 * (2 * NORMS + CONVOLUTIONS) + CONVOLUTIONS
    # Each device rounds its weight gradients to bfloat16 (`dcjax.models.conv`), but their sum over devices is float32.
    assert set(sums_of_gradients(text)) == {"f32"}
