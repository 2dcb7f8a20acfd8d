"""The forecast of collapse: the eigenvalues of Lemma 2's X, the matrix of the gradient flow W' = W X, on given rows.

The embeddings are z = W x: x the representation r of two views and W a linear projector, or the identity where there
is none. A loss that depends on the embeddings only through inner products of rows is a function of S = W^T W, so its
gradient is dL/dW = 2 W dL/dS = -W X with X = -2 dL/dS symmetric. Where W has a null space, W X fixes X only in part;
this is the symmetric choice. With X held fixed, W(t) = W(0) expm(X t): the gain |W v| of an eigenvector v changes as
exp(rate t). Time is the learning rate of plain gradient descent, summed over the steps.

How much the sign of a rate says depends on the loss:

- Eq. 2 sees the scale of W, and the sign test of Theorem 1 holds for it. Where its softmax weights are uniform, X is
  2 Cov(x) - E (x' - x)(x' - x)^T, which is negative where noise on *one* view has more than twice the variance of the
  data. Where both views are augmented alike, the same expression is twice the covariance between the views, which is
  never negative: X of real views is negative only where the weights gather on near neighbours, or by chance in few
  rows.
- The cosine losses do not see the scale of W. Hence tr(X S) = 0 and |W|_F stays constant: the rates are relative to
  their mean over |W|_F^2, and a negative one says that its direction loses its share, not that it collapses. With W = I
  the rates sum to 0, so some are negative under every augmentation, also under none. Whether a direction
  collapses shows only in time: `Forecast.spectrum_after`, or the half-lives beside the length of the training.

A count that can be 0 for them asks another question: would a direction that the embedding does not use (W v = 0, and x
along v independent of the directions in use) grow or stay collapsed? The negatives then have no part in its rate, so
this is X without their cross terms. For the cosine losses, and embeddings of about equal norms, its sign is that of

    corr(v.x, v.x') - margin,    margin = sum_i [c_ii - sum_j P_ij c_ij] / sum_i (1 - P_ii):

the correlation of the two views along v, less how far the cosines of the positives are above those of the negatives,
weighted as in the gradient. The margin grows with the temperature and with the number of directions in use, so a
direction can be lost late. For eq. 2 the matrix is about 2 Cov(x) - E (x' - x)(x' - x)^T.

An encoder is not a linear layer, and its X changes with every step. For rows of a real encoder this is a heuristic, of
which `experiments/forecast.py` measures how far it carries; eq. 2 on rows of an encoder that another loss trains is one
twice over.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from dcjax.collapse.arrays import as_array, check_finite, is_real, unit_rows
from dcjax.collapse.covariance import Covariance
from dcjax.collapse.ranks import TOLERANCE
from dcjax.runtime.errors import not_known

Rows = Float[np.ndarray, "n d"]
Embeddings = Float[np.ndarray, "n e"]
Square = Float[np.ndarray, "d d"]
# X, X for unused directions, and the sum of the absolute parts of the trace of X
Matrices = tuple[Square, Square, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Forecast:
    """The flow of W at its start.

    Attributes:
      matrix: `[d, d]`, X, for the mean of the loss over its rows.
      rates: `[d]`, the eigenvalues of X, ascending: the fastest decay comes first.
      directions: `[d, d]`, the eigenvectors of X as columns, in the order of the rates.
      unused_matrix: `[d, d]`, X without the cross terms of the negatives.
      unused_rates: `[d]`, its eigenvalues, ascending: the rates that directions would have if the embedding did not use
        them. Where they are negative, collapse is stable.
      unused_directions: `[d, d]`, as columns, in the order of these rates.
      noise_shares: `[d]`, along each direction the mean square of the difference of two views, divided by twice the
        variance of all rows: 0 where the views agree, 1 where they differ as much as two images do.
      floor: what rounding alone may leave in a rate: the digits of the rows times the sum of the parts of which X is
        the difference. The error of few rows is larger.
      weight: `[e, d]`, W(0).
      rows: the covariance of the rows of both views.
    """

    matrix: Square
    rates: Float[np.ndarray, " d"]
    directions: Square
    unused_matrix: Square
    unused_rates: Float[np.ndarray, " d"]
    unused_directions: Square
    noise_shares: Float[np.ndarray, " d"]
    floor: float
    weight: Float[np.ndarray, "e d"]
    rows: Covariance

    @property
    def negative(self) -> int:
        """How many rates are below -floor."""
        return int((self.rates < -self.floor).sum())

    @property
    def unused_negative(self) -> int:
        """How many of the rates of unused directions are below -floor."""
        return int((self.unused_rates < -self.floor).sum())

    @property
    def half_lives(self) -> Float[np.ndarray, " d"]:
        """The times, learning rate times steps, in which the gains of the directions halve; inf for no decay."""
        decays = self.rates < -self.floor
        return np.divide(np.log(2), -self.rates, out=np.full_like(self.rates, np.inf), where=decays)

    def weight_after(self, time: float) -> Float[np.ndarray, "e d"]:
        """W(time) = W(0) expm(X time), X held fixed.

        Args:
          time: learning rate times steps, at least 0.

        Raises:
          ValueError: the time is negative or not finite, or the result is too large for float64.

        References:
          Jing et al., ICLR 2022, Theorem 1.
        """
        if _checked_time(time) * self.rates[-1] > 700:
            raise ValueError(f"time must be at most {700 / self.rates[-1]:.3g} for finite entries, found {time:g}")
        return (self.weight @ self.directions) * np.exp(self.rates * time) @ self.directions.T

    def spectrum_after(self, time: float) -> Float[np.ndarray, " k"]:
        """The predicted spectrum of z: the eigenvalues of its covariance as shares of the largest, descending.

        There are k = min(e, d). Only the shares are predicted: with X held fixed the scale grows without a bound.

        Args:
          time: learning rate times steps, at least 0.

        Raises:
          ValueError: the time is negative or not finite.
        """
        growth = np.exp((self.rates - self.rates[-1]) * _checked_time(time))
        # The factor R of Cov(x) = R^T R / n keeps small values that W Cov(x) W^T would lose.
        factor = (self.rows.factor @ self.directions) * growth @ (self.weight @ self.directions).T
        values = np.linalg.svd(factor, compute_uv=False) ** 2
        return values / values[0] if values[0] else values

    def collapsed_after(self, time: float, *, tolerance: float = TOLERANCE) -> int:
        """How many of the values of `spectrum_after` are at or below `tolerance`."""
        return int((self.spectrum_after(time) <= tolerance).sum())


def forecast(
    x: Any, x_prime: Any, weight: Any = None, *, loss: str = "info_nce", temperature: float | None = None
) -> Forecast:
    """Forecasts which directions of x a linear layer behind it, or x itself as an embedding, gains and loses.

    The memory is O(n^2 + n d + d^2); n = 2,000 and d = 2,048 take some ten seconds of a CPU core.

    Args:
      x: `[n, d]`, rows of the first view, an array of any library; as a rule r of a few hundred to a few thousand
        images. All rows make one batch, and a larger batch has more negatives.
      x_prime: `[n, d]`, the second view of the same images in the same order.
      weight: `[e, d]`, W of z = W x; None for the identity. A Flax kernel is its transpose.
      loss: a key of `LOSSES`: `info_nce` and `nt_xent` as in `dcjax.losses`; `eq2` the paper's loss, without unit rows.
      temperature: of the loss. For `eq2`, which has none, None leaves z as it is; a number divides z by its root mean
        square norm and by the root of this number, in the weights only, so that unit rows have the logits of
        `info_nce`. X keeps the units of x, but its sign then does not depend on the scale of x.

    Returns:
      The forecast, in float64.

    Raises:
      ValueError: the views are not two finite arrays of one shape `[n, d]` with n >= 2, the weight has another width or
        is not finite, the loss is not known, or the temperature is not positive and finite.

    References:
      Jing et al., ICLR 2022, Lemma 2 and Theorem 1 for `eq2`. The cosine losses follow from the same argument.
    """
    check_loss(loss, temperature)
    (first, second), digits = paired_rows(x, x_prime)
    if weight is None:
        matrix, z, z_prime = np.eye(first.shape[1]), first, second
    else:
        matrix, _ = _matrix("weight", weight)
        if matrix.shape[1] != first.shape[1]:
            raise ValueError(f"weight must have the shape [e, {first.shape[1]}], found {matrix.shape}")
        z, z_prime = first @ matrix.T, second @ matrix.T
    found, unused, parts = LOSSES[loss](first, second, z, z_prime, temperature)
    rates, directions = np.linalg.eigh(found)
    unused_rates, unused_directions = np.linalg.eigh(unused)
    covariance = Covariance.init(first.shape[1], np.float64).update(np.concatenate([first, second]))
    return Forecast(
        matrix=found,
        rates=rates,
        directions=directions,
        unused_matrix=unused,
        unused_rates=unused_rates,
        unused_directions=unused_directions,
        noise_shares=_noise_shares(covariance, first - second, directions),
        floor=digits * parts,
        weight=matrix,
        rows=covariance,
    )


def _info_nce(x: Rows, x_prime: Rows, z: Embeddings, z_prime: Embeddings, temperature: float) -> Matrices:
    """Of `dcjax.losses.info_nce`.

    The derivative of the loss by the cosine c_ij of z_i and z'_j is M_ij / temperature, M = (P + Q - 2 I) / (2 n), with
    P the softmax of the logits by rows and Q that by columns.
    """
    cosines = unit_rows(z) @ unit_rows(z_prime).T
    positives = np.arange(len(x))
    slopes = _softmax_slopes(cosines / temperature, positives)
    slopes += _softmax_slopes(cosines.T / temperature, positives).T
    slopes /= 2 * len(x) * temperature
    return _of_cosines((x, x_prime), (z, z_prime), slopes, cosines, positives)


def _nt_xent(x: Rows, x_prime: Rows, z: Embeddings, z_prime: Embeddings, temperature: float) -> Matrices:
    """Of `dcjax.losses.nt_xent`: the same among the 2 n rows of both views."""
    x, z = np.concatenate([x, x_prime]), np.concatenate([z, z_prime])
    unit = unit_rows(z)
    cosines = unit @ unit.T
    logits = cosines / temperature
    np.fill_diagonal(logits, -np.inf)
    positives = np.roll(np.arange(len(x)), len(x_prime))
    slopes = _softmax_slopes(logits, positives)
    slopes /= len(x) * temperature
    return _of_cosines((x, x), (z, z), slopes, cosines, positives)


def _of_cosines(
    x: tuple[Rows, Rows],
    z: tuple[Embeddings, Embeddings],
    slopes: np.ndarray,
    cosines: np.ndarray,
    positives: np.ndarray,
) -> Matrices:
    """Of a loss with the derivatives `slopes` `[a, b]` by the cosines of the rows of z[0] and z[1].

    d c_ij / dS = sym(rho_i rho'_j^T) - c_ij (rho_i rho_i^T + rho'_j rho'_j^T) / 2 with rho = x / |z|. Hence X =
    sum_i kappa_i rho_i rho_i^T + sum_j kappa'_j rho'_j rho'_j^T - sum_ij M_ij (rho_i rho'_j^T + rho'_j rho_i^T), kappa
    and kappa' the row and column sums of M_ij c_ij. For unused directions the last sum has the positives only, and x
    its mean taken off, which the negatives would do.
    """
    rho, rho_prime = _over_norms(x[0], z[0]), _over_norms(x[1], z[1])
    weighted = slopes * cosines
    kappa, kappa_prime = weighted.sum(axis=1)[:, None], weighted.sum(axis=0)[:, None]
    across = rho.T @ (slopes @ rho_prime)
    own = (kappa * rho).T @ rho + (kappa_prime * rho_prime).T @ rho_prime
    sizes = np.abs(slopes)
    parts = sizes.sum(axis=1) @ (rho**2).sum(axis=1) + sizes.sum(axis=0) @ (rho_prime**2).sum(axis=1)

    rho, rho_prime = _over_norms(x[0] - x[0].mean(axis=0), z[0]), _over_norms(x[1] - x[1].mean(axis=0), z[1])
    pulls = slopes[np.arange(len(rho)), positives][:, None]
    pairs = (pulls * rho).T @ rho_prime[positives]
    unused = (kappa * rho).T @ rho + (kappa_prime * rho_prime).T @ rho_prime
    return _symmetric(own - across - across.T), _symmetric(unused - pairs - pairs.T), float(parts)


def _eq2(x: Rows, x_prime: Rows, z: Embeddings, z_prime: Embeddings, temperature: float | None) -> Matrices:
    """S0 - S1 of eq. 7 divided by n; `dcjax.toy.covariance_split` has the formulas."""
    n = len(x)
    scale = 1.0
    if temperature is not None:
        scale = float(np.sqrt(temperature * (z**2).sum(axis=1).mean())) or 1.0
    mean, mean_x = z.mean(axis=0), x.mean(axis=0)  # nothing depends on the origin, but the rounding does
    z, z_prime, x, x_prime = (z - mean) / scale, (z_prime - mean) / scale, x - mean_x, x_prime - mean_x
    half = (z**2).sum(axis=1) / 2
    logits = z @ z.T - half[:, None] - half[None, :]
    np.fill_diagonal(logits, -((z_prime - z) ** 2).sum(axis=1) / 2)
    off = _softmax_slopes(logits, np.arange(n))
    np.fill_diagonal(off, 0)
    rows, columns = off.sum(axis=1), off.sum(axis=0)
    across = x.T @ (off @ x)
    own = (x * (rows + columns)[:, None]).T @ x
    moved = np.sqrt(rows)[:, None] * (x_prime - x)
    noise = moved.T @ moved
    parts = float(2 * np.trace(own) + np.trace(noise))
    return _symmetric(own - across - across.T - noise) / n, _symmetric(own - noise) / n, parts / n


# Each takes x, x', z, z' and the temperature.
LOSSES: dict[str, Callable[..., Matrices]] = {"info_nce": _info_nce, "nt_xent": _nt_xent, "eq2": _eq2}
COSINES = ("info_nce", "nt_xent")


def _softmax_slopes(logits: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """The softmax of each row minus 1 at its positive, which has the digits of the sum of the others."""
    slopes = np.exp(logits - logits.max(axis=1, keepdims=True))
    slopes /= slopes.sum(axis=1, keepdims=True)
    rows = np.arange(len(slopes))
    slopes[rows, positives] = 0
    slopes[rows, positives] = -slopes.sum(axis=1)
    return slopes


def _over_norms(x: Rows, z: Embeddings) -> Rows:
    """rho = x / |z|; 0 for rows with z = 0, which the losses leave without a gradient."""
    norms = np.linalg.norm(z, axis=1, keepdims=True)
    return np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)


def _noise_shares(covariance: Covariance, differences: Rows, directions: Square) -> Float[np.ndarray, " d"]:
    noise = ((differences @ directions) ** 2).mean(axis=0) / 2
    spread = ((covariance.factor @ directions) ** 2).sum(axis=0) / covariance.count
    return np.divide(noise, spread, out=np.zeros_like(noise), where=spread > 0)


def _symmetric(matrix: Square) -> Square:
    return (matrix + matrix.T) / 2


def check_loss(loss: str, temperature: float | None) -> None:
    """Raises `ValueError` for a loss that is not known, or a temperature that it cannot have."""
    if loss not in LOSSES:
        raise ValueError(not_known("loss", loss, LOSSES))
    if temperature is None and loss != "eq2":
        raise ValueError(f"temperature must be given for the loss {loss}")
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, found {temperature:g}")


def paired_rows(x: Any, x_prime: Any) -> tuple[tuple[Rows, Rows], float]:
    """Two views in float64, and the relative rounding of their entries.

    Raises:
      ValueError: they are not two finite arrays of one shape `[n, d]` with n >= 2.
    """
    (first, digits), (second, other) = _matrix("x", x), _matrix("x_prime", x_prime)
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f"x and x_prime must have one shape [n, d] with n >= 2, found {first.shape} and {second.shape}"
        )
    return (first, second), max(digits, other)


def _matrix(name: str, value: Any) -> tuple[np.ndarray, float]:
    """An array in float64, and the relative rounding of its entries."""
    array = as_array(value)
    if array is None or array.ndim != 2 or array.shape[1] < 1 or not is_real(array.dtype):
        found = type(value).__name__ if array is None else f"{array.shape} of {array.dtype}"
        raise ValueError(f"{name} must be real numbers of the shape [n, d], found {found}")
    digits = 2.0**-52 if array.dtype.kind in "biu" else {2: 2.0**-8, 4: 2.0**-23}.get(array.dtype.itemsize, 2.0**-52)
    array = np.asarray(array, np.float64)
    try:
        check_finite(array)
    except ValueError as error:
        raise ValueError(str(error).replace("z must", f"{name} must", 1)) from None
    return array, digits


def _checked_time(time: float) -> float:
    if not 0 <= time < float("inf"):
        raise ValueError(f"time must be finite and not negative, found {time:g}")
    return time
