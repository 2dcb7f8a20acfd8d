"""The train state: everything that a step changes, and the fixed matrices, in one pytree."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from dcjax.runtime.randomness import Stream, device_key


@flax.struct.dataclass
class TrainState:
    """The whole state that training carries from step to step and that a checkpoint saves.

    Attributes:
      step: number of optimiser steps taken, int32 scalar.
      params: trained parameters, float32.
      batch_stats: running means and variances of the BatchNorm layers, float32.
      constants: fixed projector matrices, float32; empty for most projectors.
      opt_state: state of the optimiser.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    constants: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """The collections as `Network.apply` takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats, "constants": self.constants}


def init_state(
    network: nn.Module, optimizer: optax.GradientTransformation, *, seed: int, image_size: int
) -> TrainState:
    """The state before the first step. The function is pure, so `jax.eval_shape` and `jax.jit` accept it.

    Args:
      network: a `dcjax.models.network.Network`.
      optimizer: the optimiser whose state starts here.
      seed: the run's seed; parameters and fixed matrices are drawn from it.
      image_size: side of the images in pixels.

    Returns:
      The state at step 0.
    """
    images = jnp.zeros((2, image_size, image_size, 3))
    variables = network.init(device_key(seed, Stream.PARAMETERS), images, train=False)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        constants=variables.get("constants", {}),
        opt_state=optimizer.init(variables["params"]),
    )
