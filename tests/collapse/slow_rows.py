"""Slow references for measures of an embedding alone; see `slow_metrics`."""

import itertools
import math

import numpy as np

ROUNDING = np.finfo(np.float64).eps


def _ratio(a: float, b: float) -> float:
    """a / b with 0/0 = 0."""
    if b == 0:
        return 0.0 if a == 0 else math.inf
    return float(a / b)


def _centred(z):
    """Rows minus their mean; the first row is subtracted before, so that equal rows give exact zeros."""
    z = np.asarray(z, np.float64)
    shifted = z - z[0]
    mean = np.array([math.fsum(column) / len(z) for column in shifted.T])
    return shifted - mean


def _unit(z):
    """Rows divided by their norms."""
    return np.array([row / np.linalg.norm(row) if np.linalg.norm(row) > 0 else row for row in np.asarray(z, float)])


def _covariance(z):
    """(1/n) sum_i (z_i - mean)(z_i - mean)^T, eq. 1 of arXiv 2110.09348."""
    total = np.zeros((np.shape(z)[1],) * 2)
    for row in _centred(z):
        total += np.outer(row, row)
    return total / len(z)


def _eigenvalues(symmetric):
    """Eigenvalues of a positive semi-definite matrix, descending; rounding errors below zero become zero."""
    return np.maximum(np.linalg.eigh(symmetric)[0][::-1], 0.0)


def _spectrum(z):
    """The d eigenvalues lam of the centred covariance, descending."""
    return _eigenvalues(_covariance(z))


def _singular_values(z):
    """The min(n, d) singular values, descending."""
    return np.linalg.svd(np.asarray(z, np.float64), full_matrices=False)[1]


def _exp_entropy(p):
    """exp(-sum p ln p) with 0 ln 0 = 0."""
    return math.exp(-math.fsum(x * math.log(x) for x in p if x > 0))


def _entropy_rank(values, eps=0.0):
    """exp entropy of values / sum + eps; 0 for a spectrum of zeros."""
    total = math.fsum(values)
    return _exp_entropy([value / total + eps for value in values]) if total > 0 else 0.0


def _distances(z):
    """Euclidean distances of all pairs of rows, [n, n], from differences."""
    z = np.asarray(z, np.float64)
    return np.array([[np.linalg.norm(a - b) for b in z] for a in z])


# Ranks and spectra


def effective_rank(z):
    """exp entropy of s / sum s, s the singular values of the centred z. Roy & Vetterli, EUSIPCO 2007."""
    return _entropy_rank(_singular_values(_centred(z)))


def rankme(z, *, eps=1e-7):
    """exp(-sum_k p ln p) over k <= min(n, d), p = s / sum s + eps, z not centred. Garrido et al., arXiv 2210.02885."""
    return _entropy_rank(_singular_values(z), eps)


def rankme_centered(z, *, eps=1e-7):
    """RankMe of the centred z."""
    return _entropy_rank(_singular_values(_centred(z)), eps)


def eigenvalue_rank(z):
    """exp entropy of lam / sum lam: the effective rank on eigenvalues in place of singular values."""
    return _entropy_rank(_spectrum(z))


def matrix_entropy(z):
    """exp of the von Neumann entropy of Z Z^T / tr(Z Z^T), [n, n], z not centred. arXiv 2502.02013, alpha = 1."""
    z = np.asarray(z, np.float64)
    return _entropy_rank(_eigenvalues(np.array([[a @ b for b in z] for a in z])))


def stable_rank(z):
    """|Z|_F^2 / |Z|_2^2, z not centred. Rudelson & Vershynin 2007."""
    z = np.asarray(z, np.float64)
    return _ratio(sum(x**2 for x in z.ravel()), np.linalg.norm(z, 2) ** 2)


def nesum(z):
    """sum lam / lam_1. He & Ozay, ICML 2022, Def. 4.1."""
    lam = _spectrum(z)
    return _ratio(lam.sum(), lam[0])


def participation_ratio(z):
    """(tr C)^2 / tr C^2, biased by n. Gao et al. 2017."""
    covariance = _covariance(z)
    return _ratio(np.trace(covariance) ** 2, np.trace(covariance @ covariance))


def participation_ratio_corrected(z):
    """Ratio of the unbiased estimates of (tr C)^2 and tr C^2; sums over 4 distinct rows, so n is tiny and >= 4.

    The row-corrected estimator of arXiv 2509.26560: E |a - b|^2 |c - e|^2 / 4 and E ((a - b).(c - e))^2 / 4.
    """
    z = np.asarray(z, np.float64)
    numerator = denominator = 0.0
    for i, j, k, m in itertools.permutations(range(len(z)), 4):
        first, second = z[i] - z[j], z[k] - z[m]
        numerator += (first @ first) * (second @ second) / 4
        denominator += (first @ second) ** 2 / 4
    return _ratio(numerator, denominator)


def iso_score(z):
    """The long formula of Rudman et al., Findings ACL 2022; 0 for a spectrum of zeros (not in the paper)."""
    lam = _spectrum(z)
    d, norm = len(lam), np.linalg.norm(lam)
    if norm == 0:
        return 0.0
    defect = np.linalg.norm(math.sqrt(d) * lam / norm - np.ones(d)) / math.sqrt(2 * (d - math.sqrt(d)))
    return float(((d - defect**2 * (d - math.sqrt(d))) ** 2 - d) / (d * (d - 1)))


def iso_score_corrected(z):
    """(PR - 1) / (d - 1) with the corrected participation ratio."""
    return (participation_ratio_corrected(z) - 1) / (np.shape(z)[1] - 1)


def alpha_req(z, *, first=11, last=100):
    """-slope of ln lam_j on ln j, weights 1/j, for 1-based ranks first..last; NaN with fewer than two non-zero lam.

    Agrawal et al., NeurIPS 2022; the fit is that of Stringer et al. 2019.
    """
    lam = _spectrum(z)
    positive = int(np.sum(lam > max(np.shape(z)) * ROUNDING * lam[0]))
    ranks = np.arange(first, min(last, positive) + 1)
    if len(ranks) < 2:
        return math.nan
    design = np.stack([np.log(ranks), np.ones(len(ranks))], axis=1)
    weights = np.diag(1 / ranks)
    slope, _ = np.linalg.solve(design.T @ weights @ design, design.T @ weights @ np.log(lam[ranks - 1]))
    return float(-slope)


def srank(z, *, delta=0.01):
    """min k with sum_{i<=k} s_i / sum s >= 1 - delta, z not centred. Kumar et al. 2021, arXiv 2010.14498."""
    s = _singular_values(z)
    if s[0] == 0:
        return 0
    return next(k for k in range(1, len(s) + 1) if math.fsum(s[:k]) / math.fsum(s) >= 1 - delta)


def feature_rank(z, *, eps=0.01):
    """Number of singular values of Z / sqrt(n) above eps, z not centred. Lyle et al. 2022, arXiv 2204.09560."""
    return int(sum(s > eps for s in _singular_values(np.asarray(z, np.float64) / math.sqrt(len(z)))))


def cev_auc(z):
    """Mean over k = 1..d of sum_{i<=k} lam_i / sum lam. After Li, Efros & Pathak, ECCV 2022, whose code sums s."""
    lam = _spectrum(z)
    return sum(_ratio(math.fsum(lam[:k]), math.fsum(lam)) for k in range(1, len(lam) + 1)) / len(lam)


def pseudo_condition_number(z):
    """s_min / s_max over min(n, d) singular values, z not centred. Tsitsulin et al. 2023, their NumPy code."""
    s = _singular_values(z)
    return _ratio(s[-1], s[0])


def coherence(z):
    """(n/rank) max_i |U_i|^2, U the left singular vectors with a non-zero singular value. Candes & Recht 2009."""
    n, d = np.shape(z)
    u, s, _ = np.linalg.svd(np.asarray(z, np.float64), full_matrices=False)
    u = u[:, (s > max(n, d) * ROUNDING * s[0])]
    return n / u.shape[1] * max(float(row @ row) for row in u)


def collapsed_dimensions(z, *, tol=1e-6):
    """Number of k with lam_k <= tol lam_1."""
    lam = _spectrum(z)
    return int(sum(value <= tol * lam[0] for value in lam))


# Spread on the sphere and variance


def self_cluster(z):
    """(|Z Z^T|_F^2 - e) / (n^2 - e) of unit rows, e = n + n(n-1)/d. Tsitsulin et al. 2023, arXiv 2305.16562."""
    z = _unit(z)
    n, d = z.shape
    expected = n + n * (n - 1) / d
    return _ratio(sum((a @ b) ** 2 for a in z for b in z) - expected, n**2 - expected)


def anisotropy(z):
    """lam_1 / sum lam. Razzhigaev et al. 2024."""
    lam = _spectrum(z)
    return _ratio(lam[0], lam.sum())


def mean_cosine(z):
    """Mean cosine of two different rows. Ethayarajh 2019."""
    return float(np.mean([a @ b for a, b in itertools.combinations(_unit(z), 2)]))


def uniformity(z, *, t=2.0):
    """ln mean_{i<j} exp(-t |z_i - z_j|^2) of unit rows. Wang & Isola, ICML 2020."""
    return math.log(np.mean([math.exp(-t * (a - b) @ (a - b)) for a, b in itertools.combinations(_unit(z), 2)]))


def w2_uniformity(z):
    """W, W^2 = |m|^2 + 1 + tr S - (2/sqrt d) tr S^(1/2), m and S (divisor n) of the unit rows. arXiv 2403.00642."""
    z = _unit(z)
    n, d = z.shape
    m = z.mean(axis=0)
    # The eigenvalues of S^(1/2) are s / sqrt n; the root of an eigenvalue of S would turn errors of 1e-16 into 1e-8.
    root_trace = _singular_values(_centred(z)).sum() / math.sqrt(n)
    return math.sqrt(max(0.0, m @ m + 1 + np.trace(_covariance(z)) - 2 / math.sqrt(d) * root_trace))


def unit_std(z):
    """sqrt(d) mean_k std_k(z/|z|), divisor n. Chen & He 2021; `lightly` divides by n - 1 and omits sqrt(d)."""
    variances = np.diag(_covariance(_unit(z)))
    return math.sqrt(len(variances)) * float(np.mean(np.sqrt(variances)))


def vicreg_variance(z):
    """(1/d) sum_k max(0, 1 - sqrt(Var_k + 1e-4)), Var with divisor n - 1. Bardes et al. 2022."""
    variances = [math.fsum(column**2) / (len(z) - 1) for column in _centred(z).T]
    return sum(max(0.0, 1 - math.sqrt(variance + 1e-4)) for variance in variances) / len(variances)


def vicreg_covariance(z):
    """(1/d) sum_{k != l} C_kl^2, divisor n - 1. Bardes et al. 2022."""
    n, d = np.shape(z)
    covariance = _covariance(z) * n / (n - 1)
    return sum(covariance[k, m] ** 2 for k, m in itertools.permutations(range(d), 2)) / d


def coding_rate(z, *, eps=0.5):
    """1/2 ln det(I + d / (n eps^2) Z^T Z), z neither centred nor normalised here. Yu et al., MCR2, 2020."""
    z = np.asarray(z, np.float64)
    n, d = z.shape
    return float(np.linalg.slogdet(np.eye(d) + d / (n * eps**2) * sum(np.outer(row, row) for row in z))[1] / 2)


def epps_pulley(z, directions):
    """n mean over unit directions of int_-3^3 |phi(t) - e^(-t^2/2)|^2 e^(-t^2/2) dt, phi of a . z_i sqrt(d)/|z_i|.

    17 knots on [0, 3] by the trapezoid rule, doubled: the LeJEPA code (arXiv 2511.08544 lists 17 on [-5, 5]).
    """
    z = _unit(z) * math.sqrt(np.shape(z)[1])
    knots = [3 * k / 16 for k in range(17)]
    statistics = []
    for direction in np.asarray(directions, np.float64):
        projections = np.array([row @ direction for row in z])
        gaps = []
        for t in knots:
            empirical = np.mean(np.exp(1j * t * projections))
            gaps.append(abs(empirical - math.exp(-(t**2) / 2)) ** 2 * math.exp(-(t**2) / 2))
        half = sum((left + right) / 2 * 3 / 16 for left, right in itertools.pairwise(gaps))
        statistics.append(len(z) * 2 * half)
    return float(np.mean(statistics))


def norm_spread(z):
    """std / mean of |z_i|, divisor n: the coefficient of variation of arXiv 2602.24012."""
    norms = [np.linalg.norm(row) for row in np.asarray(z, np.float64)]
    return _ratio(np.std(norms), np.mean(norms))


def normality(z, directions):
    """Mean over directions of the Anderson-Darling A^2 of the projections, mean and std (divisor n - 1) estimated.

    The statistic of arXiv 2602.24012 (there per coordinate; below 0.752 is normal at 5 %). NaN if one is constant.
    """
    statistics = []
    for direction in np.asarray(directions, np.float64):
        projections = np.sort([row @ direction for row in _centred(z)])
        n, std = len(projections), np.std(projections, ddof=1)
        if std == 0:
            return math.nan
        x = (projections - projections.mean()) / std
        lower = [math.log(math.erfc(-value / math.sqrt(2)) / 2) for value in x]
        upper = [math.log(math.erfc(value / math.sqrt(2)) / 2) for value in x]
        statistics.append(-n - sum((2 * i + 1) * (lower[i] + upper[n - 1 - i]) for i in range(n)) / n)
    return float(np.mean(statistics))


# Neighbours


def _neighbour_ratios(z):
    """r_2 / r_1 of each distinct row, ascending."""
    ratios = []
    distances = _distances(np.unique(z, axis=0))
    for i, row in enumerate(distances if len(distances) > 2 else ()):
        first, second = sorted(np.delete(row, i))[:2]
        ratios.append(second / first)
    return sorted(ratios)


def two_nn(z):
    """Slope through 0 of -ln(1 - i/N) on ln mu_i over the lowest 90 % of the N ratios. Facco et al. 2017."""
    ratios = _neighbour_ratios(z)
    n = len(ratios)
    points = [(math.log(ratios[i - 1]), -math.log(1 - i / n)) for i in range(1, 9 * n // 10 + 1)]
    return _ratio(math.fsum(x * y for x, y in points), math.fsum(x * x for x, _ in points))


def two_nn_mle(z):
    """N / sum ln mu_i over all ratios. Facco et al. 2017."""
    ratios = _neighbour_ratios(z)
    return _ratio(len(ratios), math.fsum(math.log(mu) for mu in ratios))


def hubness(z, *, k=10):
    """Skewness E(N_k - mean)^3 / std^3 of how often a row is among the k nearest others. Radovanovic et al. 2010."""
    occurrences = np.zeros(len(z))
    for i, row in enumerate(_distances(z)):
        others = sorted((j for j in range(len(z)) if j != i), key=lambda j, row=row: row[j])
        for j in others[:k]:
            occurrences[j] += 1
    return _ratio(np.mean((occurrences - occurrences.mean()) ** 3), np.std(occurrences) ** 3)
