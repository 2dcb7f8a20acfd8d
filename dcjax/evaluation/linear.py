"""The cached-feature linear probe: multinomial logistic regression on frozen features, solved to its optimum."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from dcjax.runtime.errors import SettingError

TOLERANCE = 1e-5  # L-BFGS is done when no entry of the gradient is larger
HIGHEST = jax.lax.Precision.HIGHEST


class Classifier(NamedTuple):
    """Logits = x W + b.

    Attributes:
      w: `[d, k]`.
      b: `[k]`.
      residual: the largest entry of the objective's gradient where the solver stopped.
    """

    w: Array
    b: Array
    residual: Array | float = 0.0

    def logits(self, x: Array) -> Array:
        """`[n, d]` to `[n, k]`."""
        return jnp.matmul(x, self.w, precision=HIGHEST) + self.b


@functools.partial(jax.jit, static_argnames=("classes", "max_iterations"))
def fit_logistic(
    x: Float[Array, "n d"],
    labels: Int[Array, " n"],
    *,
    classes: int,
    max_iterations: int = 300,
    tolerance: float = TOLERANCE,
) -> Classifier:
    """Fits logits = x W + b by preconditioned L-BFGS, from zero, to mean cross-entropy + |W|^2 / (2 n).

    The penalty is scikit-learn's default, C = 1; `standardize` first makes it mean the same for any features. The
    objective is convex: the optimum does not depend on the start. L-BFGS moves in the coordinates of `whitener`, where
    correlated features (the pixels of photographs) are as easy as independent ones; the objective stays as it is.

    Besides x the memory holds two matrices `[d, d]`, 20 of the size of W and a few of the logits' `[n, k]`. With fewer
    rows than features, d here is the number of rows.

    Args:
      x: features `[n, d]`; the rows may be split over a mesh.
      labels: `[n]` in 0..classes-1; a row with the label -1 does not count.
      classes: k.
      max_iterations: limit on the L-BFGS steps.
      tolerance: the solver stops when no entry of the gradient is larger.

    Returns:
      The classifier. Its `residual` is above `tolerance` where the limit came first, or where rounding leaves no step
      that lowers the objective.
    """
    basis = None
    if x.shape[0] < x.shape[1]:
        # At the optimum W is a combination of the rows. In an orthonormal basis of these, the objective is the same
        # with fewer features.
        basis, triangle = jnp.linalg.qr(x.T)  # [d, n], [n, n]
        x = triangle.T

    def expand(w: Array) -> Array:
        return w if basis is None else jnp.matmul(basis, w, precision=HIGHEST)

    counted = labels >= 0
    count = jnp.sum(counted).astype(x.dtype)

    def objective(parameters: tuple[Array, Array]) -> Array:
        logits = Classifier(*parameters).logits(x)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return (jnp.sum(jnp.where(counted, losses, 0)) + 0.5 * jnp.sum(jnp.square(parameters[0]))) / count

    def residual(gradient: Any) -> Array:
        return jnp.maximum(jnp.max(jnp.abs(expand(gradient[0]))), jnp.max(jnp.abs(gradient[1])))

    whiten = whitener(x, count, classes=classes)
    bias_scale = math.sqrt(classes)  # the Hessian of a bias is 1 / k where W = 0
    directions: Any = optax.scale_by_lbfgs()
    value_and_grad = jax.value_and_grad(objective)

    def search(point, value, gradient, update):
        """The longest of the steps 1, 1/2, 1/4 ... that lowers the objective in proportion to its length, if any."""
        slope = optax.tree.vdot(gradient, update)
        rounding = 10 * jnp.finfo(x.dtype).eps * jnp.abs(value)

        def halve(carry):
            length = carry[0] / 2
            there = jax.tree.map(lambda p, by: p + length * by, point, update)
            return length, there, *value_and_grad(there)

        def lowers(carry):
            length, _, found, _ = carry
            return found <= value + 1e-4 * length * slope + rounding  # False where the objective is not finite

        def goes_on(carry):
            # At steps shorter than 2^-20, rounding decides whether the objective falls.
            return ~lowers(carry) & (carry[0] > 2.0**-20)

        last = jax.lax.while_loop(
            goes_on, halve, (jnp.full_like(value, 2), point, jnp.full_like(value, jnp.inf), gradient)
        )
        return lowers(last), last

    def step(carry):
        before, inner, value, gradient, memory, i = carry
        inner_gradient = (jnp.matmul(whiten.T, gradient[0], precision=HIGHEST), bias_scale * gradient[1])
        update, memory = directions.update(inner_gradient, memory, inner)
        update = jax.tree.map(jnp.negative, update)
        # The line search and the stopping rule use the original coordinates.
        outer = (jnp.matmul(whiten, update[0], precision=HIGHEST), bias_scale * update[1])
        found, (length, *after) = search(before, value, gradient, outer)
        # Without a step that lowers the objective, the solver keeps its point and ends.
        point, value, gradient = jax.tree.map(
            functools.partial(jnp.where, found), tuple(after), (before, value, gradient)
        )
        inner = jax.tree.map(lambda u, by: jnp.where(found, u + length * by, u), inner, update)
        return point, inner, value, gradient, memory, jnp.where(found, i + 1, max_iterations)

    def unfinished(carry):
        _, _, _, gradient, _, i = carry
        return (i < max_iterations) & (residual(gradient) > tolerance)

    start = (jnp.zeros((x.shape[1], classes), x.dtype), jnp.zeros((classes,), x.dtype))
    point: Any
    point, _, _, gradient, *_ = jax.lax.while_loop(
        unfinished, step, (start, start, *value_and_grad(start), directions.init(start), 0)
    )
    return Classifier(expand(point[0]), point[1], residual=residual(gradient))


def whitener(x: Float[Array, "n d"], count: Array, *, classes: int) -> Float[Array, "d d"]:
    """Coordinates in which the objective of `fit_logistic` is about as steep in every direction.

    Where all classes are equally likely, the Hessian is H = X^T X / (n k) + I / n in each class's weights (up to their
    common shift), and it is bounded by a multiple of that everywhere. With H = L L^T, W = L^-T U turns it into the
    identity. The map changes the solver's path and never the optimum, so H need not be exact: rows that do not count
    may be in it, and its diagonal is raised above the rounding errors of the Cholesky factor.

    Args:
      x: features `[n, d]`.
      count: how many rows count.
      classes: k.

    Returns:
      L^-T `[d, d]`, upper triangular.

    References:
      Böhning, "Multinomial logistic regression algorithm", Annals of the Institute of Statistical Mathematics, 1992.
    """
    second = jnp.matmul(x.T, x, precision=HIGHEST) / (count * classes)
    # The trace bounds the largest eigenvalue, of which the rounding is a multiple.
    floor = 1 / count + 4 * jnp.finfo(x.dtype).eps * jnp.trace(second)
    identity = jnp.eye(x.shape[1], dtype=x.dtype)
    lower = jnp.linalg.cholesky(second + floor * identity)
    return jax.scipy.linalg.solve_triangular(lower, identity, lower=True).T


@jax.jit
def standardize(
    train: Float[Array, "n d"], *others: Float[Array, "m d"], where: Bool[Array, " n"] | None = None
) -> tuple[Float[Array, "_ d"], ...]:
    """Centres every feature and divides it by its standard deviation, both over the training rows.

    Args:
      train: `[n, d]`; a feature that is constant in it becomes zero.
      others: arrays `[m, d]` that take the same map.
      where: the rows of `train` that count; None for all.

    Returns:
      The mapped arrays, `train` first.
    """
    counts = None if where is None else where[:, None]
    mean, std = jnp.mean(train, axis=0, where=counts), jnp.std(train, axis=0, where=counts)
    scale = jnp.where(std > 0, 1 / jnp.where(std > 0, std, 1), 0)
    return tuple((rows - mean) * scale for rows in (train, *others))


@functools.partial(jax.jit, static_argnames=("k",))
def top_k_accuracy(
    classifier: Classifier, x: Float[Array, "n d"], labels: Int[Array, " n"], *, k: int
) -> Float[Array, ""]:
    """The share of rows whose label is among the k largest logits; of equal logits the lower class comes first.

    A row with a logit that is not finite counts as wrong, so that a diverged classifier cannot look like a good one; a
    row with the label -1 does not count.
    """
    logits = classifier.logits(x)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    # Counting what comes before the label avoids a sort. A collapsed representation ties everywhere: without an order
    # among ties it would be right everywhere.
    first = jnp.arange(logits.shape[1]) < labels[:, None]
    before = jnp.sum((logits > own) | ((logits == own) & first), axis=1)
    return jnp.mean(((before < k) & jnp.isfinite(logits).all(axis=1)).astype(jnp.float32), where=labels >= 0)


def draw_labelled(labels: np.ndarray, *, per_class: int, draw: int) -> np.ndarray:
    """Indices of a fixed draw of labelled images, the same number from every class.

    Args:
      labels: `[n]`, the labels of the training split.
      per_class: images of each class.
      draw: which of the draws; the same number always gives the same images.

    Returns:
      `[classes * per_class]` indices into `labels`, class by class.

    Raises:
      ValueError: a class that holds fewer images.
    """
    rng = np.random.Generator(np.random.Philox(key=draw))
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise SettingError(
                f"labels_per_class must be at most {len(members)}, the training images "
                f"of class {label}, found {per_class}"
            )
        chosen.append(rng.permutation(members)[:per_class])
    return np.concatenate(chosen)
