"""Theorems 1 to 3, put to the test: in closed form, against an ODE solver, and with the real X of SGD."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dcjax.toy.alignment import (
    aligned_rates,
    alignment_matrix,
    alignment_velocity,
    conserved_quantity,
    singular_value_velocity,
)
from dcjax.toy.flows import (
    blow_up_time,
    descend,
    integrate,
    linear_flow,
    linear_flow_spectral,
    singular_value_flow,
    two_layer_velocity,
)
from dcjax.toy.info_nce import interaction_matrix, softmax_weights
from dcjax.toy.simulate import INITS, collapsed
from dcjax.toy.statements.claims import (
    Report,
    at_least,
    at_most,
    close,
    counts,
    in_double,
    refuted,
    relative_error,
    vanishes,
)
from dcjax.toy.statements.ensembles import STRONG, TWO_LAYERS, over_seeds, random_model, run, two_layer_descent
from dcjax.toy.statements.plot import Curve, Map, Panel, draw_curves, draw_maps, family

FIXED_SAMPLES = 512  # behind the X that Theorem 1 holds fixed


def theorem_1(*, seed: int = 0, seeds: int = 4, dim: int = 16, amplitude: float = 2.0, steps: int = 6000) -> Report:
    """Where X has negative eigenvalues the weights lose those directions.

    Args:
      seed: the first seed.
      seeds: how many.
      dim: width of the model.
      amplitude: variance of the augmentation's noise, on the last dim // 2 coordinates; pairs of inputs differ by the
        identity, so that X has negative eigenvalues from 1 on.
      steps: of SGD with the real X.
    """
    times = np.linspace(0, 8, 33)
    evaluate = functools.partial(_fixed_x_flow, times=times, dim=dim, amplitude=amplitude)
    found = over_seeds(evaluate, seed, seeds)
    records = np.unique(np.linspace(0, steps, 31).astype(int))
    trajectory = run(STRONG, dim=dim, amplitudes=[amplitude], seeds=range(seed, seed + seeds), steps=records)
    trained = trajectory.singular_values()[0, 0, :, :, 0]  # [seeds, records, dim]
    noisy = dim // 2
    mean = float(np.mean(found["noise_trace"])) / noisy
    # A variance from n normal samples has a relative error of sqrt(2 / n); these average over seeds and coordinates.
    standard_error = ((2 / FIXED_SAMPLES) * (1 + amplitude**2) / (noisy * seeds)) ** 0.5
    checks = []
    if abs(amplitude - 1) >= 0.5:  # nearer to the threshold neither the sample nor the steps decide
        negative = np.sum(found["eigenvalues"] < 0, axis=1)
        gone = noisy if amplitude > 1 else 0
        below = collapsed(trained[:, -1], below=1e-2)
        checks = [
            counts("negative eigenvalues of X at small weights", negative, gone, gone),
            counts(f"real X, {steps} steps: s below 1 % of the largest", below, gone, gone),
        ]
    return Report(
        title="Theorem 1: strong augmentation collapses a linear model",
        statement="W(t) = W(0) expm(X t) for fixed X; right directions of W with negative eigenvalues of X vanish",
        checks=[
            vanishes("closed form against the ODE, relative", found["ode"], double=1e-10, single=1e-4),
            vanishes("eigenvalue form against expm, relative", found["spectral"], double=1e-10, single=1e-4),
            vanishes("|W(t) v_k| = |W(0) v_k| e^(lambda_k t), t <= 2", found["lengths"], double=1e-10, single=1e-2),
            vanishes("s_min(W0) <= s_k e^(-lambda_k t) <= s_max(W0)", found["squeezed"], double=1e-10, single=1e-4),
            close(
                "mean eigenvalue of X on the noise, 1 - k",
                mean,
                1.0 - amplitude,
                allowed=4.5 * standard_error,
            ),
            *checks,
        ],
        notes=[
            "'Rank deficient' is relative: with other eigenvalues positive W diverges, and it is the ratio of its "
            "singular values that vanishes.",
            "The real X depends on W; the sign of its eigenvalues decides all the same. Near amplitude 1 the decay "
            "takes many steps.",
            "The noise must be on one view (x' = x + noise). With noise on both, X is positive at small weights and "
            "nothing vanishes.",
        ],
        draw=lambda path: draw_curves(
            path,
            [
                family(times, found["singular_values"], "time", "singular value of W", "X fixed: closed form"),
                family(
                    trajectory.steps,
                    trained,
                    "SGD step",
                    "singular value of W",
                    f"real X, noise {amplitude:g} on {dim // 2} of {dim}",
                ),
            ],
        ),
        numbers={"times": times, **found, "steps": trajectory.steps, "trained_singular_values": trained},
    )


def theorem_2(*, seed: int = 0, seeds: int = 3, dim: int = 16, steps: int = 3000) -> Report:
    """Two layers align where their singular values outgrow what the flow conserves, and there alone.

    Args:
      seed: the first seed.
      seeds: how many.
      dim: width of both layers.
      steps: of SGD with the real X.
    """
    grid = {"dim": dim, "depths": [2], "amplitudes": [1e-6], "seeds": range(seed, seed + seeds), "steps": [0, steps]}
    balanced = run(TWO_LAYERS, **grid, init="balanced", learning_rate=0.05)
    decaying = run(TWO_LAYERS, **grid, learning_rate=0.05)
    frozen = run(TWO_LAYERS, **grid, learning_rate=0.05, frozen=(1,))
    diagonals = {
        name: np.diagonal(t.alignment()[0, 0], axis1=-2, axis2=-1)  # [seeds, records, dim]
        for name, t in (("balanced", balanced), ("decaying", decaying), ("frozen", frozen))
    }
    identity, bound, blocks = forced_alignment(decaying.weights[0, 0, :, -1])
    quarter = max(dim // 4, 1)
    frozen_blocks = forced_alignment(frozen.weights[0, 0, :, -1], size=quarter)[2]
    fixed, growth, rate_error = _fixed_positive_definite(seed, seeds, dim)
    fixed_diagonal = np.abs(np.diagonal(fixed, axis1=-2, axis2=-1))
    return Report(
        title="Theorem 2: the layers align",
        statement="A = V2^T U1: A_kl (s1_l^2 - s2_k^2) = v2_k^T C u1_l with C conserved; A aligns where s^2 >> |C|",
        checks=[
            at_least("balanced start (C = 0): smallest |A_kk|", diagonals["balanced"][:, -1], 0.999),
            vanishes("A_kl (s1_l^2 - s2_k^2) = v2_k^T C u1_l, relative", identity, double=1e-10, single=1e-4),
            at_most("|A_kl| |s1_l^2 - s2_k^2| / |C|", bound, 1.0),
            at_least("block of s_k^2 > 10 |C|: smallest singular value of A", blocks, 0.9),
            refuted("as printed: A = I in every direction", 1 - diagonals["decaying"][:, -1].min(axis=1), by=0.5),
            at_least("X fixed, positive definite, W -> infinity: |A_11|", fixed_diagonal[:, 0], 0.999),
            refuted("as printed: the other |A_kk| too", 1 - fixed_diagonal.min(axis=1), by=0.5),
            at_least(f"W2 frozen: the same of the first {quarter}", frozen_blocks, 0.9),
            vanishes("A' of Lemma 6 against autodiff of the SVD, relative", rate_error, double=1e-6, single=1e-1),
        ],
        notes=[
            "The proof drops C against W1 W1^T as a whole; only directions with s^2 >> |C| are forced to align, and "
            "among those nearly equal singular values leave no more than their common block. With the real X, which "
            "tends to 0, the others stop where they are.",
            "Where X is fixed and positive definite the flow reaches infinity in finite time along one direction, "
            f"and that one alone aligns (its value grew {growth:.0f}-fold here).",
            "One of V2 and U1 may stand still: with W2 frozen U1 turns to V2 by itself, which is why a linear "
            "projector needs no orthogonal factor (the first proposition).",
            "Signs of A are free.",
        ],
        draw=lambda path: draw_maps(
            path,
            [
                _alignment_map(balanced.alignment()[0, 0, 0, -1], "balanced start"),
                _alignment_map(decaying.alignment()[0, 0, 0, -1], "decaying start"),
                _alignment_map(np.abs(fixed[0]), "X fixed, W → ∞"),
                _alignment_map(frozen.alignment()[0, 0, 0, -1], "W2 frozen"),
            ],
        ),
        numbers={**diagonals, "fixed": fixed_diagonal, "dominant_block": blocks, "frozen_block": frozen_blocks},
    )


def theorem_3(*, seed: int = 0, seeds: int = 4, dim: int = 16) -> Report:
    """The rates of the singular values of aligned layers, along true trajectories, and their closed form.

    Args:
      seed: the first seed.
      seeds: how many.
      dim: width of both layers.
    """
    n, times, rates = 64, np.asarray([1.0, 5.0, 20.0, 60.0]), (0.04, 0.02, 0.01, 0.005)
    rtol, atol = (1e-11, 1e-13) if in_double() else (1e-6, 1e-8)

    # Rounding breaks the balance as well: in float32 by more than the smallest s^2.
    counted = dim if in_double() else max(dim // 4, 1)

    def evaluate(key):
        _, x, x_prime = random_model(key, n, dim, 0.01)
        layers = tuple(INITS["balanced"](key, 2, dim, x.dtype))

        velocity = two_layer_descent(x, x_prime)
        compare = functools.partial(_compare_rates, views=(x, x_prime), flow=velocity)
        solved = integrate(velocity, layers, times, rtol=rtol, atol=atol)
        gaps = jax.lax.map(lambda s: jnp.square(_values(s[0])) - jnp.square(_values(s[1])), solved)

        def sgd(rate):
            # O(rate) is left of C; it swamps the squares of the smaller half.
            end = descend(velocity, layers, rate=rate, steps=round(1 / rate))
            return compare(end, count=max(dim // 2, 1))["error"]

        return {
            **jax.lax.map(functools.partial(compare, count=counted), solved),
            "gap": jnp.max(jnp.abs(gaps)),
            "sgd": jnp.stack([sgd(rate) for rate in rates]),
            "values": jax.lax.map(_values, solved[0]),
        }

    found = over_seeds(evaluate, seed, seeds)
    curves, closed_error = _singular_value_curves()
    order = float(np.median(np.log2(found["sgd"][:, 0] / found["sgd"][:, -1])) / np.log2(rates[0] / rates[-1]))
    return Report(
        title="Theorem 3: what is small grows slowly",
        statement="V2 = U1: s1_k' = s1_k s2_k^2 v1_k^T X v1_k and s2_k' = s2_k s1_k^2 v1_k^T X v1_k (eq. 11)",
        checks=[
            vanishes("rates along a balanced ODE trajectory, relative", found["error"], double=1e-6, single=2e-2),
            close("order of their error under SGD", order, 1.0, allowed=0.2),
            vanishes("s1^2 - s2^2 stays 0 along it", found["gap"], double=1e-9, single=1e-4),
            vanishes("closed form of s' = s (s^2 + gap) m against the ODE", closed_error, double=1e-9, single=1e-2),
            refuted("as printed: V2 = U1^T", found["transposed"], by=0.1),
            refuted("as printed: s1' = s1 (s1^2 + C) m", found["constant"], by=0.1),
        ],
        notes=[
            "The rates are compared with u_k^T W' v_k by autodiff: of all values along the ODE, of the larger half "
            "under SGD, which breaks the balance by O(learning rate), more than the smallest s^2.",
            "The printed constant has the wrong sign: with C_k = s1_k^2 - s2_k^2, s1' = s1 (s1^2 - C) m and s2' = "
            "s2 (s2^2 + C) m. It is also an equation, not a solution; the solution is `singular_value_flow`.",
            "m > 0 ends in finite time (`blow_up_time`); the real X shrinks as the weights grow, which prevents it.",
        ],
        draw=lambda path: draw_curves(
            path,
            [
                Panel(
                    [
                        Curve(found["sgd"], rates, "SGD to t = 1", 0),
                        Curve(
                            np.median(found["sgd"][:, -1]) * np.asarray(rates) / rates[-1], rates, "first order", "grey"
                        ),
                        Curve(np.outer(found["error"].max(axis=1), np.ones(len(rates))), rates, "ODE to t = 60", 1),
                    ],
                    "learning rate",
                    "relative error of the rates",
                    "rates of Theorem 3 against autodiff",
                    log_x=True,
                ),
                Panel(curves, "time", "singular value", "closed form (lines) and ODE (dots)"),
            ],
        ),
        numbers={"times": times, "learning_rates": rates, **found},
    )


def _fixed_x_flow(key: jax.Array, *, times: np.ndarray, dim: int, amplitude: float) -> dict[str, jax.Array]:
    """The flow of a linear model with the X of small weights held fixed: closed forms, and how far they are apart."""
    rtol, atol = (1e-13, 1e-15) if in_double() else (1e-6, 1e-9)
    w0, x, x_prime = random_model(key, FIXED_SAMPLES, dim, amplitude)
    # Small weights: all alpha are 1/N and X/N is 2 Cov(x) - Cov(noise), (1 - amplitude) I on the noisy half.
    uniform = jnp.full((FIXED_SAMPLES, FIXED_SAMPLES), 1 / FIXED_SAMPLES, w0.dtype)
    x_matrix = interaction_matrix(x, x_prime, uniform) / FIXED_SAMPLES
    x_matrix = 0.5 * (x_matrix + x_matrix.T)
    closed = linear_flow(w0, x_matrix, times)
    spectral = linear_flow_spectral(w0, x_matrix, times)
    solved = integrate(lambda w: w @ x_matrix, w0, times, rtol=rtol, atol=atol)
    values, vectors = jnp.linalg.eigh(x_matrix)
    lengths = jnp.linalg.norm(closed @ vectors, axis=1)  # |W(t) v_k|, [times, dim]
    growth = jnp.exp(values * jnp.asarray(times, w0.dtype)[:, None])
    expected = lengths[:1] * growth
    # exp(X t) has the singular values exp(lambda_k t), and W(0) scales each by a factor between its own extremes.
    singular = jax.lax.map(_values, closed)
    low, high = singular[0, -1] * growth[:, ::-1], singular[0, 0] * growth[:, ::-1]
    each = jax.vmap(relative_error)
    return {
        "ode": each(closed, solved),
        "spectral": each(spectral, closed),
        # Each relative to itself, while the largest has not yet drowned the smallest in rounding.
        "lengths": jnp.max(jnp.abs(lengths / expected - 1)[times <= 2], axis=1),
        "squeezed": jnp.max(jnp.maximum(low - singular, singular - high) / singular[:, :1]),
        "noise_trace": jnp.sum(jnp.diagonal(x_matrix)[dim - dim // 2 :]),
        "eigenvalues": values,
        "singular_values": singular,
    }


def _compare_rates(layers, *, count, views, flow) -> dict[str, jax.Array]:
    """The theorem's rates of the `count` largest values at a state of the flow, against those of the flow itself."""
    (w1, w2), (x, x_prime) = layers, views
    product = w2 @ w1
    alpha = softmax_weights(x @ product.T, x_prime @ product.T)
    x_matrix = interaction_matrix(x, x_prime, alpha) / x.shape[0]
    velocity = flow(layers)
    _, s1, v1_transposed = jnp.linalg.svd(w1)
    s2 = _values(w2)
    claimed = aligned_rates(s1, s2, v1_transposed.T, x_matrix)
    actual = [singular_value_velocity(w, v) for w, v in zip(layers, velocity, strict=True)]
    # The same with layers that satisfy V2 = U1^T instead: W2 = U2 S2 U1.
    u1 = jnp.linalg.svd(w1)[0]
    u2 = jnp.linalg.svd(w2)[0]
    wrong = two_layer_velocity(w1, (u2 * s2[None, :]) @ u1, x_matrix)[0]

    # Aligned still, but no longer balanced: C = s1^2 - s2^2 > 0.
    half = two_layer_velocity(w1, 0.5 * w2, x_matrix)[0]
    m = jnp.sum(v1_transposed * (v1_transposed @ x_matrix), axis=1)
    printed = s1 * (2 * jnp.square(s1) - jnp.square(0.5 * s2)) * m

    def error(found, expected):
        return jnp.max(jnp.abs(found - expected)[:count] / jnp.abs(expected)[:count])

    return {
        "error": jnp.maximum(error(claimed[0], actual[0]), error(claimed[1], actual[1])),
        "transposed": relative_error(claimed[0], singular_value_velocity(w1, wrong)),
        "constant": relative_error(printed, singular_value_velocity(w1, half)),
    }


def forced_alignment(weights: np.ndarray, *, size: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the conserved C forces on A, for the layers `[seeds, 2, dim, dim]`, each `[seeds]`.

    Returns:
      The relative error of A_kl (s1_l^2 - s2_k^2) = v2_k^T C u1_l, the largest |A_kl| |s1_l^2 - s2_k^2| / |C|, and the
      smallest singular value of a leading block of A (1 where both layers' leading vectors span the same space): that
      with s1_k^2 > 10 |C|, or of the size given.
    """
    w1, w2 = weights[:, 0], weights[:, 1]
    c = np.asarray(jax.vmap(conserved_quantity)(w1, w2))
    u1, s1, _ = np.linalg.svd(w1)
    _, s2, v2_transposed = np.linalg.svd(w2)
    gaps = np.square(s1)[:, None, :] - np.square(s2)[:, :, None]
    left = v2_transposed @ u1 * gaps
    right = v2_transposed @ c @ u1
    norm = np.linalg.norm(c, 2, axis=(1, 2))
    identity = np.abs(left - right).max(axis=(1, 2)) / np.square(s1[:, 0])
    sizes = np.sum(np.square(s1) > 10 * norm[:, None], axis=1) if size is None else np.full(len(s1), size)
    blocks = [
        np.linalg.svd(a[:k, :k], compute_uv=False)[-1] for a, k in zip(v2_transposed @ u1, sizes, strict=True) if k
    ]
    return identity, np.abs(left).max(axis=(1, 2)) / norm, np.asarray(blocks)


def _fixed_positive_definite(seed: int, seeds: int, dim: int) -> tuple[np.ndarray, float, float]:
    """Two layers under a fixed positive definite X, on their way to infinity.

    Returns:
      A at the end `[seeds, dim, dim]`, how much the largest singular value grew (least over the seeds), and the error
      of Lemma 6's A' against autodiff (largest over the seeds).
    """
    rtol, atol = (1e-10, 1e-12) if in_double() else (1e-5, 1e-7)

    def evaluate(key):
        w1, w2 = INITS["decaying"](key, 2, dim, jnp.zeros(()).dtype)
        root = jax.random.normal(jax.random.fold_in(key, 2), (dim, dim)) / dim**0.5
        x_matrix = root @ root.T + 0.1 * jnp.eye(dim, dtype=root.dtype)

        def slowed(layers):
            # The same curves in another time, in which infinity is never reached.
            scale = sum(jnp.sum(jnp.square(w)) for w in layers)
            return jax.tree.map(lambda v: v / scale, two_layer_velocity(layers[0], layers[1], x_matrix))

        end1, end2 = (w[0] for w in integrate(slowed, (w1, w2), jnp.asarray([10.0]), rtol=rtol, atol=atol))
        # Lemma 6 at the start, where A turns fastest. |A| is free of the signs that the SVD chooses.
        velocity = two_layer_velocity(w1, w2, x_matrix)
        a, a_velocity = alignment_velocity(w1, w2, -(w2 @ w1 @ x_matrix))
        _, derived = jax.jvp(lambda w1, w2: jnp.abs(alignment_matrix(w1, w2)), (w1, w2), velocity)
        return alignment_matrix(end1, end2), _values(end1)[0], relative_error(jnp.sign(a) * a_velocity, derived)

    found = over_seeds(evaluate, seed, seeds)
    return found[0], float(found[1].min()), float(found[2].max())


def _singular_value_curves() -> tuple[list[Curve], float]:
    """The closed form for three gaps and both signs of the rate, the ODE as dots, and their largest difference."""
    rtol, atol = (1e-13, 1e-15) if in_double() else (1e-6, 1e-8)

    @jax.jit
    def solve(sigma0, gap, rate, times):
        return integrate(lambda s: s * (jnp.square(s) + gap) * rate, sigma0, times, rtol=rtol, atol=atol)

    curves, errors = [], []
    for i, (gap, sigma0) in enumerate([(0.75, 0.5), (0.0, 0.5), (-1.0, 1.1)]):
        for rate in (0.8, -0.8):
            end = 0.999 * float(blow_up_time(sigma0, gap, rate)) if rate > 0 else 4.0
            times = np.linspace(0, end, 61)
            closed = np.asarray(singular_value_flow(sigma0, gap, rate, times))
            solved = np.asarray(solve(jnp.asarray(sigma0), gap, rate, jnp.asarray(times)))
            errors.append(np.max(np.abs(solved - closed) / closed))
            label = f"gap {gap:g}" if rate > 0 else None
            curves += [Curve(closed, times, label, i), Curve(solved[::6], times[::6], None, i, dots=True)]
    return curves, float(max(errors))


def _values(w: jax.Array) -> jax.Array:
    return jnp.linalg.svd(w, compute_uv=False)


def _alignment_map(values: np.ndarray, title: str) -> Map:
    return Map(values, title, "k of U1", "k of V2", "|V2ᵀ U1|", (0.0, 1.0))
