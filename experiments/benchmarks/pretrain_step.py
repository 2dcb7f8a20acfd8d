"""Pairs of views a second of the whole pre-training step: augmentation, both views, loss, update.

    python -m experiments.benchmarks.pretrain_step --config=configs/directclr.py --batch_size 256 --steps 20

The step is the one of `dcjax.pretrain`, on all devices, with the config's encoder, projector, precision and image size;
its input is one batch of random bytes that stays on the devices, so that reading images is left out (see `input`). The
best of the rounds counts. With --profile the last round is recorded for TensorBoard or Perfetto. One JSON line.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from dcjax.components import make_modules
from dcjax.config import add_config_flags, config_from_flags
from dcjax.data import Augmentation
from dcjax.models import Network
from dcjax.pretrain import make_loss, make_optimizer, make_schedule
from dcjax.runtime.mesh import batch_sharding, check_batch, make_mesh, replicated, to_devices
from dcjax.schema import check_config, with_values
from dcjax.training.state import init_state
from dcjax.training.step import make_train_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=256, help="global")
    parser.add_argument("--steps", type=int, default=20, help="of a round")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds")
    parser.add_argument("--profile", help="a folder for the profile of the last round")
    add_config_flags(parser)
    config, flags = config_from_flags(parser, ["--config=configs/directclr.py", *sys.argv[1:]])
    config = check_config(with_values(config, {"batch_size": flags.batch_size}))
    mesh = make_mesh(config.devices)
    check_batch(config.batch_size, mesh)
    network = Network(*make_modules(config), classes=1000)
    size, stored = config.data.image_size, config.data.stored_size
    schedule = make_schedule(config, images=1_281_167)
    optimizer = make_optimizer(config, schedule)
    step = make_train_step(
        network,
        optimizer,
        schedule,
        loss=make_loss(config, mesh),
        augmentation=Augmentation(**dataclasses.asdict(config.augment)),
        image_size=size,
        seed=config.seed,
        mesh=mesh,
    )
    rng, n = np.random.default_rng(0), config.batch_size
    shape = (n, stored, stored, 3) if stored else (n, 2, size, size, 3)  # whole images, or two crops of each
    batch = to_devices(
        {
            "image": rng.integers(256, size=shape, dtype=np.uint8),
            "label": rng.integers(1000, size=n, dtype=np.int32),
            "position": np.arange(n, dtype=np.uint32),
        },
        mesh,
    )
    everywhere = replicated(mesh)
    state = jax.jit(
        lambda: init_state(network, optimizer, seed=config.seed, image_size=size), out_shardings=everywhere
    )()
    shardings = {"in_shardings": (everywhere, batch_sharding(mesh)), "out_shardings": everywhere}
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0, **shardings).lower(state, batch).compile()
    compile_s = time.perf_counter() - start
    state, metrics = compiled(state, batch)  # warm-up
    best = math.inf
    for i in range(flags.repeats):
        profile = flags.profile and i == flags.repeats - 1
        with jax.profiler.trace(flags.profile) if profile else contextlib.nullcontext():
            jax.block_until_ready(state)
            start = time.perf_counter()
            for _ in range(flags.steps):
                state, metrics = compiled(state, batch)
            jax.block_until_ready(state)
            best = min(best, (time.perf_counter() - start) / flags.steps)
    memory = compiled.memory_analysis()
    line = {
        "config": flags.config,
        "device": jax.devices()[0].device_kind,
        "devices": mesh.size,
        "dtype": jnp.dtype(network.encoder.dtype).name,
        "size": size,
        "batch_size": n,
        "step_ms": round(1e3 * best, 2),
        "pairs_per_second": round(n / best, 1),
        "temporary_MB": round(memory.temp_size_in_bytes / 2**20) if memory else None,
        "compile_s": round(compile_s, 1),
        "loss": round(float(metrics["loss"]), 4),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
