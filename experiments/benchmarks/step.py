"""Time of the whole training step, of its parts, and of the same step in PyTorch and with Flax's own convolutions.

    python -m experiments.benchmarks.step --config=configs/directclr.py --batch_size 256 --steps 20 --parts
    python -m experiments.benchmarks.step --config=configs/directclr.py --batch_size 128 --peers torch torch_compile
    python -m experiments.benchmarks.step --config=configs/directclr.py:cifar10 --batch_size 64 --steps 1 --peers torch

`step` is the step of `dcjax.pretrain`, on all devices, with the config's encoder, projector, precision and image size;
its input is one batch of random bytes that stays on the devices, so that reading images is left out (see `input`). With
--parts: `augmentation`; `given views`, the step without it; the objective `forward`, `forward and backward`; and the
`optimiser`. Peers of `given views`: `flax_conv`, the same encoder with the convolutions of flax.linen; `torch` and
`torch_compile`, DirectCLR or no projector in PyTorch on one device (on a GPU channels last, bfloat16 autocast and
cuDNN's own choice by measuring; on a CPU the better of two layouts). JAX then takes GPU memory as it needs it, to
leave some to PyTorch. Peers start from the same weights and must find the same loss. All are warmed up, then
interleaved; the best round counts. One JSON line each. With --profile the last round of `step` is recorded for
TensorBoard or Perfetto.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcjax.components import make_modules
from dcjax.config import add_config_flags, config_from_flags
from dcjax.data import Augmentation
from dcjax.data.augment import two_views
from dcjax.models import Network, resnet, torch_weights
from dcjax.program import compile_step, make_loss, make_optimizer, make_schedule, step_arguments
from dcjax.runtime.mesh import check_batch, make_mesh, replicated
from dcjax.schema import Config, check_config, with_values
from dcjax.training.state import TrainState, init_state
from dcjax.training.step import make_objective

PEERS = ("flax_conv", "torch", "torch_compile")
CLASSES, IMAGES = 1000, 1_281_167
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.02}  # rounding of some tens of layers at 24 and at 8 bits

Run = Callable[[], Any]


class Setup:
    """The modules, the batch and the first state of a config, with the given weights of the encoder."""

    def __init__(self, config: Config, encoder: Any = None):
        self.config, self.mesh = config, make_mesh(config.devices)
        check_batch(config.batch_size, self.mesh)
        self.network = Network(*make_modules(config), classes=CLASSES)
        self.schedule = make_schedule(config, max(IMAGES, config.batch_size))
        self.optimizer = make_optimizer(config, self.schedule)
        self.augmentation = Augmentation(**dataclasses.asdict(config.augment))
        self.loss = make_loss(config, self.mesh)
        rng = np.random.default_rng(0)
        _, batch = step_arguments(config, self.network, self.optimizer, self.mesh)
        host = {
            "image": rng.integers(256, size=batch["image"].shape, dtype=np.uint8),
            "label": rng.integers(CLASSES, size=config.batch_size, dtype=np.int32),
            "position": np.arange(config.batch_size, dtype=np.uint32),
        }
        self.batch = {name: jax.device_put(rows, batch[name].sharding) for name, rows in host.items()}
        self.encoder = encoder

    def state(self) -> TrainState:
        """A new first state."""
        size = self.config.data.image_size
        make = functools.partial(init_state, self.network, self.optimizer, seed=self.config.seed, image_size=size)
        state = jax.jit(make, out_shardings=replicated(self.mesh))()
        if self.encoder is None:
            return state
        params = {**state.params, "encoder": self.encoder}
        return dataclasses.replace(state, params=jax.device_put(params, replicated(self.mesh)))

    @functools.cached_property
    def views(self) -> Any:
        """Two augmented views of the batch, float32."""
        return jax.block_until_ready(jax.jit(self.augment)(self.batch))

    def augment(self, batch: dict[str, jax.Array]) -> Any:
        """Both views of a batch."""
        size = self.config.data.image_size
        options: Any = {"size": size, "settings": self.augmentation, "mesh": self.mesh}
        return two_views(batch["image"], jax.random.key(0), batch["position"], **options)


def stepping(compiled: Callable[..., tuple[Any, dict[str, jax.Array]]], state: Any, *rest: Any) -> Run:
    """A function that takes one step after another, each from the state of the last; it returns the loss."""

    def run() -> jax.Array:
        nonlocal state
        state, metrics = compiled(state, *rest)
        return metrics["loss"]

    return run


def whole_step(setup: Setup) -> tuple[Run, Any, float]:
    """The step of `dcjax.pretrain`, its compiled program, and the seconds of compiling it."""
    options: Any = {"augmentation": setup.augmentation, "mesh": setup.mesh}
    step = compile_step(setup.config, setup.network, setup.optimizer, setup.schedule, **options)
    state = setup.state()
    lowered = step.lower(state, setup.batch)
    start = time.perf_counter()
    compiled = lowered.compile()
    return stepping(compiled, state, setup.batch), compiled, time.perf_counter() - start


def given_views(setup: Setup) -> Run:
    """The step without augmentation and without the norms of the log."""
    objective = make_objective(setup.network, setup.loss, seed=setup.config.seed)

    def step(state: TrainState, x: jax.Array, x_prime: jax.Array, labels: jax.Array) -> Any:
        gradient, (stats, metrics) = jax.grad(objective, has_aux=True)(state.params, state, x, x_prime, labels)
        updates, opt_state = setup.optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, stats, state.constants, opt_state), metrics

    return stepping(jax.jit(step, donate_argnums=0), setup.state(), *setup.views, setup.batch["label"])


def parts(setup: Setup) -> dict[str, Run]:
    """The parts of the step, each as a program of its own."""
    objective = make_objective(setup.network, setup.loss, seed=setup.config.seed)
    state, labels = setup.state(), setup.batch["label"]

    def update(gradient: Any, state: TrainState) -> Any:
        updates, opt_state = setup.optimizer.update(gradient, state.opt_state, state.params)
        return optax.apply_updates(state.params, updates), opt_state

    forward = jax.jit(objective)
    backward = jax.jit(jax.grad(objective, has_aux=True))
    augment, optimise = jax.jit(setup.augment), jax.jit(update)
    return {
        "augmentation": lambda: augment(setup.batch),
        "given views": given_views(setup),
        "forward": lambda: forward(state.params, state, *setup.views, labels),
        "forward and backward": lambda: backward(state.params, state, *setup.views, labels),
        "optimiser": lambda: optimise(state.params, state),
    }


def flax_conv(features: int, size: int, *, strides: int = 1, padding: int = 0, dtype: Any, name: str) -> nn.Conv:
    """Flax's own convolution with the arguments of `dcjax.models.conv.Conv`."""
    return nn.Conv(features, (size, size), strides, [(padding, padding)] * 2, use_bias=False, dtype=dtype, name=name)


def flax_step(config: Config, encoder: Any) -> tuple[Run, float]:
    """`given_views` with the convolutions of flax.linen in the place of this package's, and the loss of its first step.

    The first step is taken here, since tracing it needs the replacement.
    """
    with mock.patch.object(resnet, "Conv", flax_conv):
        run = given_views(Setup(config, encoder))
        return run, float(run())


def torch_step(setup: Setup, *, compiled: bool, channels_last: bool, weights: Any) -> Run:
    """The step in PyTorch, from the given weights of the encoder."""
    import torch

    from experiments.benchmarks.torch_step import TorchStep

    config, device = setup.config, "cuda" if jax.default_backend() == "gpu" else "cpu"
    dims = {"direct": config.projector.d0, "none": setup.network.encoder.features}[config.projector.name]
    settings = config.optimizer
    step = TorchStep(
        (config.model.name, config.model.width, config.model.stem),
        dims=dims,
        classes=CLASSES,
        temperature=config.loss.temperature,
        lars=(settings.learning_rate, settings.momentum, settings.weight_decay, settings.trust_coefficient),
        device=device,
        compiled=compiled,
        channels_last=channels_last,
    )
    step.encoder.load_state_dict({name: torch.from_numpy(rows) for name, rows in weights.items()}, strict=False)

    def tensor(rows: jax.Array) -> Any:
        images = torch.from_numpy(np.asarray(rows).transpose(0, 3, 1, 2).copy()).to(device)
        return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    x, x_prime = map(tensor, setup.views)
    labels = torch.from_numpy(np.array(setup.batch["label"], np.int64)).to(device)
    return lambda: step(x, x_prime, labels)


def wait(result: Any) -> None:
    """Waits for a result of JAX or PyTorch."""
    if type(result).__module__.startswith("torch"):
        result.cpu()
    else:
        jax.block_until_ready(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=256, help="global")
    parser.add_argument("--steps", type=int, default=20, help="of a round")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds")
    parser.add_argument("--parts", action="store_true", help="also time the parts of the step")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[], help="also time the same step of these")
    parser.add_argument("--profile", help="a folder for the profile of the last round")
    add_config_flags(parser)
    config, flags = config_from_flags(parser, ["--config=configs/directclr.py", *sys.argv[1:]])
    config = check_config(with_values(config, {"batch_size": flags.batch_size}))
    if any(peer.startswith("torch") for peer in flags.peers) and config.projector.name not in ("direct", "none"):
        parser.error(f"--peers torch knows the projectors direct and none, found {config.projector.name}")
    if any(peer.startswith("torch") for peer in flags.peers):
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    setup = Setup(config)
    step, compiled, compile_s = whole_step(setup)
    runs = {"step": step}
    if flags.parts or flags.peers:
        runs |= parts(setup) if flags.parts else {"given views": given_views(setup)}
    first = jax.device_get(setup.state())  # on the host, since a step takes over the memory of its state
    weights = {"params": first.params["encoder"], "batch_stats": first.batch_stats["encoder"]}
    losses = {}
    for peer in flags.peers:
        if peer == "flax_conv":
            runs[peer], losses[peer] = flax_step(config, weights["params"])
            continue
        for layout in ("channels last",) if jax.default_backend() == "gpu" else ("channels last", "channels first"):
            options: Any = {"compiled": peer == "torch_compile", "channels_last": layout == "channels last"}
            runs[f"{peer}, {layout}"] = torch_step(setup, weights=torch_weights.to_torch(weights), **options)
    warm_up(runs, losses, jnp.dtype(setup.network.encoder.dtype).name)
    best = dict.fromkeys(runs, math.inf)
    for i in range(flags.repeats):
        for name, run in runs.items():
            profile = flags.profile and name == "step" and i == flags.repeats - 1
            with jax.profiler.trace(flags.profile) if profile else contextlib.nullcontext():
                start = time.perf_counter()
                for _ in range(flags.steps):
                    result = run()
                wait(result)
                best[name] = min(best[name], (time.perf_counter() - start) / flags.steps)
    memory = compiled.memory_analysis()
    for name, seconds in best.items():
        line = {
            "config": flags.config,
            "what": name,
            "device": jax.devices()[0].device_kind,
            "devices": setup.mesh.size,
            "dtype": jnp.dtype(setup.network.encoder.dtype).name,
            "size": config.data.image_size,
            "batch_size": config.batch_size,
            "step_ms": round(1e3 * seconds, 2),
            "pairs_per_second": round(config.batch_size / seconds, 1),
        }
        if name.partition(",")[0] in flags.peers:
            line["times_as_long_as_given_views"] = round(seconds / best["given views"], 3)
        if name == "step":
            line |= {
                "temporary_MB": round(memory.temp_size_in_bytes / 2**20) if memory else None,
                "compile_s": round(compile_s, 1),
                "loss": round(losses["step"], 4),
            }
        print(json.dumps(line), flush=True)


def warm_up(runs: dict[str, Run], losses: dict[str, float], dtype: str) -> None:
    """Runs each once and adds the losses of the steps that have none; they must be that of `given views`."""
    for name, run in runs.items():
        result = run()
        wait(result)
        if name not in losses and (name in ("step", "given views") or name.startswith("torch")):
            losses[name] = float(result)
    for name, loss in losses.items():
        if name not in ("step", "given views"):
            np.testing.assert_allclose(loss, losses["given views"], rtol=LOSS_TOLERANCE[dtype], err_msg=name)


if __name__ == "__main__":
    main()
