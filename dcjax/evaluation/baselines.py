"""The baselines of a trained encoder: the encoder before training, and the images themselves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcjax.components import Components
from dcjax.data import Source, Subset
from dcjax.data.augment import normalize
from dcjax.evaluation import Features, extract, make_encode, settle_batch_stats
from dcjax.models.resnet import BN_MOMENTUM
from dcjax.runtime.mesh import replicated
from dcjax.runtime.randomness import Stream, device_key, host_seed
from dcjax.training.state import init_state

PIXELS = 32  # largest side of raw pixels: with more, a linear classifier on them only grows
# The batch for the statistics of an untrained encoder. Any usual number of devices divides it, so that the row of this
# encoder does not depend on the number.
SETTLE_BATCH = 256


def untrained_variables(components: Components) -> Any:
    """The variables before the first step, with batch statistics settled by one pass over the training images."""
    config, source = components.config, components.train_source

    def initial() -> Any:
        none = optax.identity()
        return init_state(components.exact_network, none, seed=config.seed, image_size=config.data.image_size).variables

    def statistics(variables: Any, images: jax.Array) -> Any:
        normalized = components.normalized(images)
        rngs = {"projector": device_key(config.seed, Stream.PROJECTOR)}  # does not change the statistics of r
        _, updates = components.exact_network.apply(
            variables, normalized, train=True, rngs=rngs, mutable=["batch_stats"]
        )
        return updates["batch_stats"]

    # Shuffled, since a folder holds its images class by class and a batch of one class is not like the data; in whole
    # batches, since the padding of a padded one would count.
    shuffle = np.random.default_rng(host_seed(config.seed, Stream.UNTRAINED_ORDER)).permutation(len(source))
    batch_size = -(-SETTLE_BATCH // components.mesh.size) * components.mesh.size
    whole = max(len(source) // batch_size, 1) * batch_size
    batches = components.eval_batches(Subset(source, np.resize(shuffle, whole)), batch_size=batch_size)
    variables = jax.jit(initial, out_shardings=replicated(components.mesh))()
    return settle_batch_stats(statistics, variables, batches, components.mesh, momentum=BN_MOMENTUM)


def pixels(components: Components, source: Source) -> Features:
    """The raw pixels as features `[n, s * s * 3]`, uint8, with s at most 32."""
    data = components.config.data
    size = min(data.stored_size or data.image_size, PIXELS)

    def forward(_: Any, images: jax.Array) -> dict[str, jax.Array]:
        interpolation = components.augmentation.interpolation
        plain = normalize(images, size=size, interpolation=interpolation, mean=(0.0,) * 3, std=(1.0,) * 3)
        return {"r": jnp.rint(jnp.clip(255 * plain, 0, 255)).astype(jnp.uint8).reshape(len(images), -1)}

    encode = make_encode(forward, components.mesh)
    return extract(encode, {}, components.eval_batches(source), components.mesh, images=len(source))
