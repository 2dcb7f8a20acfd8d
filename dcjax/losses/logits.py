"""Sums over tiles of a matrix of logits that is never held as a whole.

The logits between two sides are `scale * a @ b.T`, except between rows of one sample, which are left out: what remains
are the negatives. `log_sums` reduces them over rows and columns at once, `gradients` multiplies their weights with both
sides at once: a tile is computed once for both directions. Where a side meets itself the matrix is symmetric, and only
its upper triangle is visited.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

# exp(-80), the smallest weight beside a largest of 1, is still a normal number in float32.
MAX_SPREAD = 80.0

# The logarithm of nothing: its exponential is 0, and unlike -inf it has derivatives.
EMPTY = -1e30


class Side(NamedTuple):
    """Rows, the samples that they belong to, and what their logits are normalised by where gradients are wanted."""

    rows: jax.Array  # [m, d]
    samples: jax.Array  # [m], int32, not negative
    log: jax.Array | None = None  # [m]


def stack(a: Side, b: Side) -> Side:
    """Both sides as one."""
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), a, b)


class _Blocks(NamedTuple):
    """A side, cut into blocks; the last is filled up with rows that weigh nothing."""

    rows: jax.Array  # [blocks, block, d]
    samples: jax.Array  # [blocks, block]
    bias: jax.Array  # [blocks, block], 0 or EMPTY


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the logits are visited.

    Attributes:
      block: rows and columns of a tile.
      shift: a bound that no logit exceeds and that all are so near to that their exponentials need no running maximum;
        None where there is none.
    """

    block: int
    shift: float | None


def log_sums(tiling: Tiling, scale: jax.Array, a: Side, b: Side | None = None) -> tuple[jax.Array, jax.Array]:
    """The logarithm of the sum of exp(logit) over the negatives of every row of a, and of every row of b.

    Args:
      tiling: how to visit the logits.
      scale: the inverse temperature.
      a: `[m, d]`.
      b: `[k, d]`; None for a against itself.

    Returns:
      `([m], [k])`; `EMPTY` or less, up to rounding, where a row has no negative.
    """
    rows = _blocks(tiling, a)
    columns = rows if b is None else _blocks(tiling, b)
    running = tiling.shift is None
    nothing = EMPTY if running else 0.0
    join = jnp.logaddexp if running else jnp.add

    def tile(sums, indices):
        i, j = indices
        logits = _tile(tiling, scale, rows, columns, i, j)
        across, down = _log_reduce(logits) if running else _exp_reduce(logits)
        if b is None:
            down = jnp.where(i == j, nothing, down)
            total = sums[0].at[i].set(join(sums[0][i], across))
            return (total.at[j].set(join(total[j], down)),), None
        return (sums[0].at[i].set(join(sums[0][i], across)), sums[1].at[j].set(join(sums[1][j], down))), None

    sides = (rows,) if b is None else (rows, columns)
    start = tuple(jnp.full_like(side.bias, nothing) for side in sides)
    sums, _ = jax.lax.scan(tile, start, _indices(rows, columns, b is None))
    logs = [(total if tiling.shift is None else _log(total) + tiling.shift).ravel() for total in sums]
    return logs[0][: a.rows.shape[0]], logs[-1][: (a if b is None else b).rows.shape[0]]


def gradients(tiling: Tiling, scale: jax.Array, a: Side, b: Side | None = None) -> tuple[jax.Array, jax.Array]:
    """The weights of the negatives times the rows of the other side.

    Args:
      tiling: how to visit the logits.
      scale: the inverse temperature.
      a: `[m, d]`, with `log`.
      b: `[k, d]`, with `log`; None for a against itself.

    Returns:
      `[m, d]`, sum_j w_ij b_j, and `[k, d]`, sum_i w_ij a_i, with w_ij = exp(s_ij - log_i) + exp(s_ij - log_j).
    """
    rows = _blocks(tiling, a)
    columns = rows if b is None else _blocks(tiling, b)
    over_a = _normaliser(tiling, rows, a.log)
    over_b = over_a if b is None else _normaliser(tiling, columns, b.log)

    def tile(found, indices):
        i, j = indices
        logits = _tile(tiling, scale, rows, columns, i, j)
        if tiling.shift is None:
            weights = jnp.exp(logits - over_a[i][:, None]) + jnp.exp(logits - over_b[j][None, :])
        else:
            weights = jnp.exp(logits) * (over_a[i][:, None] + over_b[j][None, :])
        across = _dot(weights, columns.rows[j])
        down = _dot(rows.rows[i].T, weights).T  # faster on CPU than the product of the transposed weights
        if b is None:
            total = found[0].at[i].add(across)
            return (total.at[j].add(jnp.where(i == j, 0, down)),), None
        return (found[0].at[i].add(across), found[1].at[j].add(down)), None

    sides = (rows,) if b is None else (rows, columns)
    found, _ = jax.lax.scan(tile, tuple(jnp.zeros_like(s.rows) for s in sides), _indices(rows, columns, b is None))
    flat = [total.reshape(-1, total.shape[-1]) for total in found]
    return flat[0][: a.rows.shape[0]], flat[-1][: (a if b is None else b).rows.shape[0]]


def _blocks(tiling: Tiling, side: Side) -> _Blocks:
    m, d = side.rows.shape
    fill = -m % tiling.block
    rows = jnp.pad(side.rows, ((0, fill), (0, 0)))
    samples = jnp.pad(side.samples, (0, fill), constant_values=-1)
    bias = jnp.where(samples < 0, EMPTY, 0).astype(rows.dtype)
    return _Blocks(rows.reshape(-1, tiling.block, d), *(v.reshape(-1, tiling.block) for v in (samples, bias)))


def _indices(rows: _Blocks, columns: _Blocks, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    m, k = rows.rows.shape[0], columns.rows.shape[0]
    i, j = np.triu_indices(m) if symmetric else (v.ravel() for v in np.indices((m, k)))
    return i.astype(np.int32), j.astype(np.int32)


def _tile(tiling: Tiling, scale, rows: _Blocks, columns: _Blocks, i, j) -> jax.Array:
    """The logits of a tile less the shift; EMPTY between rows of one sample and where there is no row."""
    logits = scale * _dot(rows.rows[i], columns.rows[j].T)
    logits = logits + (rows.bias[i] - (tiling.shift or 0.0))[:, None] + columns.bias[j][None, :]
    return jnp.where(rows.samples[i][:, None] == columns.samples[j][None, :], EMPTY, logits)


def _normaliser(tiling: Tiling, blocks: _Blocks, log: jax.Array | None) -> jax.Array:
    """exp(shift - log), or the log itself where there is no shift; what fills up the last block weighs nothing."""
    assert log is not None
    factors = log if tiling.shift is None else jnp.exp(tiling.shift - log)
    return jnp.pad(factors, (0, blocks.bias.size - log.shape[0])).reshape(blocks.bias.shape)


def _exp_reduce(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    weights = jnp.exp(logits)
    return jnp.sum(weights, axis=1), jnp.sum(weights, axis=0)


def _log(x: jax.Array) -> jax.Array:
    """The logarithm, with a derivative of 0 instead of NaN at 0."""
    return jnp.where(x == 0, EMPTY, jnp.log(jnp.where(x == 0, 1, x)))


def _log_reduce(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0)
