"""The cached-feature linear probe: multinomial logistic regression on frozen features, solved to its optimum."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from dcjax.errors import SettingError

TOLERANCE = 1e-4  # L-BFGS is done when no entry of the gradient is larger


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
        return jnp.matmul(x, self.w, precision=jax.lax.Precision.HIGHEST) + self.b


@functools.partial(jax.jit, static_argnames=("classes", "max_iterations"))
def fit_logistic(
    x: Float[Array, "n d"],
    labels: Int[Array, " n"],
    *,
    classes: int,
    max_iterations: int = 300,
) -> Classifier:
    """Fits logits = x W + b by L-BFGS, from zero, to mean cross-entropy + |W|^2 / (2 n).

    The penalty is scikit-learn's default, C = 1; `standardize` first makes it mean the same for any features. The
    objective is convex: the optimum does not depend on the start.

    Args:
      x: features `[n, d]`.
      labels: `[n]` in 0..classes-1.
      classes: k.
      max_iterations: limit on the L-BFGS steps.

    Returns:
      The classifier. Its `residual` is above `TOLERANCE` where the limit came first.
    """
    n, d = x.shape

    def objective(parameters: tuple[Array, Array]) -> Array:
        classifier = Classifier(*parameters)
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(classifier.logits(x), labels)
        return jnp.mean(loss) + 0.5 / n * jnp.sum(jnp.square(classifier.w))

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry):
        parameters, state, _, i = carry
        value, grad = value_and_grad(parameters, state=state)
        updates, state = solver.update(grad, state, parameters, value=value, grad=grad, value_fn=objective)
        return optax.apply_updates(parameters, updates), state, grad, i + 1

    def residual(gradient: Any) -> Array:
        return jnp.maximum(jnp.max(jnp.abs(gradient[0])), jnp.max(jnp.abs(gradient[1])))

    def unfinished(carry):
        _, _, gradient, i = carry
        return (i == 0) | ((i < max_iterations) & (residual(gradient) > TOLERANCE))

    start = (jnp.zeros((d, classes), x.dtype), jnp.zeros((classes,), x.dtype))
    parameters: Any
    parameters, _, gradient, _ = jax.lax.while_loop(unfinished, step, (start, solver.init(start), start, 0))
    return Classifier(*parameters, residual=residual(gradient))


def standardize(train: Float[Array, "n d"], *others: Float[Array, "m d"]) -> tuple[Float[Array, "_ d"], ...]:
    """Centres every feature and divides it by its standard deviation, both over the training rows.

    Args:
      train: `[n, d]`; a feature that is constant in it becomes zero.
      others: arrays `[m, d]` that take the same map.

    Returns:
      The mapped arrays, `train` first.
    """
    mean, std = jnp.mean(train, axis=0), jnp.std(train, axis=0)
    scale = jnp.where(std > 0, 1 / jnp.where(std > 0, std, 1), 0)
    return tuple((rows - mean) * scale for rows in (train, *others))


@functools.partial(jax.jit, static_argnames=("k",))
def top_k_accuracy(
    classifier: Classifier, x: Float[Array, "n d"], labels: Int[Array, " n"], *, k: int
) -> Float[Array, ""]:
    """The share of rows whose label is among the k largest logits; of equal logits the lower class comes first.

    A row with a logit that is not finite counts as wrong, so that a diverged classifier cannot look like a good one.
    """
    logits = classifier.logits(x)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    # Counting what comes before the label avoids a sort. A collapsed representation ties everywhere: without an order
    # among ties it would be right everywhere.
    first = jnp.arange(logits.shape[1]) < labels[:, None]
    before = jnp.sum((logits > own) | ((logits == own) & first), axis=1)
    return jnp.mean(((before < k) & jnp.isfinite(logits).all(axis=1)).astype(jnp.float32))


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
