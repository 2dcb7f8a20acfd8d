"""The encoders of `experiments.forecast`: digits runs over augmentation amplitudes, with r of two views at early steps.

Each run leaves one small file of arrays; the forecasts are computed from these files, so that another forecast needs no
other run.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from dcjax.collapse import effective_rank, forecast, lasting_directions, spectrum, unit_rows
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
    from dcjax.evaluation.embeddings import view_embeddings
    from dcjax.program import compile_step, make_optimizer, make_schedule, run_lengths
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
    step = compile_step(
        settings, components.network, optimizer, schedule, augmentation=components.augmentation, mesh=components.mesh
    )

    def initial() -> Any:
        return init_state(components.network, optimizer, seed=settings.seed, image_size=settings.data.image_size)

    def record(state: Any, number: int | str) -> dict[str, np.ndarray]:
        views = view_embeddings(components, state.variables, test)
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


# Larger values expect, or show, more collapse.
FORECASTS = {
    "negative rates": "the number of negative rates of X",
    "sum of negative rates": "minus their sum, times |W|_F^2 / d",
    "negative unused rates": "the number of negative unused rates",
    "lost directions": "directions that `lasting_directions` does not count",
    "eq. 2": "negative rates of eq. 2's X, r as it is",
    "eq. 2, scaled": "the same with r divided by its rms norm and the root of the temperature",
    "baseline: rank": "minus the effective rank of r at this step",
    "baseline: noise share": "half the mean square of the difference of two views of r, as a share of r's variance",
    "baseline: amplitude": "the amplitude of the augmentation, known without any step",
}
OUTCOMES = {
    "r < 1e-4": "eigenvalues of unit rows r below 1e-4 of the largest",
    "r < 1e-2": "the same below 1e-2",
    "r < 1e-4, alive": "those below 1e-4 that are no single dead channels of r",
    "rank of r": "minus the effective rank of unit rows r",
    "z < 1e-4": "as for r; with the projector none z is r",
    "rank of z": "as for r",
}
DEAD = 1e-3  # a channel is dead where its standard deviation is at most this share of the largest


def measured(work: pathlib.Path) -> list[dict[str, Any]]:
    """The forecasts and the outcomes of all runs that have a file in `work`."""
    found = []
    for run in all_runs():
        if (file := work / f"{run.name}.npz").exists():
            with np.load(file) as arrays:
                steps = sorted(int(name[2:]) for name in arrays if name.startswith("r_") and name[2:].isdigit())
                found.append(
                    {
                        **dataclasses.asdict(run),
                        "loss": [float(arrays["losses"][i]) for i in (0, -1)],
                        "outcomes": outcomes(arrays["r"], arrays["z"]),
                        "forecasts": {str(step): forecasts(run, arrays, step) for step in steps},
                    }
                )
    return found


def forecasts(run: ImageRun, arrays: Any, step: int) -> dict[str, float]:
    """Every forecast of `FORECASTS` from the two views at a step."""
    views, config = (arrays[f"r_{step}"], arrays[f"r_prime_{step}"]), run.config()
    temperature = config.loss.temperature
    weight = arrays[f"w_{step}"] if run.projector == "linear" else None
    trained = forecast(*views, weight, loss=config.loss.name, temperature=temperature)
    lasting = lasting_directions(
        *views, loss=config.loss.name, temperature=temperature, batch_size=config.probe.eval_batch_size
    )
    plain = forecast(*views, weight, loss="eq2")
    scaled = forecast(*views, weight, loss="eq2", temperature=temperature)
    both = np.concatenate(views).astype(np.float64)
    noise = ((views[0] - views[1]).astype(np.float64) ** 2).sum(axis=1).mean() / 2
    gauge = float((trained.weight**2).sum()) / both.shape[1]
    values = (
        trained.negative,
        -float(trained.rates[trained.rates < 0].sum()) * gauge,
        trained.unused_negative,
        both.shape[1] - lasting.count,
        plain.negative,
        scaled.negative,
        -effective_rank(np.sqrt(spectrum(unit_rows(views[0])))),
        float(noise / both.var(axis=0).sum()),
        run.amplitude,
    )
    return dict(zip(FORECASTS, map(float, values), strict=True))


def outcomes(r: np.ndarray, z: np.ndarray) -> dict[str, float]:
    """Every outcome of `OUTCOMES` from the test images without augmentation."""
    spectra = {name: spectrum(unit_rows(rows)) for name, rows in (("r", r), ("z", z))}

    def below(name: str, tolerance: float) -> int:
        return int((spectra[name] < tolerance * spectra[name][0]).sum())

    deviations = r.std(axis=0)
    dead = int((deviations <= DEAD * deviations.max()).sum())
    ranks = {name: -effective_rank(np.sqrt(values)) for name, values in spectra.items()}
    values = (
        below("r", 1e-4), below("r", 1e-2), max(below("r", 1e-4) - dead, 0), ranks["r"], below("z", 1e-4), ranks["z"],
    )  # fmt: skip
    return dict(zip(OUTCOMES, map(float, values), strict=True))


def rank_correlation(predicted: Sequence[float], outcome: Sequence[float], *, draws: int = 2000) -> tuple[float, ...]:
    """Spearman's rho of runs and its 95 % interval by the bootstrap over runs; nan where one of them is constant.

    Runs of one amplitude resemble each other, so that the interval is too narrow for amplitudes that were not run.
    """
    of = np.stack([predicted, outcome])
    chosen = np.random.default_rng(0).integers(0, of.shape[1], (draws, of.shape[1]))
    chosen[0] = np.arange(of.shape[1])  # the runs themselves
    ranks = stats.rankdata(of[:, chosen], axis=2)
    ranks -= ranks.mean(axis=2, keepdims=True)
    products, squares = (ranks[0] * ranks[1]).sum(axis=1), (ranks**2).sum(axis=2).prod(axis=0)
    rhos = np.divide(products, np.sqrt(squares), out=np.full(draws, np.nan), where=squares > 0)
    low, high = np.nanquantile(rhos, [0.025, 0.975]) if np.isfinite(rhos).any() else (np.nan, np.nan)
    return float(rhos[0]), float(low), float(high)
