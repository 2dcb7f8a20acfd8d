"""Speed of an encoder's training step against PyTorch, and against XLA's own weight gradient.

    python -m experiments.benchmarks.encoder --widths 16 64 --batch_size 128 --repeats 5

One step is forward, backward and an SGD-momentum update of a ResNet-18 with the small-image stem on one view of 32x32
images in float32. `xla` is this package's encoder with the weight gradient that XLA derives, `dcjax` the encoder as it
ships, `torch` the same network in PyTorch, the better of its two memory layouts. Peers are warmed up, then interleaved
round by round; the best round counts. One JSON line per case. On an accelerator `xla` and `dcjax` are the same program.
"""

import argparse
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from dcjax.models import conv
from dcjax.models.resnet import make_encoder

PEERS = ("xla", "dcjax", "torch")
LEARNING_RATE, MOMENTUM = 0.01, 0.9


def _jax_step(name: str, channels: int, images: np.ndarray) -> tuple[Callable[[], None], float]:
    """A function that runs one step to its end, and the seconds its compilation took."""
    encoder = make_encoder(name, width=channels / 64, stem="small")
    x = jnp.asarray(images)
    variables = jax.jit(functools.partial(encoder.init, train=False))(jax.random.key(0), x[:1])
    target = jax.random.normal(jax.random.key(1), (x.shape[0], encoder.features))

    def step(params, stats, velocity, x):
        def loss(params):
            r, updated = encoder.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
            return jnp.mean(jnp.square(r - target)), updated["batch_stats"]

        grads, stats = jax.grad(loss, has_aux=True)(params)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, grads)
        params = jax.tree.map(lambda p, v: p - LEARNING_RATE * v, params, velocity)
        return params, stats, velocity

    params, stats = variables["params"], variables["batch_stats"]
    state = (params, stats, jax.tree.map(jnp.zeros_like, params))
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1, 2)).lower(*state, x).compile()
    seconds = time.perf_counter() - start

    def run():
        nonlocal state
        state = jax.block_until_ready(compiled(*state, x))

    return run, seconds


def _torch_step(name: str, channels: int, images: np.ndarray, channels_last: bool) -> Callable[[], None]:
    import torch

    from experiments.benchmarks import torch_resnet

    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = torch_resnet.make(name, channels / 64, "small").to(device).to(memory_format=layout).train()
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device).contiguous(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    with torch.no_grad():
        target = torch.randn_like(model(x))

    def run():
        optimizer.zero_grad(set_to_none=True)
        torch.mean(torch.square(model(x) - target)).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def _case(name: str, channels: int, args: argparse.Namespace) -> Iterator[dict]:
    """Time all peers on one network; yields one record per peer."""
    images = np.random.default_rng(0).standard_normal((args.batch_size, args.size, args.size, 3), np.float32)
    runs, compile_seconds = {}, {}
    for peer in args.peers:
        if peer == "torch":
            for layout in (True, False):
                runs["torch channels_last" if layout else "torch"] = _torch_step(name, channels, images, layout)
        else:
            rule = conv.xla_conv2d if peer == "xla" else conv.conv2d
            with mock.patch.object(conv, "conv2d", rule):
                runs[peer], compile_seconds[peer] = _jax_step(name, channels, images)
    best = dict.fromkeys(runs, float("inf"))
    for repeat in range(-args.warmup, args.repeats):
        for peer, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat >= 0:
                best[peer] = min(best[peer], time.perf_counter() - start)
    layouts = {peer: seconds for peer, seconds in best.items() if peer.startswith("torch")}
    reference = min(layouts.values(), default=None)
    for peer in args.peers:
        seconds = reference if peer == "torch" else best[peer]
        assert seconds is not None
        yield {
            "case": f"{name} width {channels}, {args.size} px, batch {args.batch_size}",
            "peer": min(layouts, key=layouts.__getitem__) if peer == "torch" else peer,
            "images_per_second": round(args.batch_size / seconds, 1),
            "ratio_to_torch": round(reference / seconds, 3) if reference else None,
            "compile_seconds": round(compile_seconds[peer], 1) if peer in compile_seconds else None,
            "repeats": args.repeats,
            "device": jax.devices()[0].device_kind,
            "cores": len(jax.devices()) if jax.default_backend() != "cpu" else _cores(),
        }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="resnet18", help="encoder")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64], help="base channels (64 is the full width)")
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--warmup", type=int, default=2, help="untimed rounds")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    args = parser.parse_args()
    for channels in args.widths:
        for record in _case(args.name, channels, args):
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
