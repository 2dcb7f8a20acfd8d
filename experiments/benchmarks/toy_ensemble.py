"""Speed of an ensemble of toy models against the same loop in NumPy and in PyTorch.

    python -m experiments.benchmarks.toy_ensemble --seeds 256 --steps 6000 --rounds 3 [--x64]

The model is that of Fig. 3: one linear layer, 16 wide, 128 new samples a step, eq. 2, plain SGD. `dcjax` trains all
seeds as one program, `numpy` and `torch` train one model after the other, as scripts do: the first with the gradient
written out, the second with autograd. The run is cut into rounds that are interleaved; the best round counts. A
model-step is one step of one model. One JSON line per peer, then one per part of the ensemble's step.
"""

import argparse
import importlib
import json
import os
import time
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from dcjax.toy.simulate import GRADIENTS, simulate
from dcjax.toy.statements.setups import STRONG

PEERS = ("dcjax", "numpy", "torch")
AMPLITUDE = 2.0
N, D, RATE = STRONG.samples, STRONG.dim, STRONG.learning_rate


def _dcjax_steps(seeds: int) -> Callable[[int], None]:
    def run(steps):
        simulate(STRONG, depths=[1], amplitudes=[AMPLITUDE], seeds=range(seeds), steps=[steps])

    return run


def _numpy_steps(dtype) -> Callable[[int], None]:
    rng = np.random.default_rng(0)
    w = rng.uniform(-(D**-0.5), D**-0.5, (D, D)).astype(dtype)
    same = np.eye(N, dtype=bool)

    def step(w):
        x = rng.standard_normal((N, D), dtype=dtype) * dtype(0.5**0.5)
        x_prime = x.copy()
        x_prime[:, D // 2 :] += rng.standard_normal((N, D // 2), dtype=dtype) * dtype(AMPLITUDE**0.5)
        z, z_prime = x @ w.T, x_prime @ w.T
        half = 0.5 * np.square(z).sum(1)
        logits = z @ z.T
        logits -= half[:, None]
        logits -= half
        logits[same] = -0.5 * np.square(z - z_prime).sum(1)
        logits -= logits.max(1, keepdims=True)
        alpha = np.exp(logits, out=logits)
        alpha /= alpha.sum(1, keepdims=True)
        alpha[same] = 0
        rows, columns = alpha.sum(1)[:, None], alpha.sum(0)[:, None]
        g = alpha @ z + alpha.T @ z - columns * z - rows * z_prime
        g_prime = rows * (z_prime - z)
        return w - dtype(RATE / N) * (g.T @ x + g_prime.T @ x_prime)

    def run(steps):
        nonlocal w
        for _ in range(steps):
            w = step(w)

    return run


def _torch_steps(dtype) -> Callable[[int], None]:
    import torch

    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    options = {"dtype": torch.float64 if dtype is np.float64 else torch.float32, "device": device}
    w = torch.nn.Parameter((2 * torch.rand(D, D, **options) - 1) * D**-0.5)
    optimizer = torch.optim.SGD([w], lr=RATE)
    same = torch.eye(N, dtype=torch.bool, device=device)
    none = torch.zeros(N, D - D // 2, **options)

    def run(steps):
        for _ in range(steps):
            x = torch.randn(N, D, **options) * 0.5**0.5
            noise = torch.randn(N, D // 2, **options) * AMPLITUDE**0.5
            z, z_prime = x @ w.T, (x + torch.cat([none, noise], dim=1)) @ w.T
            half = 0.5 * z.square().sum(1)
            positive = -0.5 * (z - z_prime).square().sum(1)
            logits = torch.where(same, positive[:, None], z @ z.T - half[:, None] - half)
            loss = -torch.log_softmax(logits, dim=1).diagonal().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def _parts(seeds: int, steps: int, rounds: int) -> dict[str, float]:
    """Microseconds of a model-step up to the draws, up to the embeddings and back, and in all."""

    def best(run) -> float:
        run(2)
        return min(_seconds(run, steps) for _ in range(rounds)) / (seeds * steps) * 1e6

    simulation = importlib.import_module("dcjax.toy.simulate")  # not the function of that name

    def patched(**changes) -> float:
        simulation._advance.cache_clear()
        with mock.patch.multiple(simulation, **changes):
            found = best(_dcjax_steps(seeds))
        simulation._advance.cache_clear()
        return found

    def no_draws(setting, key, dtype):
        # These values depend on the key, so that the compiler cannot move them out of the loop.
        shift = jax.random.key_data(key)[0].astype(dtype) * 1e-12
        return jnp.broadcast_to(shift + jnp.linspace(-1, 1, D + D // 2, dtype=dtype), (N, D + D // 2))

    bare = {"info_nce": lambda z, z_prime, temperature: (z, z_prime)}
    whole = best(_dcjax_steps(seeds))
    without_loss = patched(GRADIENTS=GRADIENTS | bare)
    neither = patched(GRADIENTS=GRADIENTS | bare, _draw=no_draws)
    return {
        "random numbers": without_loss - neither,
        "views, embeddings, update": neither,
        "gradient of the loss": whole - without_loss,
        "all": whole,
    }


def _seconds(run: Callable[[int], None], steps: int) -> float:
    start = time.perf_counter()
    run(steps)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=256, help="models of the ensemble")
    parser.add_argument("--steps", type=int, default=6000, help="steps in all, of the ensemble and of each peer")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that the steps are cut into")
    parser.add_argument("--x64", action="store_true", help="float64 in all peers")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", cores)
    jax.config.update("jax_enable_x64", args.x64)
    dtype = np.float64 if args.x64 else np.float32
    makers = {
        "dcjax": lambda: (_dcjax_steps(args.seeds), args.seeds),
        "numpy": lambda: (_numpy_steps(dtype), 1),
        "torch": lambda: (_torch_steps(dtype), 1),
    }
    runs = {peer: makers[peer]() for peer in args.peers}
    steps = args.steps // args.rounds
    best = dict.fromkeys(runs, float("inf"))
    for run, _ in runs.values():
        run(20)
    for _ in range(args.rounds):
        for peer, (run, models) in runs.items():
            best[peer] = min(best[peer], _seconds(run, steps) / (steps * models))
    common = {
        "case": f"{STRONG.loss}, {N} samples, width {D}, {dtype.__name__}",
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
    }
    for peer, seconds in best.items():
        record = {"peer": peer, "microseconds_per_model_step": round(seconds * 1e6, 1)}
        ratio = {"dcjax_is_faster_by": round(seconds / best["dcjax"], 2)} if "dcjax" in best else {}
        print(json.dumps(common | record | ratio), flush=True)
    if "dcjax" in best:
        for part, microseconds in _parts(args.seeds, steps // 4, args.rounds).items():
            print(
                json.dumps(common | {"part": part, "microseconds_per_model_step": round(microseconds, 1)}), flush=True
            )


if __name__ == "__main__":
    main()
