"""Measures of two views: row i of `rows` and of `rows_prime` come from the same image. Both are samples.

`units` are the rows divided by their norms. A value that is not defined is nan.
"""

import numpy as np
import scipy.linalg

from dcjax.collapse.arrays import unit_rows
from dcjax.collapse.ranks import rankme

LIDAR_DELTA = 1e-4


def alignment(units: np.ndarray, units_prime: np.ndarray) -> float:
    """The mean |z - z'|^2 of unit rows; lower is better, and 0 in complete collapse as well."""
    return float(((units - units_prime) ** 2).sum(axis=1).mean())


def barlow_off_diagonal(rows: np.ndarray, rows_prime: np.ndarray) -> float:
    """The sum of the squared cross-correlations of different dimensions."""
    squares = _cross_correlation(rows, rows_prime) ** 2
    return float(squares.sum() - np.trace(squares))


def barlow_diagonal(rows: np.ndarray, rows_prime: np.ndarray) -> float:
    """The sum over dimensions of (1 - cross-correlation)^2; a constant dimension counts 1."""
    return float(((1 - np.diag(_cross_correlation(rows, rows_prime))) ** 2).sum())


def whitening_mse(rows: np.ndarray, rows_prime: np.ndarray) -> float:
    """W-MSE: the mean squared distance of the views, each whitened by Cholesky and divided by its norms."""
    whitened = []
    for z in (rows, rows_prime):
        if len(z) <= z.shape[1]:
            return float("nan")
        centred = z - z.mean(axis=0)
        # R of a QR decomposition is the transposed Cholesky factor up to signs, and keeps the small directions.
        factor = np.linalg.qr(centred, mode="r")
        diagonal = np.abs(np.diag(factor))
        if diagonal.min() <= len(z) * np.finfo(np.float64).eps * diagonal.max():
            return float("nan")
        factor *= np.sign(np.diag(factor))[:, None]
        values = scipy.linalg.solve_triangular(factor, centred.T, trans=1).T
        whitened.append(unit_rows(values))
    return alignment(*whitened)


def lidar(rows: np.ndarray, rows_prime: np.ndarray) -> float:
    """`rankme` of the eigenvalues of Sw^-1/2 Sb Sw^-1/2: an image is a class with two views, delta is 1e-4.

    Sb and Sw are unbiased estimates (divisors n - 1 and n (q - 1)), as in the paper; codes with the divisors n and n q
    have twice the delta for two views. The paper takes about 50 views of each image; with two, Sw is estimated from as
    many differences as there are images, and these have to be more than the dimensions.
    """
    n, d = rows.shape
    if n <= d:
        return float("nan")
    means, half = (rows + rows_prime) / 2, (rows - rows_prime) / 2
    centred = means - means.mean(axis=0)
    between, within = centred.T @ centred / (n - 1), 2 * half.T @ half / n + LIDAR_DELTA * np.eye(d)
    return rankme(np.maximum(scipy.linalg.eigh(between, within, eigvals_only=True)[::-1], 0))


def cka(rows: np.ndarray, rows_prime: np.ndarray) -> float:
    """Linear CKA: |X^T Y|_F^2 / (|X^T X|_F |Y^T Y|_F) of the centred rows."""
    x, y = (z - z.mean(axis=0) for z in (rows, rows_prime))
    return _cosine(*(((a.T @ b) ** 2).sum() for a, b in ((x, y), (x, x), (y, y))))


def cka_debiased(rows: np.ndarray, rows_prime: np.ndarray) -> float:
    """Linear CKA by the unbiased HSIC (Song et al. 2012), for few rows; it may be negative."""
    if len(rows) < 4:
        return float("nan")
    pairs = ((rows, rows_prime), (rows, rows), (rows_prime, rows_prime))
    return _cosine(*(_unbiased_hsic(a, b) for a, b in pairs))


def _unbiased_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC_1 of the linear kernels, times n (n - 3), without a matrix `[n, n]`. It does not see the means."""
    n = len(x)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    diagonal_x, diagonal_y = (np.einsum("ij,ij->i", a, a) for a in (x, y))
    # K and L without their diagonals; the rows of the centred K sum to 0, so those of K sum to minus its diagonal.
    trace = ((x.T @ y) ** 2).sum() - diagonal_x @ diagonal_y
    sums = diagonal_x.sum() * diagonal_y.sum()
    return trace + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * (diagonal_x @ diagonal_y)


def _cross_correlation(rows: np.ndarray, rows_prime: np.ndarray) -> np.ndarray:
    """`[d, d]`; 0 for a constant dimension."""
    parts = []
    for z in (rows, rows_prime):
        centred = z - z.mean(axis=0)
        norms = np.linalg.norm(centred, axis=0)
        parts.append(np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 0))
    return parts[0].T @ parts[1]


def _cosine(product: float, square: float, other_square: float) -> float:
    return float(product / np.sqrt(square * other_square)) if square > 0 and other_square > 0 else float("nan")
