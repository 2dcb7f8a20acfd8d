"""Figure 1: three kinds of embedding space: no collapse, dimensional collapse, complete collapse.

Claim:     without negatives all embeddings meet in a point; a contrastive loss prevents that, but under strong
           augmentation the embeddings still give up a direction.
Command:   python -m experiments.figure1
Cost:      seconds; one linear layer of 3 x 3, trained on Gaussian inputs.
Look for:  a ball, a disk, a point; the smallest singular value beside the largest.
"""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dcjax.collapse import spectrum
from dcjax.collapse.plot import COLOURS
from dcjax.runtime import cli
from dcjax.runtime.files import replace_text
from dcjax.toy import info_nce
from experiments.records import RESULTS, rounded

SAMPLES, STEPS, RATE, DIM = 256, 3000, 0.1, 3


def attraction(z: jax.Array, z_prime: jax.Array) -> jax.Array:
    """The squared distance of positive pairs, summed, without any negatives."""
    return 0.5 * jnp.sum((z - z_prime) ** 2)


# Name, loss of the embeddings, and the variance of the augmentation's noise on the last input.
KINDS: tuple[tuple[str, Callable[..., jax.Array], float], ...] = (
    ("no collapse", info_nce, 0.1),
    ("dimensional collapse", info_nce, 3.0),
    ("complete collapse", attraction, 3.0),
)


def embed(loss: Callable[..., jax.Array], noise: float) -> np.ndarray:
    """Embeddings `[n, 3]` after training W by SGD on inputs of variance 1/2 in every direction."""
    scale = jnp.array([0.1, 0.1, noise]) ** 0.5

    def step(w: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        draws = jax.random.normal(key, (2, SAMPLES, DIM))
        x = draws[0] * 0.5**0.5
        x_prime = x + draws[1] * scale
        return w - RATE * jax.grad(lambda w: loss(x @ w.T, x_prime @ w.T) / SAMPLES)(w), None

    w = jax.random.uniform(jax.random.key(0), (DIM, DIM), minval=-0.5, maxval=0.5)
    w, _ = jax.lax.scan(step, w, jax.random.split(jax.random.key(1), STEPS))
    return np.asarray(jax.random.normal(jax.random.key(2), (SAMPLES, DIM)) * 0.5**0.5 @ w.T)


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser(prog="python -m experiments.figure1", description=__doc__ or "")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="where the figure goes")
    flags = parser.parse_args(argv)
    embeddings = {name: embed(loss, noise) for name, loss, noise in KINDS}
    values = {name: np.sqrt(spectrum(z, normalize=False)).tolist() for name, z in embeddings.items()}
    replace_text(flags.results / "figure1.json", json.dumps(rounded(values), indent=1) + "\n")
    draw(embeddings, values, flags.results / "figure1.png")
    for name, found in values.items():
        print(f"{name}: standard deviations along the principal axes {', '.join(f'{value:.2g}' for value in found)}")
    print(flags.results / "figure1.png")


def draw(embeddings: dict[str, np.ndarray], values: dict[str, list[float]], path: pathlib.Path) -> None:
    """Three clouds on common axes: the direction that collapses, over the one that spreads most."""
    style: Any = {"font.size": 8}
    limit = 1.05 * max(np.abs(z).max() for z in embeddings.values())
    # One pair of viewing axes for all: the principal axes of the embedding that lost a direction.
    axes_of_view = np.linalg.svd(embeddings["dimensional collapse"], full_matrices=False)[2]
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.4, 2.9), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)
        for i, (axes, (name, z)) in enumerate(
            zip(figure.subplots(1, len(embeddings), sharex=True, sharey=True), embeddings.items(), strict=True)
        ):
            seen = z @ axes_of_view.T
            axes.scatter(seen[:, 0], seen[:, 2], s=4, color=COLOURS[i], alpha=0.6, linewidths=0)
            deviations = ", ".join(f"{value:.2g}" for value in values[name])
            axes.set_title(f"{name}\nstd along the principal axes:\n{deviations}", fontsize=8)
            axes.set_xlabel("first axis")
            axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
            axes.grid(alpha=0.25, linewidth=0.5)
            if i == 0:
                axes.set_ylabel("axis that collapses")
        figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    cli.run(main)
