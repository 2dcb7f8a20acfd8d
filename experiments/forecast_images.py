"""The encoders of `experiments.forecast`: digits runs over augmentation amplitudes, with r of two views at early steps.

Each run leaves one small file of arrays; the forecasts are computed from these files, so that another forecast needs no
other run.
"""

import dataclasses
import itertools
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dcjax.runtime.files import replace_npz
from experiments.scales import make_config

AMPLITUDES = (0.0, 0.25, 0.5, 0.75, 1.0)
PROJECTORS = ("none", "linear")
SEEDS = 3
EARLY = (0, 20, 50)


@dataclasses.dataclass(frozen=True)
class ImageRun:
    """A run: a projector of the digits scale, the amplitude of its augmentation and its seed."""

    projector: str
    amplitude: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.projector}_{self.amplitude:g}_{self.seed}"

    def config(self) -> ConfigDict:
        """The digits scale, whose augmentation is interpolated from none to far beyond its own.

        At amplitude 1 a crop has 10 % or more of the image, and brightness and contrast change by up to 80 %; the
        quickstart has 40 % and 40 %, which is near 0.5 to 0.67.
        """
        a = self.amplitude
        changes = {
            "augment.crop_scale": (1 - 0.9 * a, 1.0),
            "augment.brightness": 0.8 * a,
            "augment.contrast": 0.8 * a,
            "probe.eval_batch_size": 120,  # divides the 360 test images
        }
        return make_config("digits", self.projector, seed=self.seed, changes=changes)


def all_runs() -> list[ImageRun]:
    """The runs, seed by seed, so that a part of them covers all amplitudes."""
    return [ImageRun(p, a, seed) for seed, p, a in itertools.product(range(SEEDS), PROJECTORS, AMPLITUDES)]


def train(run: ImageRun, file: pathlib.Path, *, early: tuple[int, ...] = EARLY, total_steps: int | None = None) -> None:
    """Trains a run and writes its arrays.

    The steps are those of `dcjax.pretrain.pretrain`, without its checkpoints, of which a run keeps only the last two.

    Args:
      run: the run.
      file: the `.npz` to write: `r_STEP`, `r_prime_STEP` `[360, d]`, two views of the test images at each early step;
        `w_STEP` `[e, d]`, the linear projector; at the end `r`, `z` of the images without augmentation, `r_views`,
        `r_prime_views`.
      early: the early steps.
      total_steps: the length of the run, if it is not the recipe's.
    """
    # Imported here because they load JAX; a finished run should be reported at once.
    import jax

    from dcjax.components import build
    from dcjax.evaluation.embeddings import view_embedder
    from dcjax.pretrain import compile_step, make_optimizer, make_schedule, run_lengths
    from dcjax.runtime.mesh import replicated, to_devices
    from dcjax.runtime.randomness import Stream
    from dcjax.training.state import init_state

    config = run.config()
    if total_steps is not None:
        config.total_steps, config.optimizer.warmup_steps = total_steps, 1
    components = build(config)
    settings, mesh, source = components.config, components.mesh, components.train_source
    test = components.test_source
    assert test is not None
    schedule = make_schedule(settings, len(source))
    optimizer = make_optimizer(settings, schedule)
    step = compile_step(components, optimizer, schedule)
    embed = view_embedder(components, test)

    def initial() -> Any:
        return init_state(components.network, optimizer, seed=settings.seed, image_size=settings.data.image_size)

    def record(state: Any, number: int | str) -> dict[str, np.ndarray]:
        views = embed(state.variables)
        found = {f"{name}_{number}": views[name] for name in ("r", "r_prime")}
        if run.projector == "linear":
            found[f"w_{number}"] = np.asarray(state.params["projector"]["linear"]["kernel"]).T
        return found

    state = jax.jit(initial, out_shardings=replicated(mesh))()
    crops = {"views": 2, "interpolation": components.augmentation.interpolation}
    loader = components.train_batches(source, batch_size=settings.batch_size, stream=Stream.ORDER, **crops)
    arrays: dict[str, np.ndarray] = {}
    losses = []
    for number in range(run_lengths(settings, len(source))[0]):
        if number in early:
            arrays |= record(state, number)
        state, metrics = step(state, to_devices(next(loader), mesh))
        losses.append(metrics["loss"])
    loader.close()
    features = components.features(state.variables, test, keep=("r", "z"))
    arrays |= record(state, "views") | {"losses": np.asarray(jax.device_get(losses)), "r": features.r, "z": features.z}
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_npz(file, arrays)
