"""Measures of single rows and of pairs of rows, on a sample of the embedding.

`rows` are the sample, `units` the same rows divided by their norms. A value that is not defined is nan.
"""

import numpy as np
from scipy import special

from dcjax.collapse.classes import within_class_rank

UNIFORMITY_T = 2.0
KNOTS = np.linspace(0, 3, 17)  # of the Epps-Pulley integral, by symmetry doubled; as in the code of LeJEPA
CHUNK = 1 << 25  # entries of a block of similarities or of projections


def uniformity(units: np.ndarray) -> float:
    """ln mean_{i < j} exp(-2 |z_i - z_j|^2) of unit rows; lower is better, about -4 at least for many rows.

    Nearly blind for large d: the rows of any half of 2,048 dimensions score as well as those of all.
    """
    n = len(units)
    if n < 2:
        return float("nan")
    total, step = 0.0, max(CHUNK // n, 1)
    for start in range(0, n, step):
        part = units[start : start + step]
        squares = np.maximum(_squared_norms(part)[:, None] + _squared_norms(units) - 2 * part @ units.T, 0)
        kernel = np.exp(-UNIFORMITY_T * squares)
        kernel[np.arange(len(part)), start + np.arange(len(part))] = 0
        total += kernel.sum()
    return float(np.log(total / (n * (n - 1))))


def coherence(rows: np.ndarray) -> float:
    """n / rank max_i |U_i|^2, U the left singular vectors: 1 no row stands out, n / rank a row has its own direction.

    At full rank it is the n / d max_i |U_i|^2 of Tsitsulin et al., which falls below 1 where directions have collapsed.
    """
    n, d = rows.shape
    left, values, _ = np.linalg.svd(rows, full_matrices=False)
    left = left[:, values > max(n, d) * np.finfo(np.float64).eps * values[0]]
    return float(n / left.shape[1] * _squared_norms(left).max()) if left.size else 0.0


def norm_spread(rows: np.ndarray) -> float:
    """Standard deviation over mean of the rows' norms; it falls as InfoNCE makes the rows normal."""
    norms = np.linalg.norm(rows, axis=1)
    return float(norms.std() / norms.mean()) if norms.any() else 0.0


def normality(rows: np.ndarray, directions: np.ndarray) -> float:
    """The mean Anderson-Darling statistic of random projections, mean and scale fitted; normal below about 0.75."""
    n = len(rows)
    if n < 3:
        return float("nan")
    statistics = []
    for part in _projections(rows - rows.mean(axis=0), directions):
        x = np.sort(part, axis=0)
        scale = x.std(axis=0, ddof=1)
        if not scale.all():
            return float("nan")
        x = (x - x.mean(axis=0)) / scale
        weights = 2 * np.arange(1, n + 1) - 1
        statistics.append(-n - weights @ (special.log_ndtr(x) + special.log_ndtr(-x[::-1])) / n)
    return float(np.concatenate(statistics).mean())


def epps_pulley(units: np.ndarray, directions: np.ndarray) -> float:
    """n mean over directions of int_{-3}^3 |phi(t) - e^(-t^2/2)|^2 e^(-t^2/2) dt, phi of the unit rows times sqrt d.

    SIGReg's statistic: 0.3 or so for normal rows of any number, and proportional to n for others.
    """
    n, d = units.shape
    scaled, normal = units * np.sqrt(d), np.exp(-(KNOTS**2) / 2)
    means = []
    for part in _projections(scaled, directions):
        real, imaginary = (np.array([f(t * part).mean(axis=0) for t in KNOTS]) for f in (np.cos, np.sin))
        gaps = (real - normal[:, None]) ** 2 + imaginary**2
        means.append(2 * n * np.trapezoid(gaps * normal[:, None], KNOTS, axis=0))
    return float(np.concatenate(means).mean())


def two_nn(distinct_neighbours: np.ndarray) -> float:
    """The intrinsic dimension by the ratios of the two nearest distances: a line through 0, the largest 10 % left out.

    Of distinct rows: a duplicate has the distance 0, and other rows find both copies at one distance.
    """
    ratios = _ratios(distinct_neighbours)
    n = len(ratios)
    kept = 9 * n // 10
    x, y = np.log(ratios[:kept]), -np.log1p(-np.arange(1, kept + 1) / n) if n else np.zeros(0)
    return float(x @ y / (x @ x)) if x.any() else float("nan")


def two_nn_mle(distinct_neighbours: np.ndarray) -> float:
    """As `two_nn`, by maximum likelihood: N / sum ln(r_2 / r_1)."""
    ratios = _ratios(distinct_neighbours)
    logs = np.log(ratios).sum()
    return float(len(ratios) / logs) if logs else float("nan")


def hubness(neighbours: tuple[np.ndarray, np.ndarray]) -> float:
    """The skewness of how often a row is among the 10 nearest of the others: 0 none, above 1 some rows are hubs."""
    _, index = neighbours
    if not index.size:
        return float("nan")
    counts = np.bincount(index.ravel(), minlength=len(index))
    deviations = counts - counts.mean()
    return float((deviations**3).mean() / counts.std() ** 3) if deviations.any() else 0.0


def cluster_learnability(neighbours: tuple[np.ndarray, np.ndarray], clusters: np.ndarray) -> float:
    """How often the 10 nearest other rows agree with a row's own k-means cluster, k = 10.

    In the spirit of CLID's learnability: Lu et al. let a nearest-neighbour classifier learn the clusters row by row,
    with settings that differ between data sets, so the values are not theirs.
    """
    _, index = neighbours
    if not index.size:
        return float("nan")
    if not clusters.any():
        return float("nan")  # a single cell
    votes = np.stack([(clusters[index] == c).sum(axis=1) for c in range(clusters.max() + 1)], axis=1)
    return float((votes.argmax(axis=1) == clusters).mean())


def local_rank(rows: np.ndarray, clusters: np.ndarray) -> float:
    """The effective rank within k-means cells, k = 10, the mean over rows; see `local_spectra` for what to expect."""
    return within_class_rank(rows, clusters)


def _ratios(distances: np.ndarray) -> np.ndarray:
    """r_2 / r_1 of the rows, ascending, without those so near to another that rounding decides."""
    if distances.shape[1] < 2:
        return np.zeros(0)
    # Distances come from squares, whose rounding makes the distance of two equal rows as large as 1e-8 of a norm.
    apart = distances[:, 0] > 1e-7 * distances.max()
    return np.sort(distances[apart, 1] / distances[apart, 0])


def _projections(rows: np.ndarray, directions: np.ndarray):
    """The rows on a few directions at a time, `[n, c]`."""
    step = max(CHUNK // (8 * len(rows)), 1)
    for start in range(0, len(directions), step):
        yield rows @ directions[start : start + step].T


def _squared_norms(rows: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", rows, rows)
