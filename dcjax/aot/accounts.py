"""Counts over a compiled program: bytes by part of the step, exchanges between devices, matrix products."""

import dataclasses
import math
import re
from collections import Counter, defaultdict

from dcjax.aot.hlo import Instruction, Module
from dcjax.aot.parts import PARTS, part_of

_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_CUDNN_FORWARD = re.compile(r"__cudnn\$conv\w*Forward")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """The exchanges of one kind in one call of the program, on one device.

    Attributes:
      kind: XLA's name, such as `all-reduce`.
      count: how many are started.
      arrays: how many arrays they exchange; a single all-reduce may take many.
      bytes: bytes of these arrays, as each device hands them in.
    """

    kind: str
    count: int
    arrays: int
    bytes: int

    def sent(self, devices: int) -> float:
        """Bytes that a device sends at least, to its neighbour in a ring."""
        share = (devices - 1) / devices
        # A gather hands on every shard but one; a sum is a scattered sum and a gather of its parts.
        factors = {"all-reduce": 2 * share, "all-gather": devices - 1, "collective-permute": 1.0}
        return factors.get(self.kind, share) * self.bytes


def bytes_by_part(module: Module) -> dict[str, int]:
    """Bytes of main memory that one call reads and writes on a device, for each of `PARTS`."""
    found: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for computation, instruction, times in module.executed():
        if size := module.traffic(computation, instruction):
            found[part_of(module, computation, instruction)] += times * size
    return {part: round(size) for part, size in found.items()}


def collectives(module: Module) -> list[Collective]:
    """The exchanges between devices in one call, by kind; loops count with their trips."""
    counts: Counter[str] = Counter()
    arrays: Counter[str] = Counter()
    sizes: defaultdict[str, float] = defaultdict(float)
    for computation, instruction, times in module.executed():
        if instruction.is_collective:
            kind = instruction.opcode.removesuffix("-start")
            exchanged = [shape for name in instruction.operands for shape in computation.instructions[name].shapes]
            counts[kind] += round(times)
            arrays[kind] += round(times) * len(exchanged)
            sizes[kind] += times * sum(shape.bytes for shape in exchanged)
    return [Collective(kind, counts[kind], arrays[kind], round(sizes[kind])) for kind in sorted(counts)]


def host_transfers(module: Module) -> list[str]:
    """Names of the instructions that exchange data with the host."""
    kinds = {"infeed", "outfeed", "send", "recv"}
    return [instruction.name for _, instruction, _ in module.executed() if instruction.opcode in kinds]


def product_flops(module: Module, *, repeated: bool = False) -> float:
    """Operations of the convolutions and matrix products of one call, a multiplication and an addition as two.

    Positions in the padding count as well, and so do the zeros between the rows of a dilated image.

    Args:
      module: the program.
      repeated: count only the second and later turns of loops, which the compilers' own counts leave out.
    """
    total = 0.0
    for computation, instruction, times in module.executed():
        turns = max(times - 1, 0) if repeated else times
        inside = [(computation, instruction)] if turns else []
        while inside:
            where, inner = inside.pop()
            if inner.opcode == "fusion":
                fused = [module.computations[name] for name in inner.called]
                inside.extend((each, i) for each in fused for i in each.instructions.values())
            total += turns * _flops(where.instructions, inner)
    return total


def _flops(around: dict[str, Instruction], instruction: Instruction) -> float:
    def dims(index: int) -> tuple[int, ...]:
        return around[instruction.operands[index]].shapes[0].dims

    result = instruction.shapes[0].dims if instruction.shapes else ()
    if instruction.opcode == "dot" or "__cublas$" in instruction.attributes:
        contracted = _CONTRACTED.search(instruction.attributes) or re.search(
            r'"lhs_contracting_dimensions":\["(\d+)"\]', instruction.attributes
        )
        axes = [int(axis) for axis in contracted.group(1).split(",") if axis] if contracted else []
        return 2.0 * math.prod(result) * math.prod(dims(0)[axis] for axis in axes)
    labels = _LABELS.search(instruction.attributes)
    if not labels:
        return 0.0
    image, kernel, output = dims(0), dims(1), result
    if "convBackwardInput" in instruction.attributes:
        image, output = output, image
    elif "convBackwardFilter" in instruction.attributes:
        kernel, output = output, kernel
    elif instruction.opcode != "convolution" and not _CUDNN_FORWARD.search(instruction.attributes):
        return 0.0
    features = output[labels.group(3).index("f")]
    return 2.0 * math.prod(output) / features * math.prod(kernel)
