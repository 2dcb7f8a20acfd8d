"""Corollaries 1 and 2: what the collapse of the weights does to the embeddings."""

import functools

import numpy as np

from dcjax.collapse import effective_rank, spectrum
from dcjax.toy.simulate import Trajectory, collapsed, embed
from dcjax.toy.statements.claims import Check, Report, counts, listed, vanishes
from dcjax.toy.statements.ensembles import STRONG, TWO_LAYERS, run
from dcjax.toy.statements.plot import Curve, Panel, draw_curves

WEAK = 0.1


def corollary_1(*, seed: int = 0, seeds: int = 3, dim: int = 16, amplitude: float = 2.0, steps: int = 6000) -> Report:
    """Strong augmentation gives the embeddings' covariance a low rank.

    Args:
      seed: the first seed.
      seeds: how many.
      dim: width of the model.
      amplitude: variance of the strong augmentation's noise, on the last dim // 2 coordinates; pairs of inputs differ
        by the identity.
      steps: of SGD.
    """
    trajectory = run(STRONG, dim=dim, amplitudes=[WEAK, amplitude], seeds=range(seed, seed + seeds), steps=[steps])
    weak, strong = trajectory.embedding_spectra()[0, :, :, -1]  # each [seeds, dim]
    gone = dim // 2 if amplitude > 1 else 0
    return Report(
        title="Corollary 1: strong augmentation leaves a covariance of low rank",
        statement="C(z) = W C(x) W^T: directions that W lost are missing from the embeddings",
        checks=[
            _covariance_identity(trajectory),
            counts(
                f"noise {amplitude:g}: eigenvalues < 1e-4 of the largest", collapsed(strong, below=1e-4), gone, gone
            ),
            counts(f"noise {WEAK:g}: eigenvalues < 1e-4 of the largest", collapsed(weak, below=1e-4), 0, 0),
        ],
        notes=[
            f"Effective rank of the embeddings: {_rank(weak):.1f} with noise {WEAK:g}, {_rank(strong):.1f} with "
            f"{amplitude:g} (of {dim}).",
            "1e-4 in the covariance is 1 % in the weights.",
        ],
        draw=lambda path: draw_curves(
            path,
            [
                Panel(
                    [
                        Curve(weak, label=f"noise {WEAK:g}", colour=0),
                        Curve(strong, label=f"noise {amplitude:g}", colour=1),
                    ],
                    "rank",
                    "eigenvalue of C(z)",
                    f"linear model, noise on {dim // 2} of {dim}",
                )
            ],
        ),
        numbers={"weak": weak, "strong": strong},
    )


def corollary_2(*, seed: int = 0, seeds: int = 3, dim: int = 16, depth: int = 2, steps: int = 10000) -> Report:
    """Layers that a linear model does not need give the covariance a low rank, with hardly any augmentation.

    Args:
      seed: the first seed.
      seeds: how many.
      dim: width of every layer.
      depth: how many layers the deep model has; at least 2.
      steps: of SGD.
    """
    depth = max(depth, 2)
    trajectory = run(
        TWO_LAYERS,
        dim=dim,
        depths=[1, depth],
        amplitudes=[1e-6],
        seeds=range(seed, seed + seeds),
        steps=[steps],
    )
    shallow, deep = trajectory.embedding_spectra()[:, 0, :, -1]
    many = collapsed(deep, below=1e-2)
    return Report(
        title="Corollary 2: depth leaves a covariance of low rank",
        statement="C(z) = W C(x) W^T with W = W_L ... W_1: directions that grow slowly in every layer stay behind",
        checks=[
            _covariance_identity(trajectory),
            counts("one layer: eigenvalues < 1e-2 of the largest", collapsed(shallow, below=1e-2), 0, 0),
            Check(
                f"{depth} layers: eigenvalues < 1e-2 of the largest",
                f">= {max(dim // 4, 1)}",
                listed(many),
                bool((many >= max(dim // 4, 1)).all()),
            ),
        ],
        notes=[
            "The noise has a standard deviation of 0.001: it is not the augmentation that collapses here.",
            f"Effective rank of the embeddings: {_rank(shallow):.1f} with one layer, {_rank(deep):.1f} with {depth} "
            f"(of {dim}).",
        ],
        draw=lambda path: draw_curves(
            path,
            [
                Panel(
                    [Curve(shallow, label="1 layer", colour=0), Curve(deep, label=f"{depth} layers", colour=1)],
                    "rank",
                    "eigenvalue of C(z)",
                    "linear chains, little augmentation",
                )
            ],
        ),
        numbers={"shallow": shallow, "deep": deep},
    )


def _covariance_identity(trajectory: Trajectory) -> Check:
    """The spectrum of embeddings against the eigenvalues of W C(x) W^T, on the last record of every cell."""
    x = np.random.default_rng(trajectory.seeds[0]).normal(size=(1000, trajectory.setting.dim))
    errors = []
    for weights in trajectory.weights[:, :, :, -1].reshape(-1, *trajectory.weights.shape[4:]):
        w = functools.reduce(lambda product, layer: layer @ product, weights)
        expected = np.linalg.eigvalsh(w @ np.cov(x.T, bias=True) @ w.T)[::-1]
        found = spectrum(embed(weights, x, len(weights), relu=False), normalize=False)
        errors.append(np.abs(found - expected).max() / expected[0])
    return vanishes("the spectrum of z is that of W C(x) W^T", errors, double=1e-12, single=1e-4)


def _rank(values: np.ndarray) -> float:
    """Mean over the seeds of the effective rank of centred embeddings with these covariance eigenvalues."""
    return float(np.mean([effective_rank(np.sqrt(row)) for row in values]))
