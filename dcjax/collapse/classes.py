"""Measures of labelled embeddings: collapse within the classes, and the geometry of the class means.

`class_means` `[c, d]`, `class_sizes` `[c]` and `class_variances` `[c]`, E |z - mean of the class|^2, are those of all
rows, and so is `covariance` `[d, d]`. A value that is not defined is nan.
"""

import numpy as np

from dcjax.collapse.ranks import effective_rank

ROUNDING = 1e-13


def within_class_rank(rows: np.ndarray, classes: np.ndarray) -> float:
    """The effective rank within a class, the mean over the rows of a sample."""
    total = 0.0
    for c in np.unique(classes):
        own = rows[classes == c]
        total += len(own) * effective_rank(centered_singular_values(own))
    return total / len(rows)


def centered_singular_values(rows: np.ndarray) -> np.ndarray:
    """The singular values `[min(n, d)]` of the rows minus their mean, without those that rounding alone leaves."""
    values = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    values[values <= len(rows) ** 0.5 * np.finfo(np.float64).eps * np.abs(rows).max(initial=0)] = 0
    return values


def nc1(covariance: np.ndarray, class_means: np.ndarray, class_sizes: np.ndarray) -> float:
    """tr(Sw Sb^+) / c: the variability within the classes relative to that of their means; 0 in neural collapse.

    Sw is the difference of two scatters; what their rounding leaves, below 1e-13, reads 0.
    """
    if len(class_means) < 2:
        return float("nan")
    shares = class_sizes / class_sizes.sum()
    about = class_means - shares @ class_means
    within = covariance - (about * shares[:, None]).T @ about
    means = class_means - class_means.mean(axis=0)  # Sb weighs the classes alike
    _, values, right = np.linalg.svd(means / np.sqrt(len(means)), full_matrices=False)
    rank = min(len(means) - 1, int((values > max(means.shape) * np.finfo(np.float64).eps * values[0]).sum()))
    if not rank:
        return float("nan")
    right = right[:rank]
    found = float((np.einsum("ij,jk,ik->i", right, within, right) / values[:rank] ** 2).sum() / len(means))
    return found if found > ROUNDING else 0.0


def nc2_norms(class_means: np.ndarray) -> float:
    """Standard deviation over mean of the norms of the centred class means; 0 in neural collapse."""
    norms = np.linalg.norm(class_means - class_means.mean(axis=0), axis=1)
    return float(norms.std() / norms.mean()) if norms.any() else float("nan")


def nc2_angles(class_means: np.ndarray) -> float:
    """The mean over pairs of classes of |cos + 1 / (c - 1)| of the centred means; 0 in neural collapse."""
    count = len(class_means)
    means = class_means - class_means.mean(axis=0)
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    if count < 2 or not norms.all():
        return float("nan")
    units, total = means / norms, 0.0
    for i in range(count - 1):
        total += float(np.abs(units[i + 1 :] @ units[i] + 1 / (count - 1)).sum())
    return total / (count * (count - 1) / 2)


def cdnv(class_means: np.ndarray, class_variances: np.ndarray) -> float:
    """The mean over pairs of classes of (V_a + V_b) / (2 |mean_a - mean_b|^2); 0 in neural collapse."""
    count, total = len(class_means), 0.0
    for i in range(count - 1):
        gaps = ((class_means[i + 1 :] - class_means[i]) ** 2).sum(axis=1)
        if not gaps.all():
            return float("nan")
        total += float(((class_variances[i + 1 :] + class_variances[i]) / 2 / gaps).sum())
    return total / (count * (count - 1) / 2) if count > 1 else float("nan")
