"""The training step of a config as one program: its schedule, optimiser and loss, and the compiled step itself.

Training runs the program, benchmarks time it, and `dcjax.aot` compiles it for devices that need not be there.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from dcjax.data import Augmentation
from dcjax.losses import LOSSES, takes_blocks
from dcjax.models import Network
from dcjax.runtime.errors import SettingError
from dcjax.runtime.mesh import batch_sharding, platform, replicated
from dcjax.schema import Config, section
from dcjax.training.optim import lars, warmup_cosine
from dcjax.training.state import TrainState, init_state
from dcjax.training.step import make_train_step

# With `loss.block_size=auto`, a device holds all of its logits at once up to this many bytes, and tiles above. On CPU,
# with one device and with eight, all logits at once are mostly faster up to 4 MB and tiles above 16 MB; in between it
# depends on the loss (experiments/results/loss_tiling_cpu.jsonl). The bound for accelerators was not measured: it is
# the 64 MB of one tile of 4,096 x 4,096 logits, since fewer logits would be a single tile. The paper's batch of 4,096
# has 2 MB on each of 32 devices.
PLAIN_BYTES = {"cpu": 2**22, "accelerator": 2**26}


def run_lengths(config: Config, images: int) -> tuple[int, int]:
    """Steps of the whole run and of its warm-up, from `*_steps` if given and `*_epochs` otherwise.

    Raises:
      SettingError: the batch is larger than the training set, or the run has no step.
    """

    def steps(count: int | None, epochs: float) -> int:
        return count if count is not None else round(epochs * images / config.batch_size)

    if config.batch_size > images:
        raise SettingError(f"batch_size must be at most the {images} training images, found {config.batch_size}")
    total = steps(config.total_steps, config.total_epochs)
    if total < 1:
        raise SettingError(f"total_steps (or total_epochs) must give at least one step, found {total}")
    return total, steps(config.optimizer.warmup_steps, config.optimizer.warmup_epochs)


def make_schedule(config: Config, images: int) -> optax.Schedule:
    """The learning-rate schedule of a config; `images` is the number of training images."""
    total_steps, warmup_steps = run_lengths(config, images)
    settings = config.optimizer
    if warmup_steps >= total_steps:
        name = "warmup_epochs" if settings.warmup_steps is None else "warmup_steps"
        found = f"{warmup_steps} of {total_steps} steps"
        raise SettingError(f"optimizer.{name} must give a warm-up that is shorter than the run, found {found}")
    with section("optimizer"):
        return warmup_cosine(
            learning_rate=settings.learning_rate,
            warmup_steps=warmup_steps,
            total_steps=total_steps,
            final_scale=settings.final_scale,
        )


def make_optimizer(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser of a config."""
    settings = config.optimizer
    with section("optimizer"):
        return lars(
            schedule,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            trust_coefficient=settings.trust_coefficient,
        )


def make_loss(config: Config, mesh: Mesh) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The loss of the embeddings of two views, in tiles or not, as `loss.block_size` says.

    A loss without the argument `block_size` has no tiles; `auto` and `none` both select its only form.

    Raises:
      SettingError: `loss.block_size` is not allowed, or the loss has no tiles.
    """
    loss = functools.partial(LOSSES[config.loss.name], temperature=config.loss.temperature)
    block_size = config.loss.block_size
    if not takes_blocks(loss):
        if block_size.isdecimal():
            raise SettingError(
                f"loss.block_size must be auto or none for the loss '{config.loss.name}', found {block_size}"
            )
        return loss
    rows = config.batch_size * (2 if config.loss.name == "nt_xent" else 1)  # the logits have as many columns
    bound = PLAIN_BYTES["cpu" if platform(mesh) == "cpu" else "accelerator"]
    if block_size == "none" or (block_size == "auto" and 4 * rows**2 / mesh.size <= bound):
        return loss
    return functools.partial(loss, block_size=None if block_size == "auto" else int(block_size), mesh=mesh)


def compile_step(
    config: Config,
    network: Network,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    augmentation: Augmentation,
    mesh: Mesh,
) -> Any:
    """The step of a config as one jitted program over the mesh; the new state reuses the memory of the old one.

    Returns:
      The `jax.jit` of `make_train_step`, a function from the state and a batch to the next state and the scalars.
    """
    step = make_train_step(
        network,
        optimizer,
        schedule,
        loss=make_loss(config, mesh),
        augmentation=augmentation,
        image_size=config.data.image_size,
        seed=config.seed,
        mesh=mesh,
    )
    everywhere, split = replicated(mesh), batch_sharding(mesh)
    return jax.jit(step, donate_argnums=0, in_shardings=(everywhere, split), out_shardings=everywhere)


def step_arguments(
    config: Config, network: Network, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, dict[str, jax.ShapeDtypeStruct]]:
    """Shapes, dtypes and shardings of the state and of the global batch that the step takes; nothing is computed.

    The images have the form in which the loader hands them over: whole images of `data.stored_size`, or two crops.
    """

    def placed(tree: Any, sharding: NamedSharding) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

    size, stored, n = config.data.image_size, config.data.stored_size, config.batch_size
    state = jax.eval_shape(lambda: init_state(network, optimizer, seed=config.seed, image_size=size))
    batch = {
        "image": jax.ShapeDtypeStruct((n, stored, stored, 3) if stored else (n, 2, size, size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((n,), jnp.int32),
        "position": jax.ShapeDtypeStruct((n,), jnp.uint32),
    }
    return placed(state, replicated(mesh)), placed(batch, batch_sharding(mesh))
