"""Formulas of code that is not run, restated from the sources that the page names."""

import numpy as np
import scipy.linalg

from dcjax.collapse import unit_rows


def entropy_rank(values: np.ndarray, eps: float) -> float:
    """exp(-sum p ln p), p = values / sum + eps."""
    p = values / values.sum() + eps
    return float(np.exp(-np.sum(p * np.log(p, out=np.zeros_like(p), where=p > 0))))


def google_alpha(s: np.ndarray) -> float:
    """The slope of ln s over an index that falls evenly from 1 to 0."""
    return float(np.polyfit(np.linspace(1, 0, len(s)), np.log(s + 1e-12), 1)[0])


def google_self_cluster(z: np.ndarray) -> float:
    """(|Z Z^T|_F^2 - e) / (n^2 - e) of unit rows, e = n + n (n - 1) / d."""
    n, d = z.shape
    unit, expected = z / np.linalg.norm(z, axis=1, keepdims=True), n + n * (n - 1) / d
    return float((((unit @ unit.T) ** 2).sum() - expected) / (n**2 - expected))


def google_coherence(left: np.ndarray) -> float:
    """n / k max_i |U_i|^2 of left singular vectors `[n, k]`."""
    return float(len(left) / left.shape[1] * (left**2).sum(axis=1).max())


def lightly_std(z: np.ndarray) -> float:
    """The mean over columns of the standard deviation of unit rows, divisor n - 1."""
    return float(unit_rows(z).std(axis=0, ddof=1).mean())


def lidar_values(z: np.ndarray, groups: np.ndarray, *, delta: float = 1e-4) -> np.ndarray:
    """The eigenvalues of S_w^-1/2 S_b S_w^-1/2, with delta I added to S_w, of rows `[n q, d]` in groups `[n q]`.

    S_b and S_w are unbiased: their divisors are n - 1 and n (q - 1) for n groups.
    """
    sizes = np.bincount(groups)
    means = np.stack([z[groups == g].mean(axis=0) for g in range(len(sizes))])
    between, within = means - means.mean(axis=0), z - means[groups]
    between = between.T @ between / (len(sizes) - 1)
    within = within.T @ within / (len(z) - len(sizes)) + delta * np.eye(z.shape[1])
    return np.maximum(scipy.linalg.eigh(between, within, eigvals_only=True), 0)


def jax_lidar(z: np.ndarray, groups: np.ndarray) -> float:
    """LiDAR of stable-pretraining's code in JAX."""
    values = lidar_values(z, groups)
    return entropy_rank(values / values.sum() + 1e-12, 0)
