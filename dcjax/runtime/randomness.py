"""All randomness derives from one seed, with a separate stream for every use."""

import enum

import jax
import numpy as np


class Stream(enum.IntEnum):
    """The uses of randomness. A number must keep its meaning, because checkpoints rely on it."""

    PARAMETERS = 0
    ORDER = 1
    AUGMENTATION = 2
    PROBE_CLASSIFIER = 3
    PROBE_ORDER = 4
    PROBE_AUGMENTATION = 5
    UNTRAINED_ORDER = 6
    PROJECTOR = 7
    COLLAPSE_VIEWS = 8


def device_key(seed: int, stream: Stream) -> jax.Array:
    """The JAX key of a stream."""
    return jax.random.fold_in(jax.random.key(seed), stream)


def host_seed(seed: int, stream: Stream) -> int:
    """The seed, in 0..2^32-1, of a stream that is drawn on the host."""
    return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])
