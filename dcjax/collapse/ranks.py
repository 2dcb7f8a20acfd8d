"""Measures of a spectrum: how many directions an embedding uses, and how evenly.

`eigenvalues` are those of the covariance (centred rows, divisor n), `singular_values` those of the rows as they are;
both descend. A ratio 0 / 0 is 0: the rank of an embedding without spread.
"""

import numpy as np
from jaxtyping import Float

RANKME_EPS = 1e-7
ALPHA_RANKS = (11, 100)  # of the fit of alpha-ReQ, counted from 1: the usual code's zero-based 10..99
SRANK_DELTA = 0.01
FEATURE_EPS = 0.01
CODING_EPS = 0.5
TOLERANCE = 1e-6


def effective_rank(singular_values: Float[np.ndarray, " d"]) -> float:
    """The exponential of the entropy of the normalised singular values, from 1 (one direction) to d (all equal).

    Args:
      singular_values: `[d]`, not negative, in any order. Those of the centred embeddings are, up to a factor, the
        square roots of the values that `spectrum` returns.

    Returns:
      exp(-sum p ln p) with p = s / sum s and 0 ln 0 = 0; 0 where every value is zero.

    References:
      Roy & Vetterli, "The effective rank", EUSIPCO 2007.
    """
    s = np.asarray(singular_values, np.float64)
    if not s.any():
        return 0.0
    p = s[s > 0] / s.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def centered_effective_rank(eigenvalues: np.ndarray) -> float:
    """exp(-sum p ln p), p = s / sum s, s the singular values of the centred rows."""
    return effective_rank(np.sqrt(eigenvalues))


def eigenvalue_rank(eigenvalues: np.ndarray) -> float:
    """exp(-sum p ln p), p = lam / sum lam: of the eigenvalues, not their roots; it weighs the largest more."""
    return effective_rank(eigenvalues)


def matrix_entropy(singular_values: np.ndarray) -> float:
    """exp of the von Neumann entropy of Z Z^T / tr: `eigenvalue_rank` without centring."""
    return effective_rank(singular_values**2)


def rankme(singular_values: np.ndarray) -> float:
    """exp(-sum_{k <= min(n, d)} p_k ln p_k), p_k = s_k / sum s + 1e-7; Z is not centred."""
    if not singular_values.any():
        return 0.0
    p = singular_values / singular_values.sum() + RANKME_EPS
    return float(np.exp(-np.sum(p * np.log(p))))


def rankme_centered(eigenvalues: np.ndarray, count: int) -> float:
    """`rankme` of the centred rows: a large mean, as after a ReLU, lowers it without any collapse."""
    return rankme(np.sqrt(eigenvalues[: min(count, len(eigenvalues))]))


def stable_rank(singular_values: np.ndarray) -> float:
    """|Z|_F^2 / |Z|_2^2; Z is not centred."""
    return _ratio((singular_values**2).sum(), singular_values[0] ** 2)


def nesum(eigenvalues: np.ndarray) -> float:
    """sum lam / lam_1, the stable rank of the centred rows."""
    return _ratio(eigenvalues.sum(), eigenvalues[0])


def participation_ratio(eigenvalues: np.ndarray) -> float:
    """(sum lam)^2 / sum lam^2."""
    return _ratio(eigenvalues.sum() ** 2, (eigenvalues**2).sum())


def participation_ratio_corrected(eigenvalues: np.ndarray, count: int, fourth_moment: float) -> float:
    """`participation_ratio` from unbiased estimates of (tr C)^2 and tr C^2, sums over four different rows.

    Corrects the bias by the number of rows; all columns count as seen. Few rows leave the estimate noisy: it may exceed
    d, and is d where that of tr C^2 is not positive. nan with fewer than 4 rows.

    References:
      Himeno & Yamada, Journal of Multivariate Analysis 2014, eq. (1.4) and (1.5) for the closed forms of these sums;
      Chun et al., arXiv 2509.26560.
    """
    n = count
    if n < 4:
        return float("nan")
    trace, square = eigenvalues.sum() * n / (n - 1), (eigenvalues**2).sum() * (n / (n - 1)) ** 2
    quartic = n * fourth_moment / (n - 1)
    squared_trace = 2 * square + (n**2 - 3 * n + 1) * trace**2 - quartic
    trace_of_square = (n - 1) * (n - 2) * square + trace**2 - quartic
    if not trace:
        return 0.0
    return float(squared_trace / trace_of_square) if trace_of_square > 0 else float(len(eigenvalues))


def iso_score(eigenvalues: np.ndarray) -> float:
    """IsoScore, by its identity (participation ratio - 1) / (d - 1)."""
    return _iso_score(participation_ratio(eigenvalues), len(eigenvalues))


def iso_score_corrected(eigenvalues: np.ndarray, count: int, fourth_moment: float) -> float:
    """`iso_score` from `participation_ratio_corrected`."""
    return _iso_score(participation_ratio_corrected(eigenvalues, count, fourth_moment), len(eigenvalues))


def alpha_req(eigenvalues: np.ndarray, count: int, *, ranks: tuple[int, int] = ALPHA_RANKS) -> float:
    """alpha of lam_j ~ j^-alpha: least squares of ln lam_j on ln j, weights 1/j, over j = 11..min(100, d), from 1.

    Other codes fit 4..100 or 12..100, which changes the number. Eigenvalues below the rounding are left out; with fewer
    than three others in the range alpha is not defined (nan).
    """
    rounding = max(count, len(eigenvalues)) * np.finfo(np.float64).eps * eigenvalues[0]
    j = np.arange(1, len(eigenvalues) + 1)
    chosen = (j >= ranks[0]) & (j <= ranks[1]) & (eigenvalues > rounding)
    if chosen.sum() < 3:
        return float("nan")
    x, y, w = np.log(j[chosen]), np.log(eigenvalues[chosen]), 1.0 / j[chosen]
    x_mean, y_mean = np.average(x, weights=w), np.average(y, weights=w)
    return float(-(w * (x - x_mean) * (y - y_mean)).sum() / (w * (x - x_mean) ** 2).sum())


def srank(singular_values: np.ndarray, *, delta: float = SRANK_DELTA) -> float:
    """The least k whose k largest singular values hold 99 % of their sum; Z is not centred."""
    if not singular_values.any():
        return 0.0
    shares = np.cumsum(singular_values) / singular_values.sum()
    return float(np.argmax(shares >= 1 - delta) + 1)


def feature_rank(singular_values: np.ndarray, count: int) -> float:
    """How many singular values of Z / sqrt(n) exceed 0.01; it depends on the scale of Z."""
    return float((singular_values / np.sqrt(count) > FEATURE_EPS).sum())


def cev_auc(eigenvalues: np.ndarray) -> float:
    """The mean over k of the share of the k largest eigenvalues: 1 collapsed, (d + 1) / (2 d) isotropic."""
    return _ratio(np.cumsum(eigenvalues).mean(), eigenvalues.sum()) or float("nan")  # without spread: not defined


def pseudo_condition_number(singular_values: np.ndarray) -> float:
    """s_min / s_max, the inverse of the condition number: 1 is best."""
    return _ratio(singular_values[-1], singular_values[0])


def anisotropy(eigenvalues: np.ndarray) -> float:
    """lam_1 / sum lam: the share of the largest direction."""
    return _ratio(eigenvalues[0], eigenvalues.sum()) or float("nan")  # without spread: not defined


def coding_rate(singular_values: np.ndarray, count: int, dim: int) -> float:
    """1/2 ln det(I + d / (n eps^2) Z^T Z), eps = 0.5, in nats; it depends on the scale of Z."""
    return float(0.5 * np.log1p(dim / (count * CODING_EPS**2) * singular_values**2).sum())


def collapsed_dimensions(eigenvalues: np.ndarray, *, tolerance: float = TOLERANCE) -> float:
    """How many eigenvalues are at or below a millionth of the largest: a thousandth of its standard deviation."""
    return float((eigenvalues <= tolerance * eigenvalues[0]).sum())


def vicreg_variance(covariance: np.ndarray, count: int) -> float:
    """1/d sum_k max(0, 1 - sqrt(Var_k + 1e-4)), divisor n - 1."""
    if count < 2:
        return float("nan")
    return float(np.maximum(0, 1 - np.sqrt(np.diag(covariance) * count / (count - 1) + 1e-4)).mean())


def vicreg_covariance(covariance: np.ndarray, count: int) -> float:
    """1/d sum_{k != l} C_kl^2, divisor n - 1."""
    if count < 2:
        return float("nan")
    squares = (covariance * (count / (count - 1))) ** 2
    return float((squares.sum() - np.trace(squares)) / len(covariance))


def w2_uniformity(unit_eigenvalues: np.ndarray, unit_mean: np.ndarray, dim: int) -> float:
    """W of the unit rows' Gaussian and N(0, I / d), W^2 = |m|^2 + 1 + tr S - 2 / sqrt d tr S^(1/2); 0 isotropic."""
    square = unit_mean @ unit_mean + 1 + unit_eigenvalues.sum() - 2 / np.sqrt(dim) * np.sqrt(unit_eigenvalues).sum()
    return float(np.sqrt(max(square, 0)))


def unit_std(unit_covariance: np.ndarray, dim: int) -> float:
    """sqrt d times the mean standard deviation of a unit row's entries: 1 isotropic, 0 complete collapse."""
    return float(np.sqrt(dim) * np.sqrt(np.maximum(np.diag(unit_covariance), 0)).mean())


def mean_cosine(unit_covariance: np.ndarray, unit_mean: np.ndarray, count: int) -> float:
    """The mean cosine of two different rows; a row of zeros counts as orthogonal to all."""
    if count < 2:
        return float("nan")
    square = unit_mean @ unit_mean
    return float((count * square - np.trace(unit_covariance) - square) / (count - 1))


def self_cluster(unit_covariance: np.ndarray, unit_mean: np.ndarray, count: int, dim: int) -> float:
    """(|Z Z^T|_F^2 - e) / (n^2 - e) of unit rows, e = n + n (n - 1) / d: 0 uniform, 1 collapsed."""
    if count < 2:
        return float("nan")
    gram = unit_covariance + np.outer(unit_mean, unit_mean)  # Z^T Z / n, of the same norm as Z Z^T / n
    expected = count + count * (count - 1) / dim
    return _ratio(count**2 * (gram**2).sum() - expected, count**2 - expected)


def _iso_score(ratio: float, dim: int) -> float:
    return (ratio - 1) / (dim - 1) if dim > 1 and ratio else float("nan") if dim == 1 else 0.0


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else 0.0
