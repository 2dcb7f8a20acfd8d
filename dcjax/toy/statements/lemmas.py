"""Lemmas 1 to 3, put to the test on random inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dcjax.toy.alignment import conserved_quantity
from dcjax.toy.flows import blow_up_time, descend, integrate, two_layer_flow, two_layer_velocity
from dcjax.toy.info_nce import (
    covariance_split,
    embedding_gradients,
    info_nce,
    interaction_matrix,
    softmax_weights,
)
from dcjax.toy.simulate import INITS
from dcjax.toy.statements.claims import Report, close, in_double, refuted, relative_error, vanishes
from dcjax.toy.statements.ensembles import over_seeds, random_model, two_layer_descent
from dcjax.toy.statements.plot import Curve, Panel, draw_curves

SAMPLES = (2, 8, 64)
STRANG_STEPS = (16, 32, 64, 128, 256)
LEARNING_RATES = (0.08, 0.04, 0.02, 0.01)


def lemma_1(*, seed: int = 0, seeds: int = 4, dim: int = 16) -> Report:
    """The gradients of the loss and the flow of a linear model, against automatic differentiation.

    Args:
      seed: the first seed.
      seeds: how many.
      dim: width of the model.
    """

    def errors(key, n):
        w, x, x_prime = random_model(key, n, dim)
        z, z_prime = x @ w.T, x_prime @ w.T
        derived = jax.grad(info_nce, argnums=(0, 1))(z, z_prime)
        g, g_prime = embedding_gradients(z, z_prime)
        through = jax.grad(lambda w: info_nce(x @ w.T, x_prime @ w.T))(w)
        alpha = softmax_weights(z, z_prime)
        unscaled = jnp.exp(-0.5 * jnp.sum(jnp.square(z - z_prime), axis=1))  # the slides' a_ii, without / Z_i
        return {
            "z": relative_error(g, derived[0]),
            "z_prime": relative_error(g_prime, derived[1]),
            "w": relative_error(g.T @ x + g_prime.T @ x_prime, through),
            "rows": jnp.max(jnp.abs(jnp.sum(alpha, axis=1) - 1)),
            "printed": jnp.max(jnp.abs(jnp.sum(alpha, axis=1) - jnp.diagonal(alpha) + unscaled - 1)),
        }

    found = _over_samples(errors, seed, seeds)
    return Report(
        title="Lemma 1: the gradient flow of a linear model",
        statement="W' = -G with G = sum_i (g_i x_i^T + g'_i x'_i^T) and the gradients g, g' of eq. 4",
        checks=[
            vanishes("g against autodiff, relative", found["z"], double=1e-10, single=1e-4),
            vanishes("g' against autodiff, relative", found["z_prime"], double=1e-10, single=1e-4),
            vanishes("G against autodiff of the loss of W, relative", found["w"], double=1e-10, single=1e-4),
            vanishes("rows of alpha sum to 1", found["rows"], double=1e-14, single=1e-6),
            refuted("slides: a_ii without / Z_i, rows sum to 1", found["printed"], by=1e-3),
        ],
        notes=[f"{seeds} seeds, N = {', '.join(map(str, SAMPLES))}; the largest error counts."],
        draw=lambda path: draw_curves(
            path,
            [
                Panel(
                    [
                        Curve(found["z"].T, SAMPLES, "g", 0),
                        Curve(found["z_prime"].T, SAMPLES, "g'", 1),
                        Curve(found["w"].T, SAMPLES, "G", 2),
                        Curve(found["printed"].T, SAMPLES, "row sums, a_ii as in the slides", 3),
                    ],
                    "samples N",
                    "relative error",
                    "eq. 4 against automatic differentiation",
                    log_x=True,
                )
            ],
        ),
        numbers={"samples": SAMPLES, **found},
    )


def lemma_2(*, seed: int = 0, seeds: int = 4, dim: int = 16, amplitude: float = 2.0) -> Report:
    """X is the difference of two positive semi-definite matrices: the data's covariance and the augmentation's.

    Args:
      seed: the first seed.
      seeds: how many.
      dim: width of the model.
      amplitude: variance of the augmentation's noise, on the last dim // 2 coordinates; pairs of inputs differ by the
        identity.
    """

    def matrices(key, n):
        w, x, x_prime = random_model(key, n, dim, amplitude)
        alpha = softmax_weights(x @ w.T, x_prime @ w.T)
        return w, x, x_prime, alpha, interaction_matrix(x, x_prime, alpha), *covariance_split(x, x_prime, alpha)

    def errors(key, n):
        w, x, x_prime, alpha, x_matrix, s0, s1 = matrices(key, n)
        through = jax.grad(lambda w: info_nce(x @ w.T, x_prime @ w.T))(w)
        uniform = jnp.full((n, n), 1 / n, x.dtype)
        difference = x_prime - x
        covariance = (x - x.mean(0)[None]).T @ (x - x.mean(0)[None]) / n
        small = 2 * covariance - (1 - 1 / n) * difference.T @ difference / n
        return {
            "flow": relative_error(-w @ x_matrix, through),
            "split": relative_error(s0 - s1, x_matrix),
            "symmetry": relative_error(x_matrix.T, x_matrix),
            "s0": -jnp.linalg.eigvalsh(s0)[0] / jnp.linalg.eigvalsh(s0)[-1],
            "s1": -jnp.linalg.eigvalsh(s1)[0] / jnp.linalg.eigvalsh(s1)[-1],
            "small": relative_error(interaction_matrix(x, x_prime, uniform) / n, small),
            "printed": relative_error(_printed_eq_6(x, x_prime, alpha), s0 - s1),
        }

    found = _over_samples(errors, seed, seeds)
    spectra = over_seeds(lambda key: tuple(map(jnp.linalg.eigvalsh, matrices(key, SAMPLES[-1])[-3:])), seed, seeds)
    x_values, s0_values, s1_values = (v[:, ::-1] / SAMPLES[-1] for v in spectra)
    return Report(
        title="Lemma 2: X is a difference of two covariances",
        statement="G = -W X and X = S0 - S1 (eqs. 5 to 7), S0 of the data and S1 of the augmentation, both PSD",
        checks=[
            vanishes("G = -W X against autodiff, relative", found["flow"], double=1e-10, single=1e-4),
            vanishes("X = S0 - S1, relative", found["split"], double=1e-12, single=1e-5),
            vanishes("X is symmetric", found["symmetry"], double=1e-12, single=1e-5),
            vanishes("S0 is PSD: most negative eigenvalue / largest", found["s0"], double=1e-12, single=1e-5),
            vanishes("S1 is PSD: most negative eigenvalue / largest", found["s1"], double=1e-12, single=1e-5),
            vanishes("W -> 0: X/N = 2 Cov(x) - (1 - 1/N) Cov(noise)", found["small"], double=1e-12, single=1e-5),
            refuted("as printed: eq. 6 with a leading minus is S0 - S1", found["printed"], by=0.1),
        ],
        notes=[
            "Eq. 6 is printed with a minus before its first bracket; its own proof starts from the plus that is right.",
            "The sum of S0 runs over ordered pairs (i, j); over unordered pairs it is half of what is needed.",
        ],
        draw=lambda path: draw_curves(
            path,
            [
                Panel(
                    [
                        Curve(s0_values, label="S0/N, data", colour=0),
                        Curve(s1_values, label="S1/N, augmentation", colour=1),
                        Curve(x_values, label="X/N", colour=2),
                    ],
                    "eigenvalue rank",
                    "eigenvalue",
                    f"X = S0 - S1, noise {amplitude:g} on {dim // 2} of {dim}",
                    log_y=False,
                    level=0.0,
                )
            ],
        ),
        numbers={"samples": SAMPLES, **found, "eigenvalues": {"x": x_values, "s0": s0_values, "s1": s1_values}},
    )


def lemma_3(*, seed: int = 0, seeds: int = 4, dim: int = 16, amplitude: float = 0.01) -> Report:
    """The flow of two linear layers: its velocity, its integral for fixed X, and what it conserves.

    Args:
      seed: the first seed.
      seeds: how many.
      dim: width of both layers.
      amplitude: variance of the augmentation's noise, on the last dim // 2 coordinates.
    """
    evaluate = functools.partial(_two_layer_errors, dim=dim, amplitude=amplitude)
    found = over_seeds(evaluate, seed, seeds)
    order = np.log2(found["strang"][:, 2] / found["strang"][:, 3])
    drift_order = np.log2(found["euler"][:, -2] / found["euler"][:, -1])
    return Report(
        title="Lemma 3: the gradient flow of two linear layers",
        statement="W1' = -W2^T G, W2' = -G W1^T, G = -W2 W1 X (eqs. 8, 9); W1 W1^T - W2^T W2 is conserved (eq. 10)",
        checks=[
            vanishes("W1' against autodiff, relative", found["w1"], double=1e-10, single=1e-4),
            vanishes("W2' against autodiff, relative", found["w2"], double=1e-10, single=1e-4),
            vanishes("conserved along the ODE, relative drift", found["drift"], double=1e-10, single=1e-4),
            close("order of its drift under SGD", float(np.median(drift_order)), 1.0, allowed=0.2),
            vanishes("split flow for fixed X against the ODE", found["strang"][:, -1], double=1e-6, single=1e-3),
            # Float32 rounding hides the order of so small an error.
            *([close("order of its error", float(np.median(order)), 2.0, allowed=0.2)] if in_double() else []),
        ],
        notes=[
            f"Along the ODE to t = 10 the entries of W1 moved by up to {found['moved'].max():.2f}.",
            "SGD conserves eq. 10 up to O(learning rate) only.",
        ],
        draw=lambda path: draw_curves(
            path,
            [
                Panel(
                    [
                        Curve(found["strang"], STRANG_STEPS, "split flow", 0),
                        Curve(_slope(STRANG_STEPS, found["strang"], -2), STRANG_STEPS, "second order", "grey"),
                    ],
                    "steps",
                    "relative error",
                    "X fixed: split flow against the ODE",
                    log_x=True,
                ),
                Panel(
                    [
                        Curve(found["euler"], LEARNING_RATES, "SGD", 0),
                        Curve(_slope(LEARNING_RATES, found["euler"], 1), LEARNING_RATES, "first order", "grey"),
                        Curve(
                            np.tile(found["drift"][:, None], (1, len(LEARNING_RATES))),
                            LEARNING_RATES,
                            "adaptive ODE solver",
                            1,
                        ),
                    ],
                    "learning rate",
                    "relative drift",
                    "W1 W1ᵀ - W2ᵀ W2 along the real flow",
                    log_x=True,
                ),
            ],
        ),
        numbers={"strang_steps": STRANG_STEPS, "learning_rates": LEARNING_RATES, **found},
    )


def _two_layer_errors(key: jax.Array, *, dim: int, amplitude: float) -> dict[str, jax.Array]:
    """How far velocity, split flow and conserved quantity are from what Lemma 3 says, for one seed."""
    n = SAMPLES[-1]
    rtol, atol = (1e-12, 1e-14) if in_double() else (1e-6, 1e-8)

    _, x, x_prime = random_model(key, n, dim, amplitude)
    w1, w2 = INITS["decaying"](key, 2, dim, x.dtype)
    alpha = softmax_weights(x @ (w2 @ w1).T, x_prime @ (w2 @ w1).T)
    x_matrix = interaction_matrix(x, x_prime, alpha)
    moving = two_layer_descent(x, x_prime)
    velocity = two_layer_velocity(w1, w2, x_matrix / n)
    derived = moving((w1, w2))
    # X fixed, to half the time in which the fastest direction would reach infinity.
    x_mean = x_matrix / n
    end = 0.5 * blow_up_time(jnp.ones(()), jnp.zeros(()), jnp.linalg.eigvalsh(x_mean)[-1])
    exact = integrate(lambda s: two_layer_velocity(s[0], s[1], x_mean), (w1, w2), end[None], rtol=rtol, atol=atol)
    strang = [two_layer_flow(w1, w2, x_mean, end, steps=steps) for steps in STRANG_STEPS]
    # The real flow, whose X moves with the weights.
    end1, end2 = (w[0] for w in integrate(moving, (w1, w2), jnp.asarray([10.0]), rtol=rtol, atol=atol))
    start = conserved_quantity(w1, w2)

    def drift(layers):
        return relative_error(conserved_quantity(layers[0], layers[1]), start)

    def euler(rate):
        return drift(descend(moving, (w1, w2), rate=rate, steps=round(10 / rate)))

    return {
        "w1": relative_error(velocity[0], derived[0]),
        "w2": relative_error(velocity[1], derived[1]),
        "strang": jnp.stack([relative_error(s[1] @ s[0], exact[1][0] @ exact[0][0]) for s in strang]),
        "drift": drift((end1, end2)),
        "moved": jnp.max(jnp.abs(end1 - w1)),
        "euler": jnp.stack([euler(rate) for rate in LEARNING_RATES]),
    }


def _over_samples(errors, seed: int, seeds: int) -> dict[str, np.ndarray]:
    """`errors(key, n)` for every seed and every N: arrays `[samples, seeds]` by name."""
    rows = [over_seeds(functools.partial(errors, n=n), seed, seeds) for n in SAMPLES]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _printed_eq_6(x: jax.Array, x_prime: jax.Array, alpha: jax.Array) -> jax.Array:
    """Eq. 6 with the sign that the paper prints."""
    off = alpha - jnp.diag(jnp.diagonal(alpha))
    rows, columns = off.sum(1)[:, None], off.sum(0)[:, None]
    bracket = rows * x_prime - off @ x + columns * x - off.T @ x
    return -bracket.T @ x - (rows * (x_prime - x)).T @ x_prime


def _slope(x, y: np.ndarray, order: int) -> np.ndarray:
    """A power law through the median of the last points."""
    x = np.asarray(x, float)
    return np.median(y[:, -1]) * (x / x[-1]) ** order
