"""Every negative once: on one device, or with the rows split over a mesh and passed around half a ring.

Both losses have the form L = 1/2n sum over the 2n rows of softplus(log sum exp(negatives) - positive); they differ in
which rows are each other's negatives. A `Pair` holds both views' rows of some samples. With p devices each keeps its
own pair and receives the others' one by one; after floor(p / 2) steps every two devices have met, and what a device
computed for its visitors travels home. Each logit is computed once, on one device, for both of the rows that it belongs
to.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dcjax.losses.logits import Side, stack

Compute = Callable[..., tuple[jax.Array, jax.Array]]


class Pair(NamedTuple):
    """The rows of both views, or what was computed for them."""

    u: Any
    v: Any


def visit_all(
    kind: str,
    compute: Compute,
    own: Pair,
    *,
    join: Callable[..., jax.Array],
    nothing: float,
    axis: str | None,
    size: int,
) -> Pair:
    """What `compute` finds for the rows of this device, over the rows of all devices.

    Args:
      kind: `info_nce` or `nt_xent`.
      compute: (a, b) -> (for the rows of a, for the rows of b); b None for a against itself.
      own: the sides of this device's samples.
      join: puts together what was found on different visits.
      nothing: the neutral element of `join`.
      axis: the mesh axis over which the rows are split; None on one device.
      size: devices on that axis.
    """
    meet = MEET[kind]
    total = meet.itself(compute, own)
    if axis is None or size == 1:
        return total

    def join_pairs(a: Pair, b: Pair) -> Pair:
        return Pair(join(a.u, b.u), join(a.v, b.v))

    def shift(tree, by: int = 1):
        return jax.lax.ppermute(tree, axis, [(i, (i + by) % size) for i in range(size)])

    def receive(visitor: Pair, sent: Pair, total: Pair) -> tuple[Pair, Pair]:
        # What was found for the visitor so far arrives while its rows are being multiplied.
        arrived = shift(sent)
        mine, theirs = meet.other(compute, own, visitor)
        return join_pairs(arrived, theirs), join_pairs(total, mine)

    def step(carry, _):
        visitor, sent, total = carry
        following = shift(visitor)  # under way during the products
        return (following, *receive(visitor, sent, total)), None

    sent = jax.tree.map(lambda x: jax.lax.full_like(x, nothing), total)
    (visitor, sent, total), _ = jax.lax.scan(step, (shift(own), sent, total), length=size // 2 - 1)
    if size % 2:
        sent, total = receive(visitor, sent, total)
    else:
        # The two devices face each other: each takes half of their logits.
        low = jax.lax.axis_index(axis) < size // 2
        mine, theirs = meet.opposite(compute, own, visitor, low, nothing)
        sent, total = join_pairs(shift(sent), theirs), join_pairs(total, mine)
    return join_pairs(total, shift(sent, -(size // 2)))


class Meeting(NamedTuple):
    """How the pairs of two devices meet: alone, with another, and with the one opposite, which does the other half."""

    itself: Callable[..., Pair]
    other: Callable[..., tuple[Pair, Pair]]
    opposite: Callable[..., tuple[Pair, Pair]]


def _cross_itself(compute: Compute, own: Pair) -> Pair:
    return Pair(*compute(own.u, own.v))


def _cross_other(compute: Compute, own: Pair, other: Pair) -> tuple[Pair, Pair]:
    mine_u, theirs_v = compute(own.u, other.v)
    theirs_u, mine_v = compute(other.u, own.v)
    return Pair(mine_u, mine_v), Pair(theirs_u, theirs_v)


def _cross_opposite(compute: Compute, own: Pair, other: Pair, low, nothing: float) -> tuple[Pair, Pair]:
    mine, theirs = compute(own.u, other.v)
    none = jax.lax.full_like(mine, nothing)
    return Pair(mine, none), Pair(none, theirs)


def _all_itself(compute: Compute, own: Pair) -> Pair:
    return Pair(*jnp.split(compute(stack(own.u, own.v), None)[0], 2))


def _all_other(compute: Compute, own: Pair, other: Pair) -> tuple[Pair, Pair]:
    mine, theirs = compute(stack(own.u, own.v), stack(other.u, other.v))
    return Pair(*jnp.split(mine, 2)), Pair(*jnp.split(theirs, 2))


def _all_opposite(compute: Compute, own: Pair, other: Pair, low, nothing: float) -> tuple[Pair, Pair]:
    # Of the lower device's rows the first view is multiplied there and the second here.
    def choose(a, b):
        return jax.tree.map(lambda x, y: jnp.where(low, x, y), a, b)

    half: Side = choose(own.u, other.v)
    both: Side = choose(stack(other.u, other.v), stack(own.u, own.v))
    for_half, for_both = compute(half, both)
    for_both = Pair(*jnp.split(for_both, 2))
    none = jax.lax.full_like(for_half, nothing)
    return choose(Pair(for_half, none), for_both), choose(for_both, Pair(none, for_half))


MEET = {
    "info_nce": Meeting(_cross_itself, _cross_other, _cross_opposite),
    "nt_xent": Meeting(_all_itself, _all_other, _all_opposite),
}
