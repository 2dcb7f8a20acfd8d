"""Beyond the paper: how many dimensions collapse, over the strength of the augmentation and the depth of the model."""

import dataclasses
import sys
import time

import jax
import numpy as np
from tqdm import tqdm

from dcjax.toy.simulate import Setting, Trajectory, collapsed, simulate
from dcjax.toy.statements.claims import Check, Report, counts
from dcjax.toy.statements.ensembles import STRONG
from dcjax.toy.statements.plot import Map, draw_maps

THRESHOLD = 1e-2


@dataclasses.dataclass(frozen=True)
class Size:
    """How finely the diagram is drawn."""

    amplitudes: int
    depth: int
    seeds: int
    steps: int
    samples: int


# The first takes a few minutes on two cores.
SMALL = Size(amplitudes=32, depth=4, seeds=3, steps=10000, samples=64)
FULL = Size(amplitudes=64, depth=6, seeds=8, steps=20000, samples=128)


def phase(
    *,
    seed: int = 0,
    seeds: int | None = None,
    dim: int = 16,
    amplitude: float = 2.0,
    depth: int | None = None,
    steps: int | None = None,
) -> Report:
    """Counts the collapsed dimensions of linear chains over a grid of augmentation amplitudes and depths.

    Args:
      seed: the first seed.
      seeds: how many; None for 3 on a CPU, 8 on an accelerator.
      dim: width of every layer.
      amplitude: the upper end of the axis of noise variances; the noise is on the last dim // 2 coordinates.
      depth: the deepest chain; None for 4 on a CPU, 6 on an accelerator.
      steps: of SGD; None for 10,000 on a CPU, 20,000 on an accelerator.
    """
    size = SMALL if jax.default_backend() == "cpu" else FULL
    seeds, depth, steps = seeds or size.seeds, depth or size.depth, steps or size.steps
    amplitudes = np.linspace(0, amplitude, size.amplitudes + 1)[1:]
    # Deep chains under strong noise diverge at the learning rate of the figures.
    setting = dataclasses.replace(STRONG, dim=dim, samples=size.samples, learning_rate=0.01)
    trajectory = _train(setting, range(1, depth + 1), amplitudes, range(seed, seed + seeds), steps)
    finite = trajectory.finite()  # [depths, amplitudes, seeds]
    lost = int((~finite).sum())
    kept = dataclasses.replace(trajectory, weights=np.where(finite[..., None, None, None, None], trajectory.weights, 0))
    number = collapsed(kept.embedding_spectra()[:, :, :, -1], below=THRESHOLD).astype(float)
    number[~finite] = np.nan
    share = np.full(number.shape[:2], np.nan)
    alive = finite.sum(axis=2) > 0
    share[alive] = np.nanmean(number[alive], axis=1)
    edges = np.append(amplitudes - 0.5 * amplitudes[0], amplitudes[-1] + 0.5 * amplitudes[0])
    return Report(
        title="Phase diagram: two causes of collapse",
        statement=f"eigenvalues of the embeddings' covariance below {THRESHOLD:g} of the largest, of {dim}",
        checks=_checks(amplitudes, number, share, dim // 2),
        notes=[
            "Along the bottom row the augmentation collapses the noisy half as its variance reaches that of pairs of "
            "inputs, 1; along the left column depth does with hardly any noise.",
            f"{number.size} models of {steps} steps; {lost} diverged and are left out.",
        ],
        draw=lambda path: draw_maps(
            path,
            [
                Map(
                    share,
                    f"linear chains, noise on {dim // 2} of {dim} coordinates, mean of {seeds} seeds",
                    "variance of the augmentation's noise (pairs of inputs: 1)",
                    "layers",
                    "collapsed dimensions",
                    (0.0, float(dim)),
                    x_edges=edges,
                    y_names=[str(i) for i in range(1, depth + 1)],
                    mark=1.0,
                    wide=True,
                )
            ],
        ),
        numbers={
            "amplitudes": amplitudes,
            "depths": np.arange(1, depth + 1),
            "collapsed": share,
            "seeds": seeds,
            "steps": steps,
            "samples": size.samples,
            "learning_rate": setting.learning_rate,
            "diverged": lost,
        },
    )


def _train(setting: Setting, depths: range, amplitudes: np.ndarray, seeds: range, steps: int) -> Trajectory:
    """Trains all cells as one compiled batch: says first what it will take, then shows how far it is."""
    grid = {"depths": list(depths), "amplitudes": amplitudes.tolist(), "seeds": list(seeds)}
    simulate(setting, **grid, steps=[1])  # compiles
    start = time.perf_counter()
    probe = min(steps, 20)
    simulate(setting, **grid, steps=[probe])
    seconds = (time.perf_counter() - start) / probe * steps
    models = len(depths) * len(amplitudes) * len(seeds)
    print(
        f"phase diagram: {len(amplitudes)} amplitudes x {len(depths)} depths x {len(seeds)} seeds = {models} models, "
        f"{steps} steps each: about {seconds / 60:.1f} min on {jax.device_count()} x {jax.devices()[0].device_kind}",
        file=sys.stderr,
    )
    with tqdm(total=steps, unit="step", file=sys.stderr) as bar:
        return simulate(setting, **grid, steps=[steps], progress=lambda step: bar.update(step - bar.n))


def _checks(amplitudes: np.ndarray, number: np.ndarray, share: np.ndarray, noisy: int) -> list[Check]:
    """What the diagram must show, where its axes reach far enough."""
    checks = []
    single, weakest = number[0], share[:, 0]
    for claim, where, stated in (("<= 0.5", amplitudes <= 0.5, 0), (">= 1.5", amplitudes >= 1.5, noisy)):
        found = single[where]
        found = found[np.isfinite(found).all(axis=1)]
        if len(found):
            median = np.median(found, axis=1).astype(int)
            checks.append(counts(f"one layer, noise {claim}: collapsed", median, stated, stated))
    if len(weakest) > 1:
        up = np.diff(weakest)
        checks.append(Check("weakest noise: count grows with depth", "> 0", f"{up.min():.3g}", bool((up > 0).all())))
    return checks
