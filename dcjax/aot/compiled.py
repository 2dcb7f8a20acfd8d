"""The training step compiled for a topology: whether it fits, what it moves and computes, and a bound on its time."""

import contextlib
import dataclasses
import os
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh

from dcjax.aot import accounts, hlo
from dcjax.aot.chips import Chip
from dcjax.aot.minimum import least_bytes
from dcjax.components import make_modules
from dcjax.data import Augmentation
from dcjax.models import Network
from dcjax.program import compile_step, make_optimizer, make_schedule, step_arguments
from dcjax.runtime.mesh import check_batch, platform
from dcjax.schema import Config, section

GPU_SHARE = 0.75  # of a GPU's memory is what JAX takes unless the environment says otherwise
_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a device's main memory. Of the outputs, `aliased` bytes take the place of arguments."""

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """What the program needs while it runs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """What the compiler made of a step, per device.

    Attributes:
      batch_size: the global batch.
      devices: how many devices share it.
      memory: bytes of main memory; None where the program does not fit and the compiler therefore ended.
      used: bytes that the program needs, also where it does not fit.
      capacity: bytes that it may use; None where no bound is known (CPU).
      flops: operations a call, by the compiler's count and the turns of loops that it leaves out; on a GPU, whose
        compiler does not count, those of convolutions and matrix products.
      compiler_bytes: memory traffic of a call by the compiler's own count, which on a TPU includes the scratch memory
        on the chip, and counts the body of a loop once; 0 without one.
      bytes_by_part: main memory traffic of a call by part of the step.
      least_by_part: the same as the algorithm needs it.
      collectives: exchanges between devices.
      host_transfers: instructions that exchange data with the host.
      lower_seconds, compile_seconds: time of tracing and of compiling.
      text: the optimised program.
    """

    batch_size: int
    devices: int
    memory: Memory | None
    used: int
    capacity: int | None
    flops: float = 0.0
    compiler_bytes: float = 0.0
    bytes_by_part: dict[str, int] = dataclasses.field(default_factory=dict)
    least_by_part: dict[str, int] = dataclasses.field(default_factory=dict)
    collectives: list[accounts.Collective] = dataclasses.field(default_factory=list)
    host_transfers: list[str] = dataclasses.field(default_factory=list)
    lower_seconds: float = 0.0
    compile_seconds: float = 0.0
    text: str = dataclasses.field(default="", repr=False)

    @property
    def fits(self) -> bool:
        """Whether the program runs within the memory of the device."""
        return self.memory is not None and (self.capacity is None or self.used <= self.capacity)

    def bound(self, chip: Chip, *, hosts: int = 1) -> dict[str, float]:
        """Seconds that arithmetic, main memory and the network each need at least, at the chip's published peaks.

        Between hosts, the devices of a host share the traffic: each has a connection of its own.
        """
        network = sum(each.sent(self.devices) for each in self.collectives) / chip.network
        if hosts > 1 and chip.network_between_hosts:
            connections = self.devices // hosts * chip.network_between_hosts
            network = max(network, sum(each.sent(hosts) for each in self.collectives) / connections)
        return {
            "arithmetic": self.flops / chip.flops,
            "memory": sum(self.bytes_by_part.values()) / chip.bandwidth,
            "network": network,
        }


def compile_for(config: Config, mesh: Mesh, *, classes: int, images: int, capacity: float | None) -> CompiledStep:
    """Compiles the training step of a config for the devices of a mesh; no data is opened and no device is used.

    Args:
      config: the checked config.
      mesh: the devices, of `dcjax.aot.topology.topology_mesh` or `dcjax.runtime.mesh.make_mesh`.
      classes: classes of the online classifier; the data set is not opened.
      images: training images, from which the schedule takes its lengths; nothing else depends on them.
      capacity: bytes of main memory of a device; None where no bound is known.

    Returns:
      The compiled step, also where it does not fit.

    Raises:
      SettingError: the devices do not divide the batch, or a setting cannot be used.
    """
    check_batch(config.batch_size, mesh)
    kind = platform(mesh)
    network = Network(*make_modules(config, platform=kind), classes=classes)
    schedule = make_schedule(config, max(images, config.batch_size))
    optimizer = make_optimizer(config, schedule)
    with section("augment"):
        augmentation = Augmentation(**dataclasses.asdict(config.augment))
        augmentation.check_size(config.data.image_size)
    step = compile_step(config, network, optimizer, schedule, augmentation=augmentation, mesh=mesh)
    start = time.perf_counter()
    lowered = step.lower(*step_arguments(config, network, optimizer, mesh))
    lowered_at = time.perf_counter()
    usable = None if capacity is None else round(capacity * (_gpu_share() if kind == "gpu" else 1.0))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = _USED.search(str(error))
        if not found:
            raise  # an error of the compiler
        used, most = (round(float(found.group(i)) * _UNITS[found.group(i + 1)]) for i in (1, 3))
        return CompiledStep(config.batch_size, mesh.size, None, used, most)
    end = time.perf_counter()
    found: Any = compiled.memory_analysis()
    memory = Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
        found.alias_size_in_bytes,
        found.temp_size_in_bytes,
        found.generated_code_size_in_bytes,
    )
    text = compiled.as_text() or ""
    module = hlo.parse(text, device_spaces=frozenset({0} if kind == "tpu" else {0, 1}))
    counted: Any = compiled.cost_analysis() or {}
    own_flops = float(counted.get("flops", 0))
    whole = config.data.stored_size or 0
    return CompiledStep(
        batch_size=config.batch_size,
        devices=mesh.size,
        memory=memory,
        used=memory.total,
        capacity=usable,
        flops=accounts.product_flops(module, repeated=bool(own_flops)) + own_flops,
        compiler_bytes=float(counted.get("bytes accessed", 0)),
        bytes_by_part=accounts.bytes_by_part(module),
        least_by_part=least_bytes(
            network, image_size=config.data.image_size, pairs=config.batch_size // mesh.size, whole_side=whole
        ),
        collectives=accounts.collectives(module),
        host_transfers=accounts.host_transfers(module),
        lower_seconds=lowered_at - start,
        compile_seconds=end - lowered_at,
        text=text,
    )


def _gpu_share() -> float:
    """The share of a GPU's memory that JAX takes; an environment variable with its old and its new name sets it."""
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        with contextlib.suppress(KeyError, ValueError):
            return float(os.environ[name])
    return GPU_SHARE
