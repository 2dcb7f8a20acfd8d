"""Time and temporary memory of the exact losses against other ways to compute them.

    python -m experiments.benchmarks.loss --sizes 1024 4096 --dims 128
    python -m experiments.benchmarks.loss --sizes 8192 --dims 128 --devices 8
    python -m experiments.benchmarks.loss --loss info_nce --sizes 1024 2048 4096 --devices 8 --no-torch

NT-Xent (or InfoNCE) of n pairs in float32, forward and forward with backward. `tiled` is this package's loss by tiles,
on several devices passed around half a ring; `plain` is the same with all logits at once, of which the compiler gives a
share to every device. Other peers know NT-Xent alone: on one device `chunked`, plain row chunks with `jax.checkpoint`;
`optax`, `optax.losses.ntxent` (where all its pairs of rows fit); `torch`, the plain formula in PyTorch; `lightly`, its
`NTXentLoss` where lightly is installed (both up to 8,192 pairs, for their memory). On several devices `gathered`, which
gathers the rows and holds a row share of the logits. All peers must find the same value. They are warmed up, then
interleaved; the best round counts. One JSON line per case and peer; megabytes are those of
`compiled.memory_analysis()`, of one device, traffic is what its collectives receive.
"""

import argparse
import functools
import importlib.util
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dcjax.losses import LOSSES, unit_rows

TEMPERATURE = 0.1
CHUNK = 512
PLAIN_BYTES = 60e9
OPTAX_BYTES = 8e9
TORCH_LIMIT = 8192
BYTES = {"f32": 4, "s32": 4, "bf16": 2, "pred": 1}


def _chunked(z: jax.Array, z_prime: jax.Array) -> jax.Array:
    """Row chunks of the logits, computed again in the backward pass."""
    n = z.shape[0]
    rows = unit_rows(jnp.concatenate([z, z_prime]))
    block = min(CHUNK, 2 * n)

    @jax.checkpoint
    def chunk(part, first):
        logits = jnp.matmul(part, rows.T, precision="highest") / TEMPERATURE
        index = first + jnp.arange(block)
        logits = jnp.where(index[:, None] == jnp.arange(2 * n)[None, :], -jnp.inf, logits)
        positive = jnp.take_along_axis(logits, ((index + n) % (2 * n))[:, None], axis=1)[:, 0]
        return jnp.sum(jax.nn.logsumexp(logits, axis=1) - positive)

    parts = rows.reshape(-1, block, rows.shape[1])
    totals = jax.lax.map(lambda a: chunk(*a), (parts, jnp.arange(len(parts)) * block))
    return jnp.sum(totals) / (2 * n)


def _optax(z: jax.Array, z_prime: jax.Array) -> jax.Array:
    labels = jnp.tile(jnp.arange(z.shape[0]), 2)
    return optax.losses.ntxent(jnp.concatenate([z, z_prime]), labels, temperature=TEMPERATURE)


def _gathered(mesh: jax.sharding.Mesh, z: jax.Array, z_prime: jax.Array) -> jax.Array:
    """All-gathered columns against the device's own rows: what most training code does."""

    def local(u, v):
        n = u.shape[0]
        every = [jax.lax.all_gather(x, "data", tiled=True) for x in (u, v)]
        columns = jnp.concatenate(every)
        own = jax.lax.axis_index("data") * n + jnp.arange(n)
        total = 0.0
        for rows, offset in ((u, 0), (v, columns.shape[0] // 2)):
            logits = jnp.matmul(rows, columns.T, precision="highest") / TEMPERATURE
            index = (own + offset)[:, None]
            positive = (index[:, 0] + columns.shape[0] // 2) % columns.shape[0]
            right = jnp.take_along_axis(logits, positive[:, None], axis=1)[:, 0]
            logits = jnp.where(index == jnp.arange(columns.shape[0])[None, :], -jnp.inf, logits)
            total += jnp.sum(jax.nn.logsumexp(logits, axis=1) - right)
        return jax.lax.psum(total, "data") / columns.shape[0]

    split = PartitionSpec("data")
    spread = jax.shard_map(local, mesh=mesh, in_specs=(split, split), out_specs=PartitionSpec())
    return spread(unit_rows(z), unit_rows(z_prime))


def _torch_runs(z: np.ndarray, z_prime: np.ndarray, backward: bool) -> dict[str, Callable[[], float]]:
    import torch

    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    views = [torch.from_numpy(x).to(device).requires_grad_(backward) for x in (z, z_prime)]
    n = z.shape[0]
    labels = (torch.arange(2 * n, device=device) + n) % (2 * n)

    def plain(a, b):
        rows = torch.nn.functional.normalize(torch.cat([a, b]))
        logits = rows @ rows.T / TEMPERATURE
        logits.fill_diagonal_(-torch.inf)
        return torch.nn.functional.cross_entropy(logits, labels)

    def run(function):
        loss = function(*views)
        if backward:
            torch.autograd.grad(loss, views)
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    losses = {"torch": plain}
    if importlib.util.find_spec("lightly"):
        from lightly.loss import NTXentLoss

        losses["lightly"] = NTXentLoss(temperature=TEMPERATURE)
    return {name: functools.partial(run, function) for name, function in losses.items()}


def _run(program: Any, views: list[jax.Array]) -> float:
    """Runs a compiled value, or value and gradient, to its end; the value."""
    return float(jax.tree.leaves(jax.block_until_ready(program(*views)))[0])


def _traffic(text: str, devices: int) -> float:
    """Bytes that the collectives of a compiled program receive; those of a loop once for every trip."""
    bodies: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            name = header[1]
        bodies.setdefault(name, []).append(line)

    def received(name: str) -> float:
        total = 0.0
        for line in bodies.get(name, []):
            # An asynchronous collective ends with `-done`, whose result is the received data.
            pattern = r"= (.*?) (all-gather|all-reduce|reduce-scatter|collective-permute)(?:-done)?\("
            if found := re.search(pattern, line):
                # The result of a reduce-scatter is one share of the received data.
                shares = devices if found[2] == "reduce-scatter" else 1
                for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", found[1]):
                    total += shares * BYTES[kind] * float(np.prod([int(d) for d in dims.split(",") if d] or [1]))
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            for called in re.findall(r"(?:body|to_apply|calls)=%?([\w.-]+)", line):
                total += received(called) * (int(trips[1]) if trips else 1)
        return total

    entry = re.search(r"ENTRY %?([\w.-]+)", text)
    return received(entry[1]) if entry else 0.0


def _case(n: int, d: int, devices: int, backward: bool, args: argparse.Namespace) -> Iterator[dict]:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((n, d), np.float32)
    z_prime = 0.3 * z + rng.standard_normal((n, d), np.float32)
    mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    plain = functools.partial(LOSSES[args.loss], temperature=TEMPERATURE)
    tiled = functools.partial(plain, block_size=args.block_size, mesh=mesh if devices > 1 else None)
    losses: dict[str, Callable[..., jax.Array]] = {"tiled": tiled}
    # Value and gradient hold about three arrays of all logits.
    fits = 3 * 4 * (2 * n if args.loss == "nt_xent" else n) ** 2 / devices <= PLAIN_BYTES
    if fits:
        losses["plain"] = plain
    if args.loss == "nt_xent" and devices > 1:
        if fits:
            losses["gathered"] = functools.partial(_gathered, mesh)
    elif args.loss == "nt_xent":
        losses["chunked"] = _chunked
        if 4 * (2 * n) ** 2 * d <= OPTAX_BYTES:  # the differences of all pairs of rows; it holds three such arrays
            losses["optax"] = _optax
    runs: dict[str, Callable[[], Any]] = {}
    megabytes, traffic = {}, {}
    views = [jax.device_put(x, split) for x in (z, z_prime)]
    for name, loss in losses.items():
        function = jax.value_and_grad(loss, argnums=(0, 1)) if backward else loss
        program = jax.jit(function).lower(*views).compile()
        runs[name] = functools.partial(_run, program, views)
        megabytes[name] = program.memory_analysis().temp_size_in_bytes / 1e6
        traffic[name] = _traffic(program.as_text(), devices) / 1e6
    if devices == 1 and args.loss == "nt_xent" and args.torch and n <= TORCH_LIMIT:
        runs |= _torch_runs(z, z_prime, backward)
    values = {name: run() for name, run in runs.items()}
    np.testing.assert_allclose(list(values.values()), values["tiled"], rtol=1e-4, err_msg=str(values))
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(args.repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    for name, seconds in best.items():
        yield {
            "case": f"{args.loss}, {n} pairs, width {d}, {'value and gradient' if backward else 'value'}",
            "peer": name,
            "milliseconds": round(seconds * 1e3, 2),
            "ratio_to_tiled": round(seconds / best["tiled"], 2),
            "temporary_megabytes": round(megabytes[name], 1) if name in megabytes else None,
            "received_megabytes": round(traffic[name], 2) if devices > 1 else None,
            "block_size": args.block_size,
            "devices": devices,
            "device": jax.devices()[0].device_kind,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 4096], help="pairs")
    parser.add_argument("--dims", type=int, nargs="+", default=[128], help="widths of the embedding")
    parser.add_argument("--devices", type=int, default=1, help="virtual devices on CPU, or devices")
    parser.add_argument("--loss", choices=LOSSES, default="nt_xent")
    parser.add_argument("--block_size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True, help="PyTorch as a peer")
    args = parser.parse_args()
    if args.devices > 1:
        jax.config.update("jax_num_cpu_devices", args.devices)
    for n in args.sizes:
        for d in args.dims:
            for backward in (False, True):
                for record in _case(n, d, args.devices, backward, args):
                    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
