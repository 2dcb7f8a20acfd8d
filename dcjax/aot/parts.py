"""The parts of the training step, by the names that JAX gives its operations: the scopes and modules around them."""

import re
from collections.abc import Callable

from dcjax.aot.hlo import Computation, Instruction, Module

# In the order in which tables list them.
AUGMENTATION = "augmentation"
FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = (
    "convolutions, forward",
    "convolutions, input gradient",
    "convolutions, weight gradient",
)
BATCH_NORM = "batch normalisation alone"
RESIDUAL = "residual sums and ReLU"
MAX_POOL = "max pool"
HEADS = "projector and classifier"
LOSS = "loss"
OPTIMIZER = "optimiser"
SCALARS = "scalars of the log"
OTHER = "other"
PARTS = (
    AUGMENTATION, FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, BATCH_NORM, RESIDUAL, MAX_POOL, HEADS, LOSS, OPTIMIZER,
    SCALARS, OTHER,
)  # fmt: skip

_WORDS = re.compile(r"\w+")
_CUDNN = re.compile(r'custom_call_target="__cu(dnn\$conv|blas\$)')
# An operation that gives a fusion its name, the more costly first: what else is fused with it comes along.
_HEROES: tuple[Callable[[Instruction], bool], ...] = (
    lambda i: i.opcode in ("convolution", "dot") or _CUDNN.search(i.attributes) is not None,
    lambda i: i.opcode in ("select-and-scatter", "reduce-window", "scatter", "sort"),
)


def part_of_name(op_name: str, *, convolution: bool = False) -> str:
    """The part of the step that an operation belongs to, by its name alone.

    Args:
      op_name: JAX's name, such as `jit(train_step)/transpose(jvp(Network))/encoder/layer1_0/conv1/weight_gradient/...`.
      convolution: whether the operation is a convolution or a matrix product.

    Returns:
      One of `PARTS`.
    """
    words = _WORDS.findall(op_name)
    for word, part in (
        ("augment", AUGMENTATION),
        ("scalars", SCALARS),
        ("optimizer", OPTIMIZER),
        ("loss", LOSS),
        ("projector", HEADS),
        ("classifier", HEADS),
    ):
        if word in words:
            return part
    if "encoder" not in words:
        return OTHER
    if "weight_gradient" in words:
        return WEIGHT_GRADIENT
    if "input_gradient" in words:
        return INPUT_GRADIENT
    if convolution:
        return FORWARD
    if any("reduce_window" in word or "select_and_scatter" in word for word in words):
        return MAX_POOL
    if any(re.fullmatch(r"(\w+_)?bn\d*", word) for word in words):
        return BATCH_NORM
    if any(re.fullmatch(r"(\w+_)?conv\d*", word) for word in words):
        return FORWARD  # the cast of a kernel, or its copy
    return RESIDUAL


def part_of(module: Module, computation: Computation, instruction: Instruction) -> str:
    """The part of the step that an instruction belongs to.

    A fusion belongs to the convolution inside it, if there is one, and else to the operation that XLA names it by. What
    has no name (copies that the compiler adds) belongs to the first named instruction that uses its result, and where
    there is none, to the one that its operand comes from.
    """
    hero = _hero(module, instruction)
    if hero.op_name:
        return part_of_name(hero.op_name, convolution=_HEROES[0](hero))
    seen, waiting = {instruction.name}, [instruction]
    while waiting:
        for user in computation.users.get(waiting.pop(0).name, ()):
            hero = _hero(module, user)
            if hero.op_name and user.opcode not in ("while", "conditional"):
                return part_of_name(hero.op_name, convolution=_HEROES[0](hero))
            if user.name not in seen:
                seen.add(user.name)
                waiting.append(user)
    source = instruction
    while source.operands:
        source = computation.instructions[source.operands[0]]
        hero = _hero(module, source)
        if hero.op_name and source.opcode not in ("while", "conditional", "parameter"):
            return part_of_name(hero.op_name, convolution=_HEROES[0](hero))
    return OTHER


def _hero(module: Module, instruction: Instruction) -> Instruction:
    """The instruction inside a fusion that stands for it; any other instruction stands for itself."""
    if instruction.opcode != "fusion":
        return instruction
    inside, waiting = [], list(instruction.called)
    while waiting:
        for inner in module.computations[waiting.pop()].instructions.values():
            inside.append(inner)
            if inner.opcode == "fusion":
                waiting.extend(inner.called)
    for is_hero in _HEROES:
        for inner in inside:
            if inner.op_name and is_hero(inner):
                return inner
    return instruction
