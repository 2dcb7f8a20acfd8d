"""Reads the text of a compiled program: its instructions, how often each runs, and the bytes it moves in main memory.

XLA prints an optimised module as text (`jax.stages.Compiled.as_text`); there is no other form that Python can read
without a further package. Only what the accounting needs is parsed: shapes with their layouts, operands, the
computations that an instruction calls, trip counts of loops, and the name that JAX gave the operation.

The layout of a TPU's array names its tiles and its memory: `bf16[64,56,56,256]{3,0,2,1:T(8,128)(2,1)S(1)}` is padded to
whole tiles of 8 x 128 and lives in memory space 1, the scratch memory on the chip. Such arrays cost no traffic in HBM.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

# Bits of an element. Types without an entry (tokens) have no size.
BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
    "f8e4m3fn": 8, "f8e5m2": 8,
}  # fmt: skip
# Instructions that name memory and move nothing themselves, as does every one that ends in `-done`.
FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "async-update", "domain", "iota",
}  # fmt: skip
FREE_TARGETS = ("ConcatBitcast", "AllocateBuffer")  # custom calls of a TPU's program that only name memory
CALLING = ("while", "conditional", "call", "async-start")  # what they call is counted itself
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([0-9,<=]*)\](?:\{([^{}]*)\})?")
_TILE = re.compile(r"T((?:\([0-9,*]+\))+)")
_SPACE = re.compile(r"S\((\d+)\)")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?(%?[^\s=]+) = (.*)$")
_OPCODE = re.compile(r"\s*([a-z][a-z0-9-]*)\(")
_CALLED = re.compile(
    r"\b(?:calls|body|condition|to_apply|(?:branch|called|true|false)_computations?)=(\{[^}]*\}|%?[\w.\-]+)"
)
_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_TRIPS = re.compile(r'known_trip_count"?:\s*\{\s*"?n"?\s*:\s*"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of the program.

    Attributes:
      dtype: XLA's name of the element type, such as `bf16`.
      dims: the sides.
      minor_to_major: the axes from the one that lies densest in memory; empty for the default order.
      tile: sides of the tile that the last axes are padded to, the densest last; empty where nothing is padded.
      space: the memory space; 0 is the device's main memory.
    """

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of the elements, without padding."""
        return math.prod(self.dims) * BITS.get(self.dtype, 0) // 8

    @functools.cached_property
    def stored_bytes(self) -> int:
        """Bytes in memory, with the padding to whole tiles."""
        if not self.tile or not self.dims:
            return self.bytes
        order = self.minor_to_major or tuple(reversed(range(len(self.dims))))
        sides = [self.dims[axis] for axis in order]  # densest first
        for i, side in enumerate(reversed(self.tile)):
            if i < len(sides):
                sides[i] = -(-sides[i] // side) * side
        return math.prod(sides) * BITS.get(self.dtype, 0) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name: its name, unique in the module.
      opcode: XLA's operation, such as `fusion` or `all-reduce-start`.
      shapes: its result; several for a tuple, nested tuples flattened.
      operands: names of its operands.
      called: names of the computations that it calls.
      op_name: JAX's name of the operation, with the scopes around it; may be empty.
      attributes: the rest of its line.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    called: tuple[str, ...]
    op_name: str
    attributes: str

    @property
    def is_collective(self) -> bool:
        """Whether it starts an exchange between devices."""
        return self.opcode.removesuffix("-start") in COLLECTIVES


@dataclasses.dataclass(frozen=True)
class Computation:
    """A list of instructions in order; the last one that is marked ROOT gives the result."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    @functools.cached_property
    def parameters(self) -> dict[int, str]:
        """Names of the parameters by their number."""
        found = {}
        for instruction in self.instructions.values():
            if instruction.opcode == "parameter":
                found[int(re.match(r"(\d+)", instruction.attributes).group(1))] = instruction.name  # pyright: ignore
        return found

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each result."""
        found: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for operand in instruction.operands:
                found.setdefault(operand, []).append(instruction)
        return found


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      computations: its computations by name.
      entry: name of the one that runs.
      device_spaces: the memory spaces that lie in the device's main memory.
    """

    computations: dict[str, Computation]
    entry: str
    device_spaces: frozenset[int]

    def executed(self) -> Iterator[tuple[Computation, Instruction, float]]:
        """Every instruction that runs, with its computation and how often it runs in one call of the program.

        A fusion counts as one instruction. Of the branches of a conditional, all count, each as its equal share.
        """
        yield from self._executed(self.entry, 1.0)

    def _executed(self, name: str, times: float) -> Iterator[tuple[Computation, Instruction, float]]:
        computation = self.computations[name]
        for instruction in computation.instructions.values():
            yield computation, instruction, times
            if instruction.opcode in CALLING and not instruction.called:
                raise ValueError(f"{instruction.name} calls no computation: {instruction.attributes[:80]}")
            if instruction.opcode == "while":
                trips = self.trips(instruction)
                for called in instruction.called:
                    yield from self._executed(called, times * trips)
            elif instruction.opcode == "conditional":
                for called in instruction.called:
                    yield from self._executed(called, times / len(instruction.called))
            elif instruction.opcode in ("call", "async-start"):
                for called in instruction.called:
                    yield from self._executed(called, times)

    def trips(self, loop: Instruction) -> int:
        """How often the body of a `while` runs: as XLA says, or the constant that its counter, from 0, stays below.

        A loop whose length is not known when the program is compiled counts once.
        """
        if known := _TRIPS.search(loop.attributes):
            return int(known.group(1))
        condition = re.search(r"\bcondition=(%?[\w.\-]+)", loop.attributes)
        if not condition:
            return 1
        instructions = list(self.computations[condition.group(1).lstrip("%")].instructions.values())
        comparisons = [i for i in instructions if i.opcode == "compare" and "direction=LT" in i.attributes]
        constants = {i.name: i for i in instructions if i.opcode == "constant"}
        for comparison in comparisons:
            limit = constants.get(comparison.operands[-1])
            if limit is not None and (number := re.match(r"(\d+)\)", limit.attributes)):
                return int(number.group(1))
        return 1

    def main_memory_bytes(self, shape: Shape) -> int:
        """Bytes of an array in the device's main memory, 0 if it lives elsewhere."""
        return shape.stored_bytes if shape.space in self.device_spaces else 0

    def traffic(self, computation: Computation, instruction: Instruction) -> int:
        """Bytes of main memory that one instruction reads and writes.

        Each operand is read once and each result written once. Operands of which only a slice is used count with the
        slice, and results that are written in place with the part that changes. XLA's own count of a TPU's program is
        higher: it includes the scratch memory on the chip.
        """
        opcode = instruction.opcode
        if opcode in FREE or opcode in CALLING or opcode.endswith("-done"):
            return 0
        if opcode == "custom-call" and any(f'target="{name}"' in instruction.attributes for name in FREE_TARGETS):
            return 0
        size = self.main_memory_bytes

        def operand(index: int) -> Shape:
            return computation.instructions[instruction.operands[index]].shapes[0]

        if opcode in ("copy-start", "slice-start"):  # (destination, source, ...) or ((source), destination, ...)
            copied = instruction.shapes[0] if opcode == "copy-start" else instruction.shapes[1]
            source = operand(0)
            in_source = dataclasses.replace(copied, space=source.space)
            return size(copied) + size(in_source)
        if opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * size(instruction.shapes[0])
        if opcode == "dynamic-update-slice":
            return 2 * size(operand(1))
        if opcode == "fusion":
            return self._fusion_traffic(computation, instruction)
        read = sum(
            size(shape)
            for name in dict.fromkeys(instruction.operands)
            for shape in computation.instructions[name].shapes
        )
        shown = sum(map(size, instruction.shapes))
        if opcode.endswith("-start") and opcode != "all-reduce-start":
            return shown  # operands and results are one tuple
        return read + shown

    def _fusion_traffic(self, computation: Computation, fusion: Instruction) -> int:
        fused = self.computations[fusion.called[0]]
        size, total = self.main_memory_bytes, 0
        root = fused.instructions[fused.root]
        results = [fused.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
        for result, shape in zip(results, fusion.shapes, strict=False):
            source = _through_bitcasts(fused, result)
            if source.opcode == "dynamic-update-slice":  # in place
                update = fused.instructions[source.operands[1]].shapes[0]
                total += size(dataclasses.replace(update, space=shape.space))
            else:
                total += size(shape)
        for number, name in enumerate(fusion.operands):
            shapes = computation.instructions[name].shapes
            whole = sum(map(size, shapes))
            total += min(whole, self._read_of(fused, fused.parameters.get(number), shapes[0].space, whole))
        return total

    def _read_of(self, fused: Computation, parameter: str | None, space: int, whole: int) -> int:
        """Bytes of a parameter that a fusion reads: the slices, nothing for an update in place, or the whole."""
        total, waiting = 0, [parameter or ""]
        while waiting:
            name = waiting.pop()
            for user in fused.users.get(name, ()):
                if user.opcode == "bitcast":
                    waiting.append(user.name)
                elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                    total += self.main_memory_bytes(dataclasses.replace(user.shapes[0], space=space))
                elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
                    return whole
        return total


def _through_bitcasts(computation: Computation, instruction: Instruction) -> Instruction:
    while instruction.opcode == "bitcast" and instruction.operands:
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def parse(text: str, *, device_spaces: frozenset[int] = frozenset({0})) -> Module:
    """Reads the text of an optimised module.

    Args:
      text: what `jax.stages.Compiled.as_text()` returns.
      device_spaces: the memory spaces in the device's main memory: `{0}` on a TPU, whose space 1 lies on the chip;
        `{0, 1}` on a GPU, where 1 is memory that other GPUs can reach.

    Returns:
      The module.

    Raises:
      ValueError: the text holds no module.
    """
    computations: dict[str, Computation] = {}
    entry, name, root = "", "", ""
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if not name:
            if line.endswith("{") and (line.startswith(("%", "ENTRY ")) or re.match(r"[\w.\-]+ .*\{$", line)):
                if line.startswith("HloModule"):
                    continue
                name = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
                entry = name if line.startswith("ENTRY ") else entry
                instructions, root = {}, ""
            continue
        if line.startswith("}"):
            computations[name] = Computation(name, instructions, root)
            name = ""
            continue
        if found := _INSTRUCTION.match(line):
            instruction = _parse_instruction(found.group(2).lstrip("%"), found.group(3))
            instructions[instruction.name] = instruction
            root = instruction.name if found.group(1) else root
    if entry not in computations:
        raise ValueError("found no ENTRY computation in the text; expected an optimised HLO module")
    return Module(computations, entry, device_spaces)


def _parse_instruction(name: str, rest: str) -> Instruction:
    end = _end_of_type(rest)
    type_text, rest = rest[:end], rest[end:]
    opcode = _OPCODE.match(rest)
    if not opcode:
        raise ValueError(f"cannot read the instruction {name}: {rest[:80]}")
    closing = _closing(rest, opcode.end() - 1)
    arguments, attributes = rest[opcode.end() : closing], rest[closing + 1 :]
    operands = tuple(re.findall(r"%([^\s,()]+)", arguments))
    if not operands and arguments and opcode.group(1) not in ("parameter", "constant", "iota", "replica-id"):
        raise ValueError(f"the instruction {name} has operands without %: {rest[:80]}")
    called = tuple(
        word.lstrip("%") for group in _CALLED.findall(attributes) for word in re.findall(r"%?[\w.\-]+", group)
    )
    named = _NAME.search(attributes)
    if opcode.group(1) in ("parameter", "constant"):
        attributes = f"{arguments}){attributes}"
    return Instruction(
        name=name,
        opcode=opcode.group(1),
        shapes=parse_shapes(type_text),
        operands=operands,
        called=called,
        op_name=named.group(1) if named else "",
        attributes=attributes,
    )


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a type as XLA prints it, such as `(f32[8]{0}, bf16[4,2]{1,0:T(8,128)(2,1)S(1)})`."""
    shapes = []
    for dtype, dims, layout in _SHAPE.findall(text):
        order, _, details = layout.partition(":")
        tile, space = _TILE.search(details), _SPACE.search(details)
        first = tile.group(1)[1:].split(")")[0] if tile else ""
        shapes.append(
            Shape(
                dtype,
                tuple(int(side.lstrip("<=")) for side in dims.split(",") if side),
                tuple(int(axis) for axis in order.split(",") if axis.strip()),
                tuple(int(side) for side in first.split(",") if side and side != "*"),
                int(space.group(1)) if space else 0,
            )
        )
    return tuple(shapes)


def _end_of_type(text: str) -> int:
    """Where the type at the start of an instruction ends: after its closing parenthesis, or at its first blank."""
    return _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")


def _closing(text: str, start: int) -> int:
    """The place of the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if not depth:
                return place
    raise ValueError(f"no closing parenthesis: {text[start : start + 80]}")
