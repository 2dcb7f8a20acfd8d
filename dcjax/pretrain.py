"""Contrastive pre-training: read `pretrain` from top to bottom."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dcjax.collapse import plot_spectra
from dcjax.components import Experiment, build, open_workdir, run_lengths
from dcjax.config import CONFIG_FILE, Config, check_same_run
from dcjax.data import Subset
from dcjax.data.augment import Augmentation, two_views
from dcjax.evaluation import spectrum_of_processes
from dcjax.losses import LOSSES
from dcjax.runtime.errors import SettingError
from dcjax.runtime.files import replace_npz, replace_text
from dcjax.runtime.mesh import batch_sharding, check_batch, replicated, to_devices
from dcjax.runtime.randomness import Stream, device_key
from dcjax.training.checkpoint import Checkpointer, abstract_state, check_free_space, holds_checkpoint
from dcjax.training.metrics import MetricsWriter
from dcjax.training.monitor import Monitor, NotFiniteError, StopRequest
from dcjax.training.optim import lars, warmup_cosine
from dcjax.training.state import TrainState, init_state

SPECTRUM_FILE, SPECTRUM_PLOT = "spectrum.npz", "spectrum.png"
# Bytes of logits on one device up to which `loss.block_size=auto` holds all of them. On CPU, on one device and on
# eight, all logits at once are mostly faster up to 4 MB and tiles above 16 MB; in between it depends on the loss
# (experiments/results/loss_tiling_cpu.jsonl). On an accelerator one tile has 4,096 x 4,096 logits, which is 64 MB:
# fewer logits would be a single tile. The bound was not measured there. The paper's batch of 4,096 has 2 MB on each of
# 32 devices.
PLAIN_BYTES = {"cpu": 2**22, "accelerator": 2**26}
SPECTRUM_IMAGES = 25_600  # of the training split, where it stands in for a test split

TrainStep = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def pretrain(config: Config, workdir: str | os.PathLike[str], *, extend: bool = False) -> TrainState:
    """Trains an encoder as a config says, from the last checkpoint in `workdir` if there is one.

    Writes `config.json`, `metrics.jsonl`, TensorBoard events, `checkpoints/`, and at the end `spectrum.npz` and
    `spectrum.png`.

    Args:
      config: as the files in `configs/` make it.
      workdir: the run's folder, made where it is missing.
      extend: go on with a run to another length, although its learning rate then jumps; the run must exist.

    Returns:
      The trained state.

    Raises:
      ValueError: a setting, data set or checkpoint that cannot be used, an image that does not decode, or a loss that
        is not finite. Checkpoints that were written stay.
      SystemExit: SIGINT or SIGTERM came; the state is saved.
    """
    # The devices, the data, the modules, the folder.
    experiment = build(config)
    mesh, source = experiment.mesh, experiment.train_source
    check_batch(config.batch_size, mesh)
    total_steps, _ = run_lengths(config, len(source))
    schedule = make_schedule(config, len(source))
    optimizer = make_optimizer(config, schedule)
    if extend and not holds_checkpoint(workdir):
        raise SettingError(
            f"--extend goes on with a run, and --workdir {workdir} holds none; leave it out to begin one"
        )
    workdir = open_workdir(workdir)  # last, so that a command that is refused leaves nothing behind

    # The step as one program over the mesh. The old state's memory becomes the new one's.
    train_step = jax.jit(
        make_train_step(
            experiment.network,
            optimizer,
            schedule,
            loss=make_loss(config, mesh),
            augmentation=experiment.augmentation,
            image_size=config.data.image_size,
            seed=config.seed,
            mesh=mesh,
        ),
        donate_argnums=0,
        in_shardings=(replicated(mesh), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )

    # The state, from the checkpoint or from the seed.
    checkpointer = Checkpointer(workdir)
    state, saved = start_or_resume(experiment, optimizer, checkpointer, workdir)
    first_step = saved.step if saved else 0
    if saved:
        check_length(saved, experiment, schedule, extend=extend)

    def save(step: int) -> None:
        position = {"step": step, "batch_size": config.batch_size, "seed": config.seed, "data": source.fingerprint}
        record = {**position, "unlogged": monitor.sums}
        checkpointer.save(step, state=state, position=record, config=json.loads(json.dumps(config.to_dict())))

    # The data, from the position that the step alone determines.
    crops = {"views": 2, "interpolation": experiment.augmentation.interpolation}
    loader = experiment.train_batches(source, batch_size=config.batch_size, stream=Stream.ORDER, **crops)
    loader.seek(first_step)
    if jax.process_index() == 0:
        replace_text(workdir / CONFIG_FILE, json.dumps(config.to_dict(), indent=2) + "\n")
        print(describe(experiment, first_step, total_steps), flush=True)
    # Steps that no regular line averages yet: the run was stopped between two lines, and its last one is not kept.
    unlogged = saved.unlogged if saved and first_step < total_steps else {}
    writer = MetricsWriter(
        workdir,
        first_step=first_step,
        kept_step=first_step - bool(unlogged),
        total_steps=total_steps,
        batch_size=config.batch_size,
    )
    monitor = Monitor(writer, every=config.log_every_steps, batch_size=config.batch_size, sums=unlogged)

    # The loop.
    step = first_step
    with StopRequest() as stop:  # until the checkpoint is written: a signal may come twice
        try:
            while step < total_steps and not stop.reached(step):
                batch = to_devices(next(loader), mesh)
                with jax.transfer_guard("disallow"):  # nothing crosses between host and device unseen
                    state, metrics = train_step(state, batch)
                step += 1
                monitor.push(step, metrics)
                if step % config.checkpoint_every_steps == 0 and step < total_steps:
                    monitor.drain()  # what is saved has been seen to be finite
                    save(step)
            monitor.drain()
            save(step)
        except SettingError as error:
            # A damaged image is no reason to lose the steps before it. With several processes only this one knows of
            # it, and a checkpoint is written together: there the last regular one must do.
            if step > first_step and not isinstance(error, NotFiniteError) and jax.process_count() == 1:
                monitor.drain()
                save(step)
            raise
        finally:
            monitor.flush()
            writer.close()
            loader.close()
            checkpointer.close()
    if step < total_steps:
        raise SystemExit(f"dcjax: stopped at step {step} of {total_steps}; the same command goes on from there")

    # What came out of it.
    write_spectrum(experiment, state, workdir)
    return state


def make_schedule(config: Config, images: int) -> optax.Schedule:
    """The learning-rate schedule of a config with so many training images."""
    total_steps, warmup_steps = run_lengths(config, images)
    return warmup_cosine(
        learning_rate=config.optimizer.learning_rate,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        final_scale=config.optimizer.final_scale,
    )


def make_optimizer(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser of a config."""
    settings = config.optimizer
    return lars(
        schedule,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        trust_coefficient=settings.trust_coefficient,
    )


def make_loss(config: Config, mesh: Mesh) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The loss of two views' embeddings, with as much of the logits in memory as the config asks for."""
    loss = functools.partial(LOSSES[config.loss.name], temperature=config.loss.temperature)
    block_size = str(config.loss.block_size)
    rows = config.batch_size * (2 if config.loss.name == "nt_xent" else 1)  # and columns of the logits
    bound = PLAIN_BYTES["cpu" if jax.default_backend() == "cpu" else "accelerator"]
    if block_size == "none" or (block_size == "auto" and 4 * rows**2 / mesh.size <= bound):
        return loss
    tiles = None if block_size == "auto" else int(block_size)
    return functools.partial(loss, block_size=tiles, mesh=mesh)


def make_objective(
    network: nn.Module, loss: Callable[[jax.Array, jax.Array], jax.Array], *, seed: int
) -> Callable[..., Any]:
    """What a step minimises: the contrastive loss of two views, and the loss of the online classifier.

    Args:
      network: a `dcjax.models.Network`.
      loss: of the embeddings of both views.
      seed: the run's seed; what the projector draws for a step, the same for both views, follows from it.

    Returns:
      A pure function of `(params, state, x, x_prime, labels)` to the objective and `(batch_stats, metrics)`; `state`
      gives the batch statistics and the fixed matrices.
    """

    def objective(
        params: Any, state: TrainState, x: jax.Array, x_prime: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        def apply(images: jax.Array, batch_stats: Any) -> tuple[Any, Any]:
            variables = {"params": params, "batch_stats": batch_stats, "constants": state.constants}
            rngs = {"projector": jax.random.fold_in(device_key(seed, Stream.PROJECTOR), state.step)}
            out, updates = network.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])
            return out, updates["batch_stats"]

        # Each view has its own batch statistics over the global batch, as in the authors' two calls.
        (_, z, logits), batch_stats = apply(x, state.batch_stats)
        (_, z_prime, _), batch_stats = apply(x_prime, batch_stats)
        contrastive = loss(z, z_prime)
        if logits is None:
            return contrastive, (batch_stats, {"loss": contrastive})
        online = jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))
        right = jnp.argmax(logits, axis=1) == labels
        metrics = {
            "loss": contrastive,
            "online_loss": online,
            "online_accuracy": jnp.mean(right.astype(jnp.float32)),
        }
        # The gradient of the online loss ends at the classifier: r stands behind a stopped gradient.
        return contrastive + online, (batch_stats, metrics)

    return objective


def make_train_step(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    augmentation: Augmentation,
    image_size: int,
    seed: int,
    mesh: Mesh,
) -> TrainStep:
    """The pure step of a global batch: augment, encode each view, project, contrast, update.

    Returns:
      A function of the state and a batch of `image`, `label` and `position` to the next state and the step's scalars.
    """
    objective = make_objective(network, loss, seed=seed)

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        key = device_key(seed, Stream.AUGMENTATION)
        images, positions = batch["image"], batch["position"]
        x, x_prime = two_views(images, key, positions, size=image_size, settings=augmentation, mesh=mesh)
        differentiate = jax.grad(objective, has_aux=True)
        gradient, (batch_stats, metrics) = differentiate(state.params, state, x, x_prime, batch["label"])
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {
            "gradient_norm": optax.tree.norm(gradient),
            # Of the state that this step leaves: what a checkpoint holds has been seen to be finite.
            "parameter_norm": optax.tree.norm(params),
            "statistics_norm": optax.tree.norm(batch_stats),
            "learning_rate": schedule(state.step),
        }
        next_state = TrainState(state.step + 1, params, batch_stats, state.constants, opt_state)
        return next_state, metrics

    return train_step


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a checkpoint tells besides the state.

    Attributes:
      step: optimiser steps taken.
      config: the run's config when it was written, nested.
      unlogged: `Monitor.sums` at that step.
    """

    step: int
    config: dict[str, Any]
    unlogged: dict[str, float]


def start_or_resume(
    experiment: Experiment, optimizer: optax.GradientTransformation, checkpointer: Checkpointer, workdir: pathlib.Path
) -> tuple[TrainState, Saved | None]:
    """The state to begin with: the last checkpoint's and what else it tells, or one drawn from the seed and None."""
    config, everywhere = experiment.config, replicated(experiment.mesh)

    def initial_state() -> TrainState:
        return init_state(experiment.network, optimizer, seed=config.seed, image_size=config.data.image_size)

    shapes = jax.eval_shape(initial_state)
    step = checkpointer.latest_step()
    if step is None:
        check_free_space(workdir, shapes)
        return jax.jit(initial_state, out_shardings=everywhere)(), None
    position, saved_config = checkpointer.restore_record(step)
    check_same_run(saved_config, config)
    if position["data"] != experiment.train_source.fingerprint:
        raise SettingError(
            f"data.dir {config.data.dir or '(default)'} holds other images than the run in {workdir} was trained on; "
            "point it at the same ones or use another --workdir"
        )
    state = checkpointer.restore_state(step, abstract_state(shapes, everywhere))
    return state, Saved(step, saved_config, position["unlogged"])


def check_length(saved: Saved, experiment: Experiment, schedule: optax.Schedule, *, extend: bool) -> None:
    """Refuses another length of a run where the learning rate would jump, or says so where that is asked for.

    The schedule depends on the length: a run that ends with a rate near zero goes on with a large one when its length
    is doubled. During the warm-up nothing jumps, and another length is accepted.

    Raises:
      ValueError: the rate of the next step differs and `extend` is not set, or the run is already longer.
    """
    images = len(experiment.train_source)
    before = ConfigDict(saved.config)
    lengths = [run_lengths(config, images)[0] for config in (before, experiment.config)]
    setting = "total_steps" if experiment.config.total_steps is not None else "total_epochs"
    if lengths[1] < saved.step:
        raise SettingError(
            f"{setting} gives {lengths[1]} steps, but the run has taken {saved.step}; give at least these"
        )
    if lengths[1] == saved.step:  # nothing is left to train
        return
    rates = [float(np.asarray(rule(saved.step))) for rule in (make_schedule(before, images), schedule)]
    if rates[0] == rates[1]:
        return
    change = (
        f"another length ({lengths[0]} steps before, {lengths[1]} now) moves the learning rate of step "
        f"{saved.step + 1} from {rates[0]:.4g} to {rates[1]:.4g}"
    )
    if not extend:
        raise SettingError(
            f"{setting}: {change}; use the old value, another --workdir, or --extend to go on all the same"
        )
    if jax.process_index() == 0:
        print(f"dcjax: {change}", flush=True)


def describe(experiment: Experiment, first_step: int, total_steps: int) -> str:
    """One line that says what is about to run."""
    config, mesh = experiment.config, experiment.mesh
    start = f", resumed at step {first_step}" if first_step else ""
    return (
        f"dcjax: {config.model.name} ({experiment.width}-d) with the projector '{config.projector.name}' on "
        f"{len(experiment.train_source)} images of '{experiment.train_source.name}', {total_steps} steps of "
        f"{config.batch_size} on {mesh.size} {mesh.devices.flat[0].platform} device(s){start}"
    )


def write_spectrum(experiment: Experiment, state: TrainState, workdir: pathlib.Path) -> None:
    """Writes the spectra of r and z on the test images as `spectrum.npz` and `spectrum.png`.

    The file holds eq. 1 as it stands (`r`, `z`) and of rows of norm 1 (`r_unit`, `z_unit`), which the plot shows, as
    the authors' plots do: the loss sees directions only, and r and z fit on one scale. Each also as its natural
    logarithm (`ln_r`, ...; -inf for an exact zero). Without a test split, up to 25,600 evenly spaced training images
    stand in.
    """
    split, source = "test", experiment.test_source
    if source is None:
        split, source = "training", experiment.train_source
        if len(source) > SPECTRUM_IMAGES:
            source = Subset(source, np.linspace(0, len(source) - 1, SPECTRUM_IMAGES).astype(np.int64))
    if jax.process_index() == 0:
        print(f"dcjax: computing the spectrum on {len(source)} {split} images", flush=True)
    features = experiment.features(state.variables, source, keep=("r", "z"))
    assert features.z is not None
    spectra = {}
    for name, rows in (("r", features.r[: features.own]), ("z", features.z[: features.own])):
        for suffix, normalize in (("", False), ("_unit", True)):
            spectra[name + suffix] = spectrum_of_processes(rows, normalize=normalize)
    if jax.process_index() != 0:
        return
    with np.errstate(divide="ignore"):
        logarithms = {f"ln_{name}": np.log(values) for name, values in spectra.items()}
    replace_npz(workdir / SPECTRUM_FILE, spectra | logarithms)
    curves = {
        f"representation r ({len(spectra['r'])}-d)": spectra["r_unit"],
        f"embedding z ({len(spectra['z'])}-d)": spectra["z_unit"],
    }
    title = f"{experiment.config.projector.name} projector, {len(source)} {split} images"
    plot_spectra(curves, workdir / SPECTRUM_PLOT, title=title)
    print(f"dcjax: spectrum of r and z in {workdir / SPECTRUM_PLOT}", flush=True)
