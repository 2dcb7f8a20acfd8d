"""The largest batch that fits, by a line through two compiles and a third one that verifies it."""

from collections.abc import Callable

from dcjax.aot.compiled import CompiledStep

ROUND_TO = 8  # images of a device: a tile of a TPU's memory has eight rows
TRIES = 5


def largest_batch(compile_batch: Callable[[int], CompiledStep], first: CompiledStep) -> CompiledStep | None:
    """Finds the largest batch that fits, to within a few percent.

    The memory of a step grows nearly in proportion to the images of a device, beside a constant (the state and the
    program). The line through two batches that fit therefore predicts the largest one; it is compiled too, and where it
    does not fit after all, smaller ones are tried.

    Args:
      compile_batch: compiles the step for a global batch.
      first: a step that was compiled, whether it fits or not.

    Returns:
      The compiled step of the largest batch, or None where not even the smallest one fits.
    """
    devices, per_device = first.devices, first.batch_size // first.devices
    fitting = [first] if first.fits else []
    # What does not fit tells by how much, so that few compiles are needed to find two that do.
    size = per_device // 2 if first.fits else _below(first, per_device)
    while len(fitting) < 2 and size >= 1:
        step = compile_batch(size * devices)
        if step.fits:
            fitting.append(step)
        size = size // 2 if step.fits else _below(step, size)
    if first.fits and len(fitting) < 2:  # a single pair a device
        step = compile_batch(2 * first.batch_size)
        if step.fits:
            fitting.insert(0, step)
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    upper, lower = fitting
    slope = (upper.used - lower.used) / (upper.batch_size - lower.batch_size)
    if slope <= 0 or upper.capacity is None:
        return upper
    most = int((upper.batch_size + (upper.capacity - upper.used) / slope) / devices)
    for _ in range(TRIES):
        most = most // ROUND_TO * ROUND_TO if most >= ROUND_TO else most
        if most * devices <= upper.batch_size:
            return upper
        step = compile_batch(most * devices)
        if step.fits:
            return step
        most -= max(most // 16, 1)
    return upper


def _below(step: CompiledStep, size: int) -> int:
    """A size below one that does not fit: in proportion to the memory, and a tenth less."""
    share = (step.capacity or 0) / max(step.used, 1)
    return min(int(0.9 * share * size), size - 1)
