"""Published facts about accelerators: memory, arithmetic, bandwidths. Nothing in this table was measured."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of a topology, as its vendor describes it.

    Attributes:
      name: the vendor's name.
      memory: bytes of main memory (HBM).
      flops: operations a second of dense bfloat16 matrix products, a multiplication and an addition as two.
      bandwidth: bytes a second between the chip and its main memory.
      network: bytes a second that a device sends to the others of its slice or host, in one direction.
      network_between_hosts: the same where the others are on another host; None where the network is the same.
      source: the page that says so.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    network: float
    source: str
    network_between_hosts: float | None = None


GIB = 2**30
_TPU = "https://cloud.google.com/tpu/docs/"  # read in November 2026
_NVIDIA = "https://www.nvidia.com/en-us/data-center/h100/"
CHIPS = {
    "v4": Chip("TPU v4", 32 * GIB, 275e12, 1200e9, 300e9, _TPU + "v4"),
    "v5e": Chip("TPU v5e", 16 * GIB, 197e12, 819e9, 200e9, _TPU + "v5e"),
    "v5p": Chip("TPU v5p", 95 * GIB, 459e12, 2765e9, 600e9, _TPU + "v5p"),
    "v6e": Chip("TPU v6e", 32 * GIB, 918e12, 1640e9, 400e9, _TPU + "v6e"),
    # Between hosts: one ConnectX-7 of 400 Gb/s for each GPU, as in NVIDIA's DGX H100.
    "h100": Chip("NVIDIA H100 SXM", 84_942_979_072, 989.4e12, 3352e9, 450e9, _NVIDIA, network_between_hosts=50e9),
}

# The shapes of slices that Google Cloud offers, from a single chip to the largest that fits these pages. A TPU v4 or
# v5p has them in three dimensions.
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SOLID = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
TPU_SHAPES = {"v4": SOLID, "v5e": FLAT, "v5p": SOLID, "v6e": FLAT}

# An H100 (SXM) as XLA's GPU compiler wants it described, in the text form of its `GpuTargetConfigProto`. The limits are
# those of compute capability 9.0 in NVIDIA's CUDA programming guide.
H100_TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
