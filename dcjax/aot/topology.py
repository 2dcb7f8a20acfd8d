"""From the name of a topology, such as `v5e:4x8`, to a mesh of devices that need not be there."""

import contextlib
import importlib.metadata
import importlib.util
import re
from typing import Any

import jax
import jax.extend
import jaxlib
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from dcjax.aot import quiet_plugins
from dcjax.aot.chips import H100_TARGET, TPU_SHAPES
from dcjax.runtime.errors import SettingError
from dcjax.runtime.mesh import BATCH_AXIS, make_mesh, order_cpu_collectives

KNOWN = "cpu:N; " + "; ".join(f"{chip}:{', '.join(shapes)}" for chip, shapes in TPU_SHAPES.items())
KNOWN += "; h100:SLICESxHOSTSxGPUS, e.g. h100:1x1x8"


def topology_mesh(name: str) -> Mesh:
    """A mesh over the devices of a topology, as `dcjax.runtime.mesh.make_mesh` makes it of devices that are here.

    Args:
      name: a chip and a shape: `v4:2x2x1`, `v5e:4x8`, `v5p:2x4x4`, `v6e:4x8`, `h100:1x4x8` (slices, hosts and GPUs of a
        host), or `cpu:8`.

    Raises:
      SettingError: the topology is not known, or its compiler is not installed, is that of another JAX, or fails.
    """
    chip, _, shape = name.partition(":")
    if chip == "cpu" and re.fullmatch(r"[1-9]\d*", shape):
        return _cpu_mesh(name, int(shape))
    if chip == "h100" and re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", shape):
        _need_cuda(name)
        return _mesh(name, "cuda", topology=shape, target_config=H100_TARGET)
    if shape in TPU_SHAPES.get(chip, ()):
        _need_libtpu(name)
        options: dict[str, Any] = {}
        if shape == "1x1":
            options["chips_per_host_bounds"] = [1, 1, 1]  # the default host has 2 x 2 chips
        if chip == "v4":
            options["chip_config_name"] = "megacore"  # both cores of a chip as one device, as on Google Cloud
        return _mesh(name, "tpu", topology_name=name, **options)
    raise SettingError(f"--topology '{name}' is not known; known: {KNOWN}")


def topology_hosts(name: str) -> int:
    """How many hosts a topology has, where the network between them is another than inside of one; else 1."""
    chip, _, shape = name.partition(":")
    if chip != "h100":
        return 1
    slices, hosts, _ = (int(side) for side in shape.split("x"))
    return slices * hosts


def _mesh(name: str, platform: str, **options: Any) -> Mesh:
    try:
        with quiet_plugins():
            devices = topologies.get_topology_desc(platform=platform, **options).devices
    except Exception as error:  # the plugins raise errors of many kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        other = _other_libtpu() if platform == "tpu" else ""
        message = f"--topology '{name}': its compiler cannot be used ({reason})"
        raise SettingError(f"{message}; {other}" if other else message) from error
    return Mesh(np.array(devices), (BATCH_AXIS,), axis_types=(AxisType.Auto,))


def _cpu_mesh(name: str, count: int) -> Mesh:
    order_cpu_collectives()
    with quiet_plugins():
        jax.devices("cpu")
    if len(jax.devices("cpu")) < count and not _more_cpu_devices(count):
        found = len(jax.devices("cpu"))
        raise SettingError(f"--topology '{name}' needs {count} devices, but JAX has started with {found} already")
    return make_mesh(count)


def _more_cpu_devices(count: int) -> bool:
    """Restarts JAX's CPU platform with this many devices; False where this version of JAX cannot."""
    try:
        jax.extend.backend.clear_backends()
        jax.config.update("jax_num_cpu_devices", count)
    except (AttributeError, RuntimeError):
        return False
    return len(jax.devices("cpu")) >= count


def _need_libtpu(name: str) -> None:
    if importlib.util.find_spec("libtpu") is None:
        raise SettingError(f"--topology '{name}' needs the TPU compiler, which is not installed; {_remedy('tpu')}")


def _need_cuda(name: str) -> None:
    found = {}
    for cuda in ("12", "13"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[f"jax-cuda{cuda}-plugin"] = importlib.metadata.version(f"jax-cuda{cuda}-plugin")
    if not found:
        raise SettingError(f"--topology '{name}' needs a compiler for GPUs, which is not installed; {_remedy('cuda')}")
    if jaxlib.__version__ not in found.values():
        plugins = " and ".join(f"{plugin} is {version}" for plugin, version in found.items())
        raise SettingError(f"--topology '{name}': {plugins}, but jaxlib is {jaxlib.__version__}; {_remedy('cuda')}")


def _other_libtpu() -> str:
    """The installed libtpu and the one that this JAX asks for, where they differ; else an empty text."""
    wanted = [line for line in importlib.metadata.requires("jax") or () if line.startswith("libtpu")]
    found = importlib.metadata.version("libtpu")
    prefix = re.match(r"libtpu==([\d.]*?)\.?\*", wanted[0]) if wanted else None
    if prefix is None or f"{found}.".startswith(f"{prefix.group(1)}."):
        return ""
    return f"libtpu is {found}, but this JAX asks for {prefix.group(1)}; {_remedy('tpu')}"


def _remedy(platform: str) -> str:
    """What to install, for the JAX that is here."""
    if platform == "tpu":
        return f"pip install 'jax[tpu]=={jax.__version__}'"
    plugins = " ".join(f"jax-cuda12-{part}=={jax.__version__}" for part in ("plugin", "pjrt"))
    return f"pip install --no-deps {plugins} nvidia-cuda-nvcc-cu12 (no GPU is needed)"
