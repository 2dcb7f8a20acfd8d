"""The compiled step as text and as JSON."""

import dataclasses
from typing import Any

from dcjax.aot.chips import Chip
from dcjax.aot.compiled import CompiledStep
from dcjax.aot.parts import PARTS

GIB, MB = 2**30, 1e6


def of_memory(size: float) -> str:
    """A size of memory, in GiB as chips have it, or in MB where it is small."""
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / MB:.1f} MB"


def in_units(size: float, unit: str) -> str:
    """A number of bytes or operations with three digits and its prefix, such as `6.17 TFLOP`."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= factor:
            return f"{size / factor:.3g} {prefix}{unit}"
    return f"{size:.0f} {unit}"


def of_time(seconds: float) -> str:
    """A time in milliseconds, or in microseconds where it is short."""
    return f"{1e3 * seconds:.1f} ms" if seconds >= 1e-4 or not seconds else f"{1e6 * seconds:.1f} µs"


def as_dict(step: CompiledStep, chip: Chip | None, *, hosts: int) -> dict[str, Any]:
    """The figures of a step, without the text of the program; bytes and seconds, per device where not said."""
    found: dict[str, Any] = {
        "batch_size": step.batch_size,
        "devices": step.devices,
        "fits": step.fits,
        "used_bytes": step.used,
        "capacity_bytes": step.capacity,
    }
    if step.memory is None:
        return found
    found |= {
        "memory_bytes": dataclasses.asdict(step.memory),
        "flops": step.flops,
        "compiler_bytes": step.compiler_bytes,
        "traffic_bytes": sum(step.bytes_by_part.values()),
        "least_traffic_bytes": sum(step.least_by_part.values()),
        "parts": {
            part: {"traffic_bytes": size, "least_bytes": step.least_by_part.get(part)}
            for part, size in step.bytes_by_part.items()
            if size
        },
        "collectives": [dataclasses.asdict(each) for each in step.collectives],
        "host_transfers": step.host_transfers,
        "lower_seconds": round(step.lower_seconds, 1),
        "compile_seconds": round(step.compile_seconds, 1),
    }
    if chip is not None:
        bound = step.bound(chip, hosts=hosts)
        seconds = max(bound.values())
        found["bound"] = {
            "chip": chip.name,
            "source": chip.source,
            "seconds": bound,
            "limited_by": max(bound, key=bound.__getitem__),
            "pairs_per_second": round(step.batch_size / seconds, 1) if seconds else None,
        }
    return found


def as_text(step: CompiledStep, chip: Chip | None, *, hosts: int) -> str:
    """A few tables for a terminal."""
    memory = step.memory
    assert memory is not None
    per_device = step.batch_size // step.devices
    room = f" of {of_memory(step.capacity)}" if step.capacity else ""
    lines = [
        f"{'fits' if step.fits else 'does not fit'}: {of_memory(step.used)}{room} a device, with {per_device} pairs on "
        f"each of {step.devices}",
        f"  arguments {of_memory(memory.arguments)}, outputs {of_memory(memory.outputs)} (of which "
        f"{of_memory(memory.aliased)} take the place of arguments), temporaries {of_memory(memory.temporaries)}, "
        f"code {of_memory(memory.code)}",
        f"compiled in {step.compile_seconds:.0f} s, traced in {step.lower_seconds:.0f} s",
        "",
        f"{'main memory traffic of a step':<34}{'moved':>9}{'share':>8}{'least':>10}",
    ]
    total, least = sum(step.bytes_by_part.values()), sum(step.least_by_part.values())
    for part in PARTS:
        size, needed = step.bytes_by_part.get(part, 0), step.least_by_part.get(part)
        if size or needed:
            shown = in_units(needed, "B") if needed else ""
            lines.append(f"  {part:<32}{in_units(size, 'B'):>9}{size / max(total, 1):>8.1%}{shown:>10}")
    lines += [
        f"  {'in all':<32}{in_units(total, 'B'):>9}{total / max(least, 1):>7.2f}x{in_units(least, 'B'):>10}",
        *(["  less than the least: what stays in the chip's scratch memory is not moved"] if total < least else []),
        *([f"  ({in_units(step.compiler_bytes, 'B')} by the compiler's own count)"] if step.compiler_bytes else []),
        "",
        "exchanges between devices, a device and step",
        *(
            f"  {each.count} {each.kind} of {each.arrays} arrays, {in_units(each.bytes, 'B')}"
            for each in step.collectives or ()
        ),
    ]
    if not step.collectives:
        lines.append("  none")
    if step.host_transfers:
        lines.append(f"transfers to or from the host: {', '.join(step.host_transfers)}")
    lines += ["", f"{in_units(step.flops, 'FLOP')} a device and step"]
    if chip is not None:
        bound = step.bound(chip, hosts=hosts)
        seconds, limit = max(bound.values()), max(bound, key=bound.__getitem__)
        each = ", ".join(f"{name} {of_time(value)}" for name, value in bound.items())
        lines.append(
            f"bound by the published peaks of {chip.name}, not a measurement: {each}; at most "
            f"{step.batch_size / seconds:,.0f} pairs/s, limited by {limit}"
        )
    return "\n".join(lines)
