"""The paper's toy figures, 3 to 6, with what they are said to show put to the test."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dcjax.toy.info_nce import interaction_matrix
from dcjax.toy.simulate import Trajectory, collapsed
from dcjax.toy.statements.claims import Check, Report, Table, at_least, at_most, close, counts, listed, refuted
from dcjax.toy.statements.ensembles import STRONG, TWO_LAYERS, run
from dcjax.toy.statements.plot import Curve, Map, Panel, draw_curves, draw_maps, family
from dcjax.toy.statements.theorems import forced_alignment

AMPLITUDES = (0.1, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0)


def figure_3(
    *,
    seed: int = 0,
    seeds: int = 2,
    dim: int = 16,
    amplitude: Sequence[float] = AMPLITUDES,
    steps: int = 6000,
) -> Report:
    """Singular values of one linear layer after training, by the strength of the augmentation.

    Args:
      seed: the first seed.
      seeds: how many.
      dim: width of the layer.
      amplitude: variances of the noise on the last dim // 2 coordinates; pairs of inputs differ by the identity.
      steps: of SGD.
    """
    noisy = dim // 2
    amplitudes = sorted(set(amplitude))
    trajectory = run(STRONG, dim=dim, amplitudes=amplitudes, seeds=range(seed, seed + seeds), steps=[steps // 2, steps])
    values = trajectory.singular_values()[0, :, :, :, 0]  # [amplitudes, seeds, records, dim]
    half, last = values[:, :, 0], values[:, :, 1]
    low = last[..., dim - noisy :]
    rows, checks = [], [_threshold(seed, dim)]
    for k, at_half, now in zip(amplitudes, half, last, strict=True):
        found = [listed(collapsed(now, below=below)) for below in (1e-2, 1e-3, 1e-4)]
        tail = now[:, dim - noisy :]
        span = f"{np.median(tail[:, 0]):.3g} .. {np.median(tail[:, -1]):.3g}"
        rows.append([f"{k:g}", f"{np.median(now[:, 0]):.3g}", span, *found])
        if k <= 0.8:
            checks.append(counts(f"k = {k:g}: values below 1 % of the largest", collapsed(now, below=1e-2), 0, 0))
        if k >= 1.5:
            falling = np.median(now[:, dim - noisy :] / at_half[:, dim - noisy :])
            checks.append(Check(f"k = {k:g}: noisy directions still decay", "< 1", f"{falling:.2g}", bool(falling < 1)))
    if len(amplitudes) > 1:
        # Settled or decaying, the noisy directions end lower the stronger the noise.
        ordered = np.median(low, axis=(1, 2))
        fall = np.max(ordered[1:] / ordered[:-1])
        checks.append(Check("stronger noise, smaller values there", "ratios < 1", f"{fall:.2g}", bool(fall < 1)))
    shades = np.linspace(0, 1, len(amplitudes))
    return Report(
        title="Figure 3: strong augmentation makes singular values vanish",
        statement=f"one linear layer on eq. 2, noise of variance k on {noisy} of {dim} inputs, {steps} steps of SGD",
        checks=checks,
        tables=[
            Table(
                f"singular values of W, median of {seeds} seeds; how many of each lie below a share of the largest",
                ["k", "largest", f"last {noisy}", "< 1 %", "< 0.1 %", "< 0.01 %"],
                rows,
            )
        ],
        notes=[
            "The paper prints the inputs' pairwise covariance with a divisor N where it needs N^2: its inputs have "
            "variance 1/2, and the threshold is k = 1. For inputs of variance 1 it is a standard deviation of sqrt(2).",
            "Above the threshold the values decay exponentially, below it they settle: near 1 read the trend.",
        ],
        draw=lambda path: draw_curves(
            path,
            [
                Panel(
                    [
                        Curve(row, label=f"k = {k:g}", colour=float(shade))
                        for k, row, shade in zip(amplitudes, last, shades, strict=True)
                    ],
                    "singular value rank",
                    "singular value of W",
                    f"one linear layer, {steps} steps",
                    floor=1e-13,
                )
            ],
        ),
        numbers={"amplitudes": amplitudes, "singular_values": last},
    )


def figure_4(*, seed: int = 0, seeds: int = 3, dim: int = 16, steps: int = 10000) -> Report:
    """The alignment matrix of two layers after training.

    Args:
      seed: the first seed.
      seeds: how many.
      dim: width of both layers.
      steps: of SGD.
    """
    grid = {"dim": dim, "depths": [2], "amplitudes": [1e-6], "seeds": range(seed, seed + seeds), "steps": [0, steps]}
    runs = {
        "eq. 2, decaying start": run(TWO_LAYERS, **grid, learning_rate=0.01),
        "eq. 2, balanced start": run(TWO_LAYERS, **grid, learning_rate=0.01, init="balanced"),
        "dot-product loss": run(TWO_LAYERS, **grid, learning_rate=0.01, loss="dot", temperature=0.1),
    }
    matrices = {name: t.alignment()[0, 0] for name, t in runs.items()}
    diagonals = {name: np.diagonal(a, axis1=-2, axis2=-1) for name, a in matrices.items()}  # [seeds, 2, dim]
    decaying, balanced, dot = diagonals.values()
    *_, blocks = forced_alignment(runs["eq. 2, decaying start"].weights[0, 0, :, -1])
    rows = []
    for name, diagonal in diagonals.items():
        start, end = diagonal[:, 0].mean(axis=1), diagonal[:, 1].mean(axis=1)
        top = diagonal[:, 1, : max(dim // 4, 1)].min()
        rows.append([name, _span(start), _span(end), f"{top:.3f}", f"{diagonal[:, 1].min():.3f}"])
    return Report(
        title="Figure 4: the alignment matrix after training",
        statement=f"|A| = |V2^T U1| of two linear layers, {steps} steps of SGD, little augmentation",
        checks=[
            at_least("balanced start: smallest |A_kk|", balanced[:, 1], 0.999),
            at_least("decaying start: alignment of the block of s_k^2 > 10 |C|", blocks, 0.9),
            at_least("decaying start: mean |A_kk| rises by", decaying[:, 1].mean(1) - decaying[:, 0].mean(1), 0.1),
            refuted("as drawn: the identity from a decaying start", 1 - decaying[:, 1].min(1), by=0.5),
            refuted("as drawn: the identity with the released loss", 1 - dot[:, 1].min(1), by=0.5),
        ],
        tables=[
            Table(
                "diagonal of |A|",
                ["run", "mean at the start", "mean at the end", f"min of the first {max(dim // 4, 1)}", "min"],
                rows,
            )
        ],
        notes=[
            "From the released code's start only the leading block aligns; a balanced start gives the identity.",
            "The released toy scripts minimise a cross-view cross-entropy of dot products instead of eq. 2; its large "
            "singular values become nearly equal, so that A is free to rotate within them.",
        ],
        draw=lambda path: draw_maps(
            path,
            [Map(a[0, 1], name, "k of U1", "k of V2", "|V2ᵀ U1|", (0.0, 1.0)) for name, a in matrices.items()],
        ),
        numbers=diagonals,
    )


def figure_5(*, seed: int = 0, seeds: int = 3, dim: int = 16, steps: int = 10000) -> Report:
    """Singular values of both layers and of the embeddings' covariance during training.

    Args:
      seed: the first seed.
      seeds: how many.
      dim: width of both layers.
      steps: of SGD.
    """
    records = np.unique(np.linspace(0, steps, 41).astype(int))
    trajectory = run(
        TWO_LAYERS,
        dim=dim,
        depths=[2],
        amplitudes=[1e-6],
        seeds=range(seed, seed + seeds),
        steps=records,
        learning_rate=0.01,
    )
    values = trajectory.singular_values()[0, 0]  # [seeds, records, 2, dim]
    spectra = trajectory.embedding_spectra()[0, 0]  # [seeds, records, dim]
    shown = {"W1": values[:, :, 0], "W2": values[:, :, 1], "covariance of z": spectra}
    rows = [
        [name, f"{np.median(v[:, -1, 0]):.3g}", f"{np.median(v[:, -1, -1]):.2g}"]
        + [listed(collapsed(v[:, -1], below=below)) for below in (1e-2, 1e-3)]
        for name, v in shown.items()
    ]
    low, high = (11, 12) if (dim, steps) == (16, 10000) else (dim // 2, dim - 1)
    growth = values[:, -1] / values[:, 0]
    return Report(
        title="Figure 5: small singular values stay behind",
        statement=f"two linear layers on eq. 2 from the spectrum exp(-0.35 k), little noise, {steps} steps of SGD",
        checks=[
            counts(
                f"covariance: values < 1e-2 of the largest, of {dim}", collapsed(spectra[:, -1], below=1e-2), low, high
            ),
            at_least("growth of the largest value over that of the smallest", growth[..., 0] / growth[..., -1], 1.5),
        ],
        tables=[Table(f"after {steps} steps", ["of", "largest", "smallest", "< 1e-2 (each seed)", "< 1e-3"], rows)],
        notes=["The collapse is relative: the small values keep their place while the large ones leave."],
        draw=lambda path: draw_curves(
            path, [family(trajectory.steps, v, "SGD step", "singular value", name) for name, v in shown.items()]
        ),
        numbers={"steps": trajectory.steps, **shown},
    )


def figure_6(*, seed: int = 0, seeds: int = 2, dim: int = 16, depth: int = 4, steps: int = 6000) -> Report:
    """Embedding spectra by depth, with and without ReLU, for two starts and two losses.

    Args:
      seed: the first seed.
      seeds: how many.
      dim: width of every layer.
      depth: the deepest chain; all from 1 on are trained.
      steps: of SGD.
    """
    rows, spectra, checks = [], {}, []
    recipes: tuple[tuple[str, dict[str, Any], float], ...] = (
        ("eq. 2", {"learning_rate": 0.1}, 0.01),
        ("dot product", {"learning_rate": 0.01, "loss": "dot", "temperature": 0.1}, 1e-6),
    )
    for loss, changes, amplitude in recipes:
        for init in ("default", "decaying"):
            grid = {"dim": dim, "amplitudes": [amplitude], "seeds": range(seed, seed + seeds), "steps": [steps]}
            linear = run(TWO_LAYERS, **grid, depths=range(1, depth + 1), init=init, **changes)
            relu = run(TWO_LAYERS, **grid, depths=[2], init=init, relu=True, **changes)
            found = np.concatenate([_last_spectra(linear), _last_spectra(relu)])  # [depths + 1, seeds, dim]
            spectra[f"{loss}, {init}"] = found
            number = collapsed(found, below=1e-2)
            cells = ["/".join(listed(collapsed(v, below=below)) for below in (1e-2, 1e-4, 1e-6)) for v in found]
            rows.append([f"{loss}, {init} start", *cells])
            name = f"{loss}, {init}"
            checks.append(at_most(f"{name}: L = 1 collapsed, median", np.median(number[0]), 0.0))
            if depth > 1:
                steps_up = np.diff(np.median(number[:depth], axis=1))
                checks.append(
                    Check(
                        f"{name}: count does not fall with L",
                        ">= 0",
                        f"{steps_up.min():g}",
                        bool((steps_up >= 0).all()),
                    )
                )
                if loss == "eq. 2":
                    checks.append(
                        Check(
                            f"{name}: ReLU not worse than linear, L = 2",
                            f"<= {np.median(number[1]):g}",
                            f"{np.median(number[-1]):g}",
                            bool(np.median(number[-1]) <= np.median(number[1])),
                        )
                    )
    shown = spectra["eq. 2, decaying"]
    names = [f"L = {i}" for i in range(1, depth + 1)] + ["L = 2, ReLU"]
    return Report(
        title="Figure 6: more layers, more collapse",
        statement=f"covariance eigenvalues below 1e-2 / 1e-4 / 1e-6 of the largest, by depth, {steps} steps of SGD",
        checks=checks,
        tables=[Table("each seed", ["run", *names], rows)],
        notes=["With ReLU and eq. 2 the collapse is milder than without, not alike: the theory does not cover it."],
        draw=lambda path: draw_curves(
            path,
            [
                Panel(
                    [Curve(v, label=name, colour=i) for i, (name, v) in enumerate(zip(names, shown, strict=True))],
                    "rank",
                    "eigenvalue of C(z)",
                    "eq. 2, decaying start",
                    floor=1e-14,
                ),
                Panel(
                    [
                        Curve(v, label=name, colour=i)
                        for i, (name, v) in enumerate(zip(names, spectra["dot product, decaying"], strict=True))
                    ],
                    "rank",
                    "eigenvalue of C(z)",
                    "dot-product loss, decaying start",
                    floor=1e-14,
                ),
            ],
        ),
        numbers=spectra,
    )


def _threshold(seed: int, dim: int) -> Check:
    """The noise variance at which the noisy eigenvalues of X change sign, at small weights, from many samples."""
    n = 4096
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 0.5**0.5, (n, dim))
    noise = np.where(np.arange(dim) < dim - dim // 2, 0, rng.normal(size=(n, dim)))
    traces = []
    for k in (0.5, 1.5):
        x_matrix = np.asarray(interaction_matrix(x, x + k**0.5 * noise, np.full((n, n), 1 / n)))
        traces.append(np.trace(x_matrix[dim - dim // 2 :, dim - dim // 2 :]) / n)
    # The mean of those eigenvalues is linear in k but for a cross term that averages out.
    return close("k at which X changes sign on the noise", 0.5 + traces[0] / (traces[0] - traces[1]), 1.0, allowed=0.05)


def _last_spectra(trajectory: Trajectory) -> np.ndarray:
    return trajectory.embedding_spectra()[:, 0, :, -1]


def _span(values: np.ndarray) -> str:
    return f"{values.min():.3f} .. {values.max():.3f}"
