"""The training step: a pure function of the state and a batch."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dcjax.data import Augmentation
from dcjax.data.augment import two_views
from dcjax.runtime.randomness import Stream, device_key
from dcjax.training.state import TrainState

TrainStep = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def make_objective(
    network: nn.Module, loss: Callable[[jax.Array, jax.Array], jax.Array], *, seed: int
) -> Callable[..., Any]:
    """The objective of a step: the contrastive loss of two views plus the loss of the online classifier.

    Args:
      network: a `dcjax.models.Network`.
      loss: a function of the embeddings of both views.
      seed: the run's seed, from which the projector draws in each step, the same for both views.

    Returns:
      A pure function from `(params, state, x, x_prime, labels)` to the objective and `(batch_stats, metrics)`; `state`
      gives the step, the batch statistics and the fixed matrices.
    """

    def objective(
        params: Any, state: TrainState, x: jax.Array, x_prime: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        def apply(images: jax.Array, batch_stats: Any) -> tuple[Any, Any]:
            variables = {"params": params, "batch_stats": batch_stats, "constants": state.constants}
            rngs = {"projector": jax.random.fold_in(device_key(seed, Stream.PROJECTOR), state.step)}
            out, updates = network.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])
            return out, updates["batch_stats"]

        # Each view has its own batch statistics over the global batch, as in the authors' two calls.
        view, batch_stats = apply(x, state.batch_stats)
        view_prime, batch_stats = apply(x_prime, batch_stats)
        logits = view.logits
        with jax.named_scope("loss"):
            contrastive = loss(view.z, view_prime.z)
            if logits is None:
                return contrastive, (batch_stats, {"loss": contrastive})
            online = jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))
            right = jnp.argmax(logits, axis=1) == labels
        metrics = {
            "loss": contrastive,
            "online_loss": online,
            "online_accuracy": jnp.mean(right.astype(jnp.float32)),
        }
        # The gradient of the online loss ends at the classifier: r stands behind a stopped gradient.
        return contrastive + online, (batch_stats, metrics)

    return objective


def parts_of(params: Any) -> dict[str, Any]:
    """The parts of a network that are worth a gradient norm each: projector, classifier, and each stage of the encoder.

    Args:
      params: parameters, or a gradient in their tree.

    Returns:
      The leaves of each part, by `projector`, `classifier`, or `encoder/` and the child's name up to an underscore:
      the blocks `layer1_0` and `layer1_1` are `encoder/layer1`.
    """
    parts: dict[str, dict[str, Any]] = {}
    for name, tree in params.items():
        for child, leaves in tree.items():
            part = f"{name}/{child.partition('_')[0]}" if name == "encoder" else name
            parts.setdefault(part, {})[child] = leaves
    return parts


def make_train_step(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    augmentation: Augmentation,
    image_size: int,
    seed: int,
    mesh: Mesh,
) -> TrainStep:
    """The pure step of a global batch: augment, encode each view, project, contrast, update.

    Args:
      network: a `dcjax.models.Network`.
      optimizer: the optimiser, with the learning rate.
      schedule: the learning rate by step, for the scalars only.
      loss: a function of the embeddings of both views.
      augmentation: the settings of the two views.
      image_size: side of the views in pixels.
      seed: the run's seed.
      mesh: the devices.

    Returns:
      A function from the state and a batch of `image`, `label` and `position` to the next state and the step's scalars.
    """
    objective = make_objective(network, loss, seed=seed)

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        key = device_key(seed, Stream.AUGMENTATION)
        images, positions = batch["image"], batch["position"]
        with jax.named_scope("augment"):
            x, x_prime = two_views(images, key, positions, size=image_size, settings=augmentation, mesh=mesh)
        differentiate = jax.grad(objective, has_aux=True)
        gradient, (batch_stats, metrics) = differentiate(state.params, state, x, x_prime, batch["label"])
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        with jax.named_scope("scalars"):
            metrics |= {
                "gradient_norm": optax.tree.norm(gradient),
                **{f"gradient_norm/{part}": optax.tree.norm(leaves) for part, leaves in parts_of(gradient).items()},
                # Norms of the new state, so that a state is known to be finite before it is saved.
                "parameter_norm": optax.tree.norm(params),
                "statistics_norm": optax.tree.norm(batch_stats),
                "learning_rate": schedule(state.step),
            }
        next_state = TrainState(state.step + 1, params, batch_stats, state.constants, opt_state)
        return next_state, metrics

    return train_step
