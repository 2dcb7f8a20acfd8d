"""The training step and the exact loss, compiled for TPU slices and GPUs that need not be there.

Claim:     the paper's recipe (DirectCLR, ResNet-50, 224 px, bfloat16) fits its 128 pairs on a single TPU v5e chip, and
           the number of exchanges does not grow with the number of chips; the exact loss of a million pairs fits in
           8 GB of one device.
Command:   python -m experiments.compiled         (takes up what is done; --only=v5e:1x1 for a part, --list for all)
           with the compilers that `dcjax compile --help` names; a row whose compiler is missing or fails is left out.
Cost:      5 to 10 minutes a TPU slice on two cores, one to two a GPU; no accelerator is used.
Look for:  memory traffic beside the algorithm's least, exchanges at 8, 32 and 256 chips, memory of the loss.

Memory and operations of TPUs are the compiler's own; traffic is counted from its program, without the scratch memory on
the chip. Figures of GPUs are estimates, since no kernel is chosen by measuring. The bounds on time come from published
peaks and are no measurement.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from dcjax.runtime import cli
from dcjax.runtime.errors import SettingError
from dcjax.runtime.files import replace_text
from experiments.grid import markdown
from experiments.records import RESULTS

PAIRS_PER_DEVICE, WIDTH = 128, 128
STEPS = {
    "v5e:1x1": 1, "v5e:2x4": 8, "v5e:4x8": 32, "v5e:16x16": 256, "v5p:2x4x4": 32, "v6e:4x8": 32,
    "h100:1x1x1": 1, "h100:1x1x8": 8, "h100:1x4x8": 32,
}  # fmt: skip
LOSSES = [(topology, pairs) for topology in ("h100:1x1x1", "v5e:2x4") for pairs in (32_768, 1_048_576)]
FILE = RESULTS / "compiled.json"


def step_row(topology: str) -> dict[str, Any]:
    """The figures of `dcjax compile` for the paper's recipe at 128 pairs a device."""
    batch = PAIRS_PER_DEVICE * STEPS[topology]
    command = ["-m", "dcjax.compile", "--config=configs/directclr.py", f"--topology={topology}", "--json"]
    return in_new_process([*command, f"--config.batch_size={batch}"])


def loss_row(topology: str, pairs: int) -> dict[str, Any]:
    """The figures of value and gradient of the exact loss, for `loss_here` in a process of its own."""
    return in_new_process(["-m", "experiments.compiled", f"--topology={topology}", f"--pairs={pairs}"])


def in_new_process(command: Sequence[str]) -> dict[str, Any]:
    """Runs Python and reads the JSON object in its last line; compilers for several platforms do not share a process.

    Raises:
      SettingError: the command refused, with its line.
    """
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("dcjax: ")]
        raise SettingError(lines[-1].removeprefix("dcjax: ") if lines else done.stderr[-500:])
    return json.loads(done.stdout.splitlines()[-1])


def loss_here(topology: str, pairs: int) -> dict[str, Any]:
    """Compiles value and gradient of InfoNCE of so many pairs of width 128 in float32, tile by tile."""
    from dcjax.aot import leave_devices_alone

    leave_devices_alone()
    import jax
    import jax.numpy as jnp

    from dcjax.aot import accounts, hlo
    from dcjax.aot.topology import topology_mesh
    from dcjax.losses import info_nce
    from dcjax.runtime.mesh import batch_sharding, platform

    mesh = topology_mesh(topology)
    rows = jax.ShapeDtypeStruct((pairs, WIDTH), jnp.float32, sharding=batch_sharding(mesh))

    def loss(z: jax.Array, z_prime: jax.Array) -> jax.Array:
        return info_nce(z, z_prime, temperature=0.1, mesh=mesh)

    start = time.perf_counter()
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(rows, rows).compile()
    found: Any = compiled.memory_analysis()
    spaces = frozenset({0} if platform(mesh) == "tpu" else {0, 1})
    module = hlo.parse(compiled.as_text() or "", device_spaces=spaces)
    return {
        "topology": topology,
        "pairs": pairs,
        "devices": mesh.size,
        "arguments_bytes": found.argument_size_in_bytes,
        "outputs_bytes": found.output_size_in_bytes,
        "temporaries_bytes": found.temp_size_in_bytes,
        "collectives": [vars(each) for each in accounts.collectives(module)],
        "compile_seconds": round(time.perf_counter() - start, 1),
    }


def text(record: dict[str, Any]) -> str:
    """The tables in Markdown."""
    rows = []
    for topology in STEPS:
        if (row := record["steps"].get(topology)) is None:
            continue
        sums = {each["kind"]: each for each in row["collectives"]}
        reduced = sums.get("all-reduce", {"count": 0, "bytes": 0})
        others = ", ".join(f"{each['count']} {kind}" for kind, each in sums.items() if kind != "all-reduce")
        bound = row["bound"]
        rows.append(
            [
                topology,
                row["devices"],
                "yes" if row["fits"] else "no",
                f"{row['used_bytes'] / 2**30:.2f} of {row['capacity_bytes'] / 2**30:.2f}",
                f"{row['memory_bytes']['code'] / 1e6:.0f}" if row["memory_bytes"]["code"] > 1e6 else None,
                f"{row['flops'] / 1e12:.2f}",
                f"{row['traffic_bytes'] / 1e9:.1f}",
                f"{row['traffic_bytes'] / row['least_traffic_bytes']:.2f}",
                f"{reduced['count']} ({reduced['bytes'] / 1e6:.0f} MB)" if reduced["count"] else None,
                others or None,
                f"{1e3 * max(bound['seconds'].values()):.0f} ({bound['limited_by']})",
                f"{bound['pairs_per_second']:,.0f}",
                f"{row['compile_seconds']:.0f}",
                row["jax"],
            ]
        )
    titles = [
        "topology", "devices", "fits", "memory, GiB", "code, MB", "TFLOP", "traffic, GB", "times the least",
        "all-reduce", "other exchanges", "bound, ms", "bound, pairs/s", "compiled, s", "JAX",
    ]  # fmt: skip
    losses = [
        [
            row["topology"],
            f"{row['pairs']:,}",
            f"{row['arguments_bytes'] / 1e6:,.0f}",
            f"{(row['outputs_bytes'] + row['temporaries_bytes']) / 1e6:,.0f}",
            ", ".join(f"{each['count']} {each['kind']}" for each in row["collectives"]) or None,
        ]
        for row in record["losses"].values()
    ]
    part_names = list(dict.fromkeys(part for row in record["steps"].values() for part in row["parts"]))
    shown = [topology for topology in ("v5e:1x1", "h100:1x1x1") if topology in record["steps"]]
    parts = []
    for name in part_names:
        cells: list[Any] = [name]
        for topology in shown:
            part = record["steps"][topology]["parts"].get(name, {})
            least = part.get("least_bytes")
            cells += [
                f"{part['traffic_bytes'] / 1e9:.2f}" if part else None,
                f"{least / 1e9:.2f}" if least else None,
            ]
        parts.append(cells)
    return "\n\n".join(
        [
            f"The step of `configs/directclr.py` (ResNet-50, 224 px, bfloat16) at {PAIRS_PER_DEVICE} pairs a device; "
            "figures are of one device and step. TPU: the compiler's own memory and operations, traffic without the "
            "scratch memory on the chip; GPU: estimates. The bound is that of published peaks, not a measurement.",
            markdown(titles, rows),
            "Main memory traffic of the step by part, in GB, beside the least that the algorithm needs (each "
            "activation written once and read twice, its gradient written and read once). Convolutions come with what "
            "is fused into them: on a TPU, most of the normalisation.",
            markdown(["part", *(title for name in shown for title in (name, "least"))], parts),
            f"Value and gradient of the exact InfoNCE loss of unit rows of width {WIDTH}, float32, tile by tile; MB of "
            "one device.",
            markdown(["topology", "pairs", "embeddings, MB", "gradients and temporaries, MB", "exchanges"], losses),
        ]
    )


def main(argv: Sequence[str]) -> None:
    """Parses the command line and compiles what is not done."""
    parser = cli.Parser(prog="python -m experiments.compiled", description=__doc__ or "")
    parser.add_argument(
        "--only", action="append", metavar="TOPOLOGY", help="topologies of the step; `losses` for those"
    )
    parser.add_argument("--list", action="store_true", help="print the topologies")
    parser.add_argument("--topology", help="with --pairs: compile one loss and print its figures")
    parser.add_argument("--pairs", type=int, help="pairs of this loss")
    flags = parser.parse_args(argv)
    if flags.topology or flags.pairs:
        if not (flags.topology and flags.pairs and flags.pairs > 0):
            raise SettingError("--topology and --pairs (a positive number) belong together; give both")
        print(json.dumps(loss_here(flags.topology, flags.pairs)))
        return
    names = [*STEPS, "losses"]
    if flags.list:
        print("\n".join(names))
        return
    chosen = flags.only or names
    for name in chosen:
        if name not in names:
            raise SettingError(f"--only '{name}' is not known; known: {', '.join(names)}")
    record = json.loads(FILE.read_text()) if FILE.exists() else {"steps": {}, "losses": {}}

    import jax  # for its version alone

    def finish(kind: str, name: str, make: Any) -> None:
        if name in record[kind] and not flags.only:
            return
        try:
            record[kind][name] = {"jax": jax.__version__, **make()}
        except SettingError as error:
            print(f"{name}: left out: {error}", file=sys.stderr, flush=True)
            return
        replace_text(FILE, json.dumps(record, indent=1) + "\n")
        replace_text(FILE.with_suffix(".md"), text(record) + "\n")
        print(f"{name}: done", flush=True)

    for topology in STEPS:
        if topology in chosen:
            finish("steps", topology, lambda topology=topology: step_row(topology))
    if "losses" in chosen:
        for topology, pairs in LOSSES:
            finish("losses", f"{topology} {pairs}", lambda t=topology, p=pairs: loss_row(t, p))


if __name__ == "__main__":
    cli.run(main)
