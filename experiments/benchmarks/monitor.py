"""What the monitor costs: the time of a look beside that of a training step, in one process, in turns.

    python -m experiments.benchmarks.monitor --config=configs/quickstart.py
    python -m experiments.benchmarks.monitor --config=configs/simclr.py:none,cifar10 --repeats 3 --steps 1

A look is timed with the device idle, from its dispatch to its lines in the logs and its picture in TensorBoard; in
training a part of it overlaps with the next steps. The best round of each counts, after one that compiles. Images are
random bytes where the config's own are not there. One JSON line: `overhead` is the look's time over that of
`monitor.every_steps` steps.
"""

import json
import pathlib
import tempfile
import time
from collections.abc import Sequence

import jax
import numpy as np

from dcjax.components import Components, build
from dcjax.config import load_config
from dcjax.program import compile_step, make_optimizer, make_schedule
from dcjax.runtime import cli
from dcjax.runtime.mesh import to_devices
from dcjax.runtime.randomness import Stream
from dcjax.schema import check_config, with_values
from dcjax.training.metrics import MetricsWriter
from dcjax.training.state import init_state


def random_images(folder: pathlib.Path, size: int, count: int) -> None:
    """Writes class folders of random PNG images."""
    import cv2

    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for i in range(count):
            path = folder / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), rng.integers(256, size=(size, size, 3), dtype=np.uint8))


def timed(components: Components, *, steps: int, repeats: int) -> dict[str, float]:
    """Seconds of a step and of a look: the best of the rounds, and those of the first, which compiles."""
    config = components.config
    schedule = make_schedule(config, len(components.train_source))
    optimizer = make_optimizer(config, schedule)
    train_step = compile_step(
        config, components.network, optimizer, schedule, augmentation=components.augmentation, mesh=components.mesh
    )
    monitor = components.monitor()
    assert monitor is not None
    state = init_state(components.network, optimizer, seed=0, image_size=config.data.image_size)
    loader = components.train_batches(
        components.train_source, batch_size=config.batch_size, stream=Stream.ORDER, views=2, interpolation="bicubic"
    )
    host = next(loader)
    loader.close()
    found: dict[str, list[float]] = {"step": [], "look": []}
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"first_step": 0, "kept_step": 0, "total_steps": 1, "batch_size": config.batch_size}
        writer = MetricsWriter(pathlib.Path(folder), **sizes)
        for _ in range(repeats + 1):
            start = time.perf_counter()
            for _ in range(steps):
                state, metrics = train_step(state, to_devices(host, components.mesh))
            jax.block_until_ready(metrics)
            found["step"].append((time.perf_counter() - start) / steps)
            start = time.perf_counter()
            writer.expect(1, monitor.look(1, state.variables))
            writer.write_looks()
            found["look"].append(time.perf_counter() - start)
        writer.close()
    monitor.close()
    best = {name: min(times[1:]) for name, times in found.items()}
    return {**best, **{f"first_{name}": times[0] for name, times in found.items()}}


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser(prog="python -m experiments.benchmarks.monitor", description=__doc__ or "")
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="steps of a round")
    flags = parser.parse_args(argv)
    config = with_values(
        check_config(load_config(flags.config)), {"total_steps": 10_000, "probe.after_training": False}
    )
    with tempfile.TemporaryDirectory() as folder:
        if config.data.name != "digits":
            random_images(pathlib.Path(folder), config.data.stored_size or 256, max(config.batch_size, 1024))
            where = {"data.name": "folder", "data.dir": folder, "data.train_split": "train", "data.test_split": "test"}
            config = with_values(config, where)
        components = build(config)
        result = timed(components, steps=flags.steps, repeats=flags.repeats)
    every = config.monitor.every_steps
    assert every is not None
    record = {
        "config": flags.config,
        "device": jax.devices()[0].device_kind,
        "encoder": config.model.name,
        "image_size": config.data.image_size,
        "batch_size": config.batch_size,
        "every_steps": every,
        **{name: round(value, 4) for name, value in result.items()},
        "overhead": round(result["look"] / (every * result["step"]), 5),
    }
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    cli.run(main)
