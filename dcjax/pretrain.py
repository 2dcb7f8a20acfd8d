"""Contrastive pre-training: read `pretrain` from top to bottom."""

import contextlib
import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from dcjax.aot.profile import ProfiledStep, check_steps
from dcjax.collapse.plot import plot_spectra
from dcjax.components import Components, build
from dcjax.config import Origin, write_config, write_origin
from dcjax.data import Subset, TrainLoader
from dcjax.evaluation import spectrum_of_processes
from dcjax.losses import chance_loss
from dcjax.program import compile_step, make_loss, make_optimizer, make_schedule, run_lengths, step_arguments
from dcjax.resume import Saved, check_kept, check_length, open_workdir, start_or_resume
from dcjax.runtime.errors import StoppedRunError
from dcjax.runtime.files import forgiving, replace_npz
from dcjax.runtime.mesh import check_batch, to_devices
from dcjax.runtime.randomness import Stream
from dcjax.runtime.signals import listens
from dcjax.schema import Config, section
from dcjax.training.checkpoint import CannotSaveError, Checkpointer
from dcjax.training.metrics import MetricsWriter, NotFiniteError, StepMetrics
from dcjax.training.monitor import Monitor
from dcjax.training.repeat import explain
from dcjax.training.signals import StopRequest
from dcjax.training.state import TrainState, init_state
from dcjax.training.watchdog import Watchdog

SPECTRUM_FILE, SPECTRUM_PLOT, PROFILE_FOLDER = "spectrum.npz", "spectrum.png", "profile"
NO_SPECTRUM = "the run is saved; the same command tries again"
SPECTRUM_IMAGES = 25_600  # training images, at most, that stand in for a missing test split


def pretrain(
    config: ConfigDict | Config,
    workdir: str | os.PathLike[str],
    *,
    extend: bool = False,
    origin: Origin | None = None,
    profile: tuple[int, int] | None = None,
) -> TrainState:
    """Trains the encoder of a config, resuming from the last checkpoint in `workdir` if there is one.

    Writes `config.json`, `metrics.jsonl`, `spectra.jsonl`, TensorBoard events, `checkpoints/`, and at the end
    `spectrum.npz` and `spectrum.png`.

    Args:
      config: the config, as the files in `configs/` return it.
      workdir: the run's folder; it is created if it is missing.
      extend: resume a run with another length, although its learning rate then jumps; the run must exist.
      origin: the command, which is written to `command.json` for reports.
      profile: the first and the last step to record for TensorBoard, in the folder `profile`; None for no record.

    Returns:
      The trained state.

    Raises:
      SettingError: a setting, the data set or a checkpoint cannot be used, too many images do not decode, or the loss,
        the gradient or the state is not finite. Checkpoints that were written stay.
      InterruptedRunError: another process trains the run, or a checkpoint cannot be read at this moment.
      StoppedRunError: SIGINT or SIGTERM stopped the run; the state is saved.
    """
    # The devices, the data, the modules, the step, the folder.
    components = build(config)
    settings, mesh, source = components.config, components.mesh, components.train_source
    check_batch(settings.batch_size, mesh)
    check_kept(settings)
    total_steps, warmup_steps = run_lengths(settings, len(source))
    check_steps(profile, done=0, total=total_steps)
    schedule = make_schedule(settings, len(source))
    optimizer = make_optimizer(settings, schedule)
    train_step = compile_step(
        settings, components.network, optimizer, schedule, augmentation=components.augmentation, mesh=mesh
    )
    monitor = components.monitor()
    workdir = open_workdir(workdir, extend=extend)  # last, so that a refused command leaves nothing behind

    # A library call must not end its process, such as the kernel of a notebook.
    watchdog = Watchdog(settings.watchdog_seconds if listens() else 0)
    kept = dataclasses.asdict(settings.checkpoint)
    with watchdog, contextlib.closing(Checkpointer(workdir, watch=watchdog.phase, **kept)) as checkpointer:
        # The state, from the checkpoint or from the seed.
        state, saved = start_or_resume(components, optimizer, checkpointer, workdir, phase=watchdog.phase)
        step = saved.step if saved else 0
        if saved:
            check_length(saved, components, schedule, extend=extend)
        check_steps(profile, done=step, total=total_steps)

        # The data, from the position that the step alone determines, and the log.
        crops = {"views": 2, "interpolation": components.augmentation.interpolation}
        loader = components.train_batches(source, batch_size=settings.batch_size, stream=Stream.ORDER, **crops)
        loader.seek(step)
        if profile is not None:
            compiled = train_step.lower(*step_arguments(settings, components.network, optimizer, mesh)).compile()
            steps = {"first": profile[0], "last": profile[1], "done": step, "devices": len(mesh.local_devices)}
            train_step = ProfiledStep(compiled, workdir / PROFILE_FOLDER, **steps)
        lengths = {"total_steps": total_steps, "warmup_steps": warmup_steps}
        log = open_log(components, monitor, saved, workdir, origin=origin, **lengths)

        # The loop.
        run = Run(components, optimizer, train_step, loader, log, checkpointer, watchdog)
        with contextlib.ExitStack() as opened:
            for part in (loader, log):  # each is closed, whatever happens in the others; the log first
                opened.callback(part.close)
            if isinstance(train_step, ProfiledStep):
                opened.callback(train_step.close)
            state, step, stopped = run.train(state, step, total_steps)
    if stopped:
        raise StoppedRunError(f"stopped at step {step} of {total_steps}; the same command goes on from there")

    # The spectra of the trained encoder.
    write_spectrum(components, state, workdir)
    return state


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop of a run works with; `train_step` is the compiled step."""

    components: Components
    optimizer: optax.GradientTransformation
    train_step: Any
    loader: TrainLoader
    log: StepMetrics
    checkpointer: Checkpointer
    watchdog: Watchdog

    def train(self, state: TrainState, first_step: int, total_steps: int) -> tuple[TrainState, int, bool]:
        """Takes steps until the last one or a signal; returns the saved state, its step, and whether it stopped."""
        mesh, log, checkpointer, phase = self.components.mesh, self.log, self.checkpointer, self.watchdog.phase
        every, step, stopped = self.components.config.checkpoint_every_steps, first_step, False
        with StopRequest() as stop:  # includes the last checkpoint, since a signal may come twice
            try:
                log.look(step, state.variables)
                while step < total_steps and not (stopped := stop.reached()):
                    with section("data"), phase(f"the batch of step {step + 1}"):
                        batch = to_devices(next(self.loader), mesh)
                    with phase(f"step {step + 1}", limited=step > first_step):  # the first one is compiled
                        with jax.transfer_guard("disallow"):  # an implicit transfer between host and device is an error
                            state, metrics = self.train_step(state, batch)
                        stop.begin()
                        step += 1
                        log.push(step, metrics)
                    with phase(f"the look at step {step}", limited=log.has_looked):  # compiled at the first one
                        log.look(step, state.variables)  # before the next step takes over the memory of this state
                    checkpointer.raise_if_failed()
                    if step % every == 0 and step < total_steps:
                        self.save(state, step)
                stop.loop_ended()
                if step == total_steps:
                    with phase(f"step {step}"):
                        log.finish()  # a run that goes on at its last step has its whole log
                if step > first_step:  # or else there is nothing new
                    self.save(state, step)
                checkpointer.wait()
                stop.finish()
                with phase("the end of the training in the other processes"):
                    stopped = stopped or stop.came_late()
            except NotFiniteError as error:
                stop.finish()
                raise self.cause_of(error, state, stop) from error
            except Exception as error:
                # Damaged images or a fault in a thread should not cost the steps before them. With several processes,
                # all must write a checkpoint together, but only this one knows of the error: there the last regular
                # one has to do. After a failure of the devices there may be no state to save.
                lost = CannotSaveError | jax.errors.JaxRuntimeError
                if step > first_step and not isinstance(error, lost) and jax.process_count() == 1:
                    self.save(state, step)
                    checkpointer.wait()
                raise
        return state, step, stopped

    def save(self, state: TrainState, step: int) -> None:
        """Starts writing a checkpoint, once the state is known to be finite."""
        config = self.components.config
        with self.watchdog.phase(f"step {step}"):
            self.log.drain()  # raises if the state is not finite
        position = {
            "step": step,
            "batch_size": config.batch_size,
            "seed": config.seed,
            "data": self.components.train_source.fingerprint,
            "unlogged": self.log.sums,
        }
        self.checkpointer.save(step, state=state, position=position, config=dataclasses.asdict(config))

    def cause_of(self, error: NotFiniteError, state: TrainState, stop: StopRequest) -> NotFiniteError:
        """The error with the first thing in its step that is not finite; the memory of `state` is freed."""
        train_step, components = self.train_step, self.components
        if isinstance(train_step, ProfiledStep):
            with contextlib.suppress(Exception):  # the record ends before the repeated steps; the error matters more
                train_step.close()
            train_step = train_step.compiled
        config, network = components.config, components.network
        size, seed = config.data.image_size, config.seed
        return explain(
            error,
            state=state,
            initial_state=lambda: init_state(network, self.optimizer, seed=seed, image_size=size),
            train_step=train_step,
            checkpointer=self.checkpointer,
            loader=self.loader,
            phase=self.watchdog.phase,
            stop=stop,
            network=network,
            loss=make_loss(config, components.mesh),
            augmentation=components.augmentation,
            image_size=size,
            seed=seed,
            mesh=components.mesh,
        )


def open_log(
    components: Components,
    monitor: Monitor | None,
    saved: Saved | None,
    workdir: pathlib.Path,
    *,
    total_steps: int,
    warmup_steps: int,
    origin: Origin | None,
) -> StepMetrics:
    """Writes the config, prints a line about the run, and opens its log at the step where it begins or resumes."""
    config = components.config
    first_step = saved.step if saved else 0
    if jax.process_index() == 0:
        write_config(workdir, config, resumed=saved is not None)
        if origin is not None:
            write_origin(workdir, origin, resumed=saved is not None)
        print(describe(components, first_step, total_steps), flush=True)
    # A run that stopped between two regular lines wrote a partial one. It is dropped: the next regular line averages
    # these steps too.
    unlogged = saved.unlogged if saved and first_step < total_steps else {}
    writer = MetricsWriter(
        workdir,
        first_step=first_step,
        kept_step=first_step - bool(unlogged),
        total_steps=total_steps,
        batch_size=config.batch_size,
        warmup_steps=warmup_steps,
        chance=chance_loss(config.loss.name, config.batch_size),
    )
    return StepMetrics(
        writer,
        every=config.log_every_steps,
        batch_size=config.batch_size,
        sums=unlogged,
        monitor=monitor,
        look_every=config.monitor.every_steps,
    )


def describe(components: Components, first_step: int, total_steps: int) -> str:
    """One line about the run: its network, its data, its length and its devices."""
    config, mesh = components.config, components.mesh
    start = f", resumed at step {first_step}" if first_step else ""
    return (
        f"dcjax: {config.model.name} ({components.width}-d) with the projector '{config.projector.name}' on "
        f"{len(components.train_source)} images of '{components.train_source.name}', {total_steps} steps of "
        f"{config.batch_size} on {mesh.size} {mesh.devices.flat[0].platform} device(s){start}"
    )


def write_spectrum(components: Components, state: TrainState, workdir: pathlib.Path) -> None:
    """Writes the spectra of r and z on the test images as `spectrum.npz` and `spectrum.png`.

    The file holds the spectra of eq. 1 (`r`, `z`), the spectra of rows scaled to norm 1 (`r_unit`, `z_unit`), and the
    natural logarithm of each (`ln_r`, ...; -inf for an exact zero). The plot shows those of norm 1, as the authors'
    plots do: the loss sees only directions, and r and z then fit on one scale. Without a test split, up to 25,600
    evenly spaced training images stand in.
    """
    split, source = "test", components.test_source
    if source is None:
        split, source = "training", components.train_source
        if len(source) > SPECTRUM_IMAGES:
            source = Subset(source, np.linspace(0, len(source) - 1, SPECTRUM_IMAGES).astype(np.int64))
    if jax.process_index() == 0:
        print(f"dcjax: computing the spectrum on {len(source)} {split} images", flush=True)
    features = components.features(state.variables, source, keep=("r", "z"))
    assert features.z is not None
    spectra = {}
    for name, rows in (("r", features.r[: features.own]), ("z", features.z[: features.own])):
        for suffix, normalize in (("", False), ("_unit", True)):
            spectra[name + suffix] = spectrum_of_processes(rows, normalize=normalize)
    if jax.process_index() != 0:
        return
    with np.errstate(divide="ignore"):
        logarithms = {f"ln_{name}": np.log(values) for name, values in spectra.items()}
    with forgiving(workdir / SPECTRUM_FILE, NO_SPECTRUM):
        replace_npz(workdir / SPECTRUM_FILE, spectra | logarithms)
    curves = {
        f"representation r ({len(spectra['r'])}-d)": spectra["r_unit"],
        f"embedding z ({len(spectra['z'])}-d)": spectra["z_unit"],
    }
    title = f"{components.config.projector.name} projector, {len(source)} {split} images"
    with forgiving(workdir / SPECTRUM_PLOT, NO_SPECTRUM):
        plot_spectra(curves, workdir / SPECTRUM_PLOT, title=title)
        print(f"dcjax: spectrum of r and z in {workdir / SPECTRUM_PLOT}", flush=True)
