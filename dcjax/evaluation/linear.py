"""The cached-feature linear probe: multinomial logistic regression on frozen features, solved to its optimum."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from dcjax.errors import SettingError

Classifier = tuple[Float[Array, "d k"], Float[Array, " k"]]


@functools.partial(jax.jit, static_argnames=("classes", "max_iterations"))
def fit_logistic(
    x: Float[Array, "n d"],
    labels: Int[Array, " n"],
    *,
    classes: int,
    max_iterations: int = 300,
    tolerance: float = 1e-4,
) -> Classifier:
    """Fits logits = x W + b by L-BFGS, from zero, to mean cross-entropy + |W|^2 / (2 n).

    The penalty is scikit-learn's default, C = 1; `standardize` first makes it mean the same for any features. The
    objective is convex: the optimum does not depend on the start.

    Args:
      x: features `[n, d]`.
      labels: `[n]` in 0..classes-1.
      classes: k.
      max_iterations: limit on the L-BFGS steps.
      tolerance: stop when the largest entry of the gradient is below it.

    Returns:
      `(W [d, k], b [k])`.
    """
    n, d = x.shape

    def objective(parameters: Classifier) -> Array:
        w, b = parameters
        logits = jnp.matmul(x, w, precision=jax.lax.Precision.HIGHEST) + b
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(loss) + 0.5 / n * jnp.sum(jnp.square(w))

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry):
        parameters, state, _, i = carry
        value, grad = value_and_grad(parameters, state=state)
        updates, state = solver.update(grad, state, parameters, value=value, grad=grad, value_fn=objective)
        return optax.apply_updates(parameters, updates), state, grad, i + 1

    def unfinished(carry):
        _, _, grad, i = carry
        largest = jnp.maximum(jnp.max(jnp.abs(grad[0])), jnp.max(jnp.abs(grad[1])))
        return (i == 0) | ((i < max_iterations) & (largest > tolerance))

    start = (jnp.zeros((d, classes), x.dtype), jnp.zeros((classes,), x.dtype))
    parameters: Any
    parameters, *_ = jax.lax.while_loop(unfinished, step, (start, solver.init(start), start, 0))
    return parameters


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
    """The share of rows whose label is among the k largest logits."""
    w, b = classifier
    logits = jnp.matmul(x, w, precision=jax.lax.Precision.HIGHEST) + b
    # Counting the logits that beat the label's own avoids a sort; ties count for the classifier.
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    return jnp.mean((jnp.sum(logits > own, axis=1) < k).astype(jnp.float32))


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
