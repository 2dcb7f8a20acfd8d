"""Slow references for measures of two views and of labelled embeddings; see `slow_metrics`."""

import itertools
import math

import numpy as np
from slow_rows import ROUNDING, _centred, _covariance, _eigenvalues, _entropy_rank, _ratio, _unit, effective_rank

# Pairs


def alignment(z, z_prime, *, alpha=2):
    """Mean |z - z'|^alpha of unit rows. Wang & Isola, ICML 2020."""
    return float(np.mean([np.linalg.norm(a - b) ** alpha for a, b in zip(_unit(z), _unit(z_prime), strict=True)]))


def _cross_correlation(z, z_prime):
    """[d, d] correlations of the batch-standardised views, divisor n; 0 for a constant coordinate."""
    a, b = _centred(z), _centred(z_prime)
    d = a.shape[1]
    norms = [[np.linalg.norm(a[:, k]) * np.linalg.norm(b[:, m]) for m in range(d)] for k in range(d)]
    return np.array([[_ratio(a[:, k] @ b[:, m], norms[k][m]) for m in range(d)] for k in range(d)])


def barlow_off_diagonal(z, z_prime):
    """sum_{k != l} C_kl^2 of the cross-correlation, without lambda. Zbontar et al. 2021."""
    c = _cross_correlation(z, z_prime)
    return float(sum(c[k, m] ** 2 for k, m in itertools.permutations(range(len(c)), 2)))


def barlow_diagonal(z, z_prime):
    """sum_k (1 - C_kk)^2 of the cross-correlation. Zbontar et al. 2021."""
    return float(sum((1 - value) ** 2 for value in np.diag(_cross_correlation(z, z_prime))))


def lidar(z, z_prime, *, delta=1e-4, eps=1e-7):
    """exp(-sum_d p ln p), p = l / sum l + eps, l the d eigenvalues of Sw^-1/2 Sb Sw^-1/2; a row pair is a class, q = 2.

    Thilak et al., ICLR 2024, arXiv 2312.04000, eqs. 1-3, by unbiased estimates: Sb divides by n - 1, Sw by n (q - 1),
    before delta I is added.
    """
    views = np.stack([np.asarray(z, np.float64), np.asarray(z_prime, np.float64)], axis=1)  # [n, q, d]
    n, q, d = views.shape
    means = views.mean(axis=1)
    between = _covariance(means) * n / (n - 1)
    within = delta * np.eye(d)
    for i in range(n):
        for j in range(q):
            within += np.outer(views[i, j] - means[i], views[i, j] - means[i]) / (n * (q - 1))
    values, vectors = np.linalg.eigh(within)
    inverse_root = vectors @ np.diag(values**-0.5) @ vectors.T
    return _entropy_rank(_eigenvalues(inverse_root @ between @ inverse_root), eps)


def cka(z, z_prime):
    """tr(K L) / sqrt(tr(K K) tr(L L)), K = Z Z^T and L = Z' Z'^T of the centred rows. Kornblith et al. 2019, linear."""
    a, b = _centred(z), _centred(z_prime)
    k, m = a @ a.T, b @ b.T
    return _ratio(np.trace(k @ m), math.sqrt(np.trace(k @ k) * np.trace(m @ m)))


def _unbiased_hsic(k, m):
    """HSIC_1 of Song et al. 2012 (eq. 3 of Nguyen et al. 2021), K and L not centred, diagonals set to 0, n >= 4."""
    n = len(k)
    k, m, ones = k - np.diag(np.diag(k)), m - np.diag(np.diag(m)), np.ones(n)
    middle = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + middle - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))


def cka_debiased(z, z_prime):
    """Linear CKA with the unbiased HSIC; can be below 0. Nguyen, Raghu & Kornblith, ICLR 2021."""
    a, b = np.asarray(z, np.float64), np.asarray(z_prime, np.float64)
    k, m = a @ a.T, b @ b.T
    return _ratio(_unbiased_hsic(k, m), math.sqrt(max(0.0, _unbiased_hsic(k, k)) * max(0.0, _unbiased_hsic(m, m))))


def whitening_mse(z, z_prime):
    """Mean |v/|v| - v'/|v'||^2, v = L^-1 (z - mean), L L^T the covariance (divisor n - 1) of that view alone.

    W-MSE of Ermolov et al., ICML 2021, and the authors' code. Raises LinAlgError for a singular covariance.
    """
    views = []
    for view in (z, z_prime):
        n = len(view)
        factor = np.linalg.cholesky(_covariance(view) * n / (n - 1))
        views.append(_unit([np.linalg.solve(factor, row) for row in _centred(view)]))
    return float(np.mean([(a - b) @ (a - b) for a, b in zip(*views, strict=True)]))


# Labels


def _classes(z, labels):
    """The rows of each class, in the order of the labels."""
    labels = np.asarray(labels)
    return [np.asarray(z, np.float64)[labels == label] for label in np.unique(labels)]


def _centred_means(z, labels):
    """Class means minus the mean of the class means (the global mean if the classes are balanced)."""
    return _centred([rows.mean(axis=0) for rows in _classes(z, labels)])


def within_class_rank(z, labels):
    """Mean over classes, weighted by their sizes, of the effective rank of the class."""
    return sum(len(rows) * effective_rank(rows) for rows in _classes(z, labels)) / len(z)


def nc1(z, labels):
    """tr(Sw Sb^+) / C, Sw over all rows (divisor n), Sb over classes (divisor C). Papyan et al. 2020."""
    means, classes = _centred_means(z, labels), _classes(z, labels)
    within = sum(np.outer(row, row) for rows in classes for row in _centred(rows)) / len(z)
    values, vectors = np.linalg.eigh(sum(np.outer(mean, mean) for mean in means) / len(classes))
    threshold = max(means.shape) * ROUNDING * values[-1]
    kept = [i for i in range(len(values)) if values[i] > threshold][-(len(classes) - 1) :]  # the rank is below C
    return float(sum(vectors[:, i] @ within @ vectors[:, i] / values[i] for i in kept) / len(classes))


def nc2_norms(z, labels):
    """std / mean (divisor C) of the norms of the centred class means. Papyan et al. 2020; their code has C - 1."""
    norms = [np.linalg.norm(mean) for mean in _centred_means(z, labels)]
    return _ratio(np.std(norms), np.mean(norms))


def nc2_angles(z, labels):
    """Mean over pairs of classes of |cos + 1/(C-1)| of the centred means. Papyan et al. 2020."""
    means = _unit(_centred_means(z, labels))
    return float(np.mean([abs(a @ b + 1 / (len(means) - 1)) for a, b in itertools.combinations(means, 2)]))


def cdnv(z, labels):
    """Mean over pairs of classes of (Var_a + Var_b) / (2 |mu_a - mu_b|^2), Var = E|z - mu|^2. Galanti et al. 2022."""
    values = []
    for a, b in itertools.combinations(_classes(z, labels), 2):
        gap = a.mean(axis=0) - b.mean(axis=0)
        values.append(_ratio((np.trace(_covariance(a)) + np.trace(_covariance(b))) / 2, gap @ gap))
    return float(np.mean(values))
