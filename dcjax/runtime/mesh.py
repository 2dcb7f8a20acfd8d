"""The device mesh and the two shardings of the package: batches split over it, everything else on every device."""

import importlib.util
import itertools
import mmap
import os
import pathlib

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dcjax.runtime.errors import SettingError

BATCH_AXIS = "data"

# With XLA's default schedule of a CPU program, each device starts independent collectives, such as those of the two
# views, in an order of its own. The devices of a process then wait for each other without end, and several processes
# end with a mismatch (seen with jaxlib 0.10.2). Either flag chooses a schedule with one order: the first has an effect
# from jax 0.7.2 to 0.12.0 and is deprecated since 0.9.1, the second came with 0.9.1. As an option of `jax.jit` the flag
# has no effect; the environment is read when the first device is used.
ORDERED_SCHEDULES = (
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",
    "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
)


def start_processes(
    address: str | None, processes: int | None, process: int | None, *, heartbeat_timeout_seconds: int
) -> None:
    """Joins the processes of a run; to be called before anything touches a device.

    Args:
      address: `host:port` of process 0; None where JAX detects the cluster itself (TPU pod slices, Slurm, Open MPI).
      processes: the number of processes; None as above.
      process: the number of this process, from 0; None as above.
      heartbeat_timeout_seconds: a process that is silent for so long counts as dead, and the others end.

    Raises:
      SettingError: JAX detects no cluster. If process 0 does not answer, JAX itself ends this process after five
        minutes.
    """
    order_cpu_collectives()
    try:
        jax.distributed.initialize(address, processes, process, heartbeat_timeout_seconds=heartbeat_timeout_seconds)
    except (RuntimeError, ValueError) as error:
        raise SettingError(
            f"the processes of the run could not be joined ({error}); where JAX detects no cluster, give each process "
            "--coordinator_address=HOST:PORT --num_processes=N --process_id=I"
        ) from error
    if jax.default_backend() == "cpu":
        # With programs from the cache, 5 of 6 runs of two processes ended with mismatched collectives; with freshly
        # compiled ones, none of 4 did (jaxlib 0.10.2).
        jax.config.update("jax_enable_compilation_cache", False)
    told_to_stop()


_questions = itertools.count()


def told_to_stop() -> bool:
    """Whether JAX's preemption service tells all processes of a run to stop now; all have to ask equally often.

    After a signal to any process, the service answers yes to one question alone, the one whose number follows that of
    the last question that any process had asked. So they are numbered here, and `start_processes` asks the first one.
    """
    return multihost_utils.reached_preemption_sync_point(next(_questions))


def make_mesh(devices: int = 0) -> Mesh:
    """A one-dimensional mesh with the axis `data` over the run's devices.

    Args:
      devices: how many of the devices to use; 0 for all, of all processes.

    Returns:
      The mesh. Its axis is Auto: the compiler partitions, as the global `jax.jit` step expects.

    Raises:
      SettingError: `devices` is negative or more than there are, or several processes are to use only a part of them.
    """
    virtual = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if virtual or getattr(jax.config, "jax_num_cpu_devices", 0) > 1:
        order_cpu_collectives()
    available = jax.devices()
    if devices < 0 or devices > len(available):
        raise SettingError(f"devices must be from 1 to the {len(available)} present, or 0 for all, found {devices}")
    if devices and jax.process_count() > 1 and devices != len(available):
        raise SettingError(f"devices must be 0 (all) with {jax.process_count()} processes, found {devices}")
    count = devices or len(available)
    return jax.make_mesh((count,), (BATCH_AXIS,), devices=available[:count], axis_types=(jax.sharding.AxisType.Auto,))


def order_cpu_collectives() -> None:
    """Adds a flag of `ORDERED_SCHEDULES` to `XLA_FLAGS`, unless the user has set one, before a device is used."""
    flags = os.environ.get("XLA_FLAGS", "")
    if not any(flag.partition("=")[0] in flags for flag in ORDERED_SCHEDULES):
        known = next(filter(_known_to_xla, ORDERED_SCHEDULES), "")
        os.environ["XLA_FLAGS"] = f"{flags} {known}".strip()


def _known_to_xla(flag: str) -> bool:
    # XLA ends the process if it does not know a flag. Its library contains the name of every flag that it knows, so
    # this search also holds for later versions; it finds the first name within milliseconds.
    spec = importlib.util.find_spec("jaxlib")
    library = pathlib.Path(spec.origin).parent / "libjax_common.so" if spec and spec.origin else None
    if library is None or not library.is_file():
        return False
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(flag.removeprefix("--").partition("=")[0].encode()) >= 0


def platform(mesh: Mesh) -> str:
    """The platform of a mesh's devices, `cpu`, `gpu` or `tpu`; the devices of a topology need not be there."""
    found = mesh.devices.flat[0].platform
    return "gpu" if found in ("cuda", "rocm") else found


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of the state: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its rows split over the devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def check_batch(batch_size: int, mesh: Mesh, *, setting: str = "batch_size") -> None:
    """Raises `SettingError`, naming the setting, if the devices do not divide the global batch."""
    if batch_size < 1 or batch_size % mesh.size:
        lower = batch_size // mesh.size * mesh.size
        near = f"{lower} or {lower + mesh.size}" if lower > 0 else f"{mesh.size}"
        raise SettingError(
            f"{setting} must be a multiple of the {mesh.size} device(s), e.g. {near}; found {batch_size}"
        )


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's share of a batch on its devices as part of the global batch.

    Args:
      batch: arrays `[n / processes, ...]`.
      mesh: the mesh of `make_mesh`.

    Returns:
      Global arrays `[n, ...]` sharded over `data`. The transfer is asynchronous.
    """
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def own_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of a global array that is sharded over `data`: the inverse of `to_devices`."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def from_processes(array: np.ndarray) -> np.ndarray:
    """Gathers the arrays of all processes on every process, bit for bit.

    Args:
      array: this process's array; its shape and dtype are the same on every process.

    Returns:
      `[processes, ...]`. With several processes, every device holds it too while it is gathered.
    """
    if jax.process_count() == 1:
        return array[None]
    gathered = multihost_utils.process_allgather(_as_bytes(array))
    return gathered.view(array.dtype).reshape(jax.process_count(), *array.shape)


def from_process(array: np.ndarray, process: int) -> np.ndarray:
    """Sends the array of one process to all, bit for bit; `array` has the same shape and dtype on every process."""
    received = multihost_utils.broadcast_one_to_all(_as_bytes(array), is_source=jax.process_index() == process)
    return np.asarray(received, np.uint8).view(array.dtype).reshape(array.shape)


def _as_bytes(array: np.ndarray) -> np.ndarray:
    """The array as bytes, since JAX would round 64-bit numbers to 32 bits in the transfer."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
