"""The order of the images in training: one uniform permutation per epoch, dealt out to the processes."""

import functools
from typing import Any

import numpy as np


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A uniformly random permutation of `count` indices, int32 `[count]`; every seed and epoch has its own."""
    return np.random.default_rng((seed % 2**64, epoch)).permutation(np.arange(count, dtype=np.int32))


def endless_order(count: int, seed: int, *, process_index: int, process_count: int) -> Any:
    """One process's share of the endless stream of epochs, as a Grain `MapDataset` of (index, position in the stream).

    Process `p` of `n` gets the positions that are `p` modulo `n`.
    """
    import grain  # imported here because it loads JAX; opening a source alone should stay fast

    # Grain's own shuffle is no uniform permutation: with 50,000 images, neighbours in an epoch, and the places of an
    # image in two epochs, are correlated by 14 and more standard deviations.
    order = functools.lru_cache(maxsize=3)(functools.partial(epoch_order, count, seed))
    stream = grain.MapDataset.range(count).repeat()
    stream = stream.map_with_index(lambda position, i: (order(position // count)[i], position))
    return stream[process_index::process_count]
