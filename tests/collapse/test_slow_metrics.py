"""The slow references against PAPER.md's unit values, closed forms and definitions written in another way."""

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import slow_rows
from slow_metrics import REFERENCES

N, D = 24, 8


def orthonormal(n, d, seed=0):
    """[n, d] orthonormal columns, each with mean zero."""
    z = np.random.default_rng(seed).normal(size=(n, d))
    return np.linalg.qr(z - z.mean(0))[0]


def with_spectrum(lam, n=N):
    """Rows with mean zero whose covariance has the eigenvalues `lam`, in random directions."""
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(len(lam),) * 2))[0]
    return math.sqrt(n) * (orthonormal(n, len(lam)) * np.sqrt(lam)) @ rotation


def cross(k, d=D):
    """The 2 k rows +-e_j, j < k: k equal directions of d."""
    return np.concatenate([np.eye(d)[:k], -np.eye(d)[:k]])


def directions(m, d):
    a = np.random.default_rng(2).normal(size=(m, d))
    return a / np.linalg.norm(a, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("name", "arguments", "value"),
    [
        ("rankme", {"eps": 0}, 6.14274720751),
        ("rankme_centered", {"eps": 0}, 6.14274720751),
        ("effective_rank", {}, 6.14274720751),
        ("eigenvalue_rank", {}, 3.89866687547739),
        ("matrix_entropy", {}, 3.89866687547739),
        ("participation_ratio", {}, 2.97665369650),
        ("nesum", {}, 1.9921875),
        ("stable_rank", {}, 1.9921875),
        ("iso_score", {}, 0.282379099500),
        ("alpha_req", {"first": 1, "last": 8}, 1.95162856055),
        ("cev_auc", {}, 0.878921568627),
        ("srank", {}, 8),
        ("anisotropy", {}, 1 / 1.9921875),
        ("pseudo_condition_number", {}, 2**-3.5),
        ("collapsed_dimensions", {"tol": 0.02}, 2),  # 2^-6 and 2^-7
        ("coding_rate", {}, sum(math.log1p(32 * 2.0**-i) for i in range(8)) / 2),
        ("vicreg_covariance", {}, None),
    ],
)
def test_the_spectrum_of_halves(name, arguments, value):
    z = with_spectrum(2.0 ** -np.arange(8))
    if value is None:  # sum C_kl^2 without the diagonal, from numpy's covariance
        covariance = np.cov(z.T)
        value = (np.sum(covariance**2) - np.sum(np.diag(covariance) ** 2)) / 8
    assert REFERENCES[name](z, **arguments) == pytest.approx(value, rel=2e-11)


def of_cross(k, d, n):
    """Closed forms for the n = 2 k rows of `cross`."""
    expected = n + n * (n - 1) / d
    ranks = ["effective_rank", "eigenvalue_rank", "matrix_entropy", "stable_rank", "nesum", "participation_ratio"]
    return dict.fromkeys([*ranks, "srank", "feature_rank"], k) | {
        "participation_ratio_corrected": (n * n - 2 * n - 2) / (n - 2) if k > 1 else None,
        "iso_score": (k - 1) / (d - 1),
        "cev_auc": ((k + 1) / 2 + d - k) / d,
        "pseudo_condition_number": float(min(n, d) == k),
        "coherence": 1,
        "collapsed_dimensions": d - k,
        "anisotropy": 1 / k,
        "mean_cosine": -1 / (n - 1),
        "self_cluster": (n * n / k - expected) / (n * n - expected),
        "uniformity": math.log((math.exp(-8) + (n - 2) * math.exp(-4)) / (n - 1)),
        "w2_uniformity": math.sqrt(2 * (1 - math.sqrt(k / d))),
        "unit_std": math.sqrt(k / d),
        "vicreg_variance": (k * max(0, 1 - math.sqrt(2 / (n - 1) + 1e-4)) + (d - k) * 0.99) / d,
        "vicreg_covariance": 0,
        "coding_rate": k / 2 * math.log1p(d / (n * 0.25) * 2),
        "norm_spread": 0,
    }


@pytest.mark.parametrize("k", [1, 4, 8])
def test_k_equal_directions(k):
    z = cross(k)
    for name, value in of_cross(k, D, len(z)).items():
        if value is not None and not (name == "participation_ratio_corrected" and k > 4):
            assert REFERENCES[name](z) == pytest.approx(value, abs=3e-8 if name == "w2_uniformity" else 1e-12), name
    for name in ("rankme", "rankme_centered"):
        assert REFERENCES[name](z, eps=0) == pytest.approx(k), name
        shifted = REFERENCES[name](z)
        p = [1 / k + 1e-7] * k + [1e-7] * (min(z.shape) - k)
        assert shifted == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)), rel=1e-12), name
    pairs = {"alignment": 0, "barlow_diagonal": D - k, "barlow_off_diagonal": 0, "cka": 1}
    for name, value in (pairs | ({"cka_debiased": 1, "whitening_mse": 0} if k == D else {})).items():
        assert REFERENCES[name](z, z) == pytest.approx(value, abs=1e-12), name
    assert REFERENCES["lidar"](z, z, eps=0) == pytest.approx(k)


def test_random_rows_of_the_paper():
    rng = np.random.default_rng(0)
    assert REFERENCES["rankme"](rng.normal(size=(25600, 64))) == pytest.approx(63.98, abs=0.01)
    z = rng.normal(size=(256, 64))
    assert REFERENCES["uniformity"](z) == pytest.approx(-3.875, abs=0.01)  # 2048 rows in PAPER.md
    assert REFERENCES["unit_std"](z) == pytest.approx(1, abs=5e-3)
    assert abs(REFERENCES["self_cluster"](z)) < 1e-3


def test_alpha_req_recovers_the_exponent_and_needs_two_ranks():
    z = with_spectrum(np.arange(1.0, 121) ** -1.3, n=140)
    assert REFERENCES["alpha_req"](z) == pytest.approx(1.3, rel=1e-10)
    assert REFERENCES["alpha_req"](z[:12], first=1) > 0
    assert math.isnan(REFERENCES["alpha_req"](z[:12]))  # 11 non-zero eigenvalues: only rank 11 is left


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_complete_collapse(value):
    z = np.full((6, 3), value)
    names = ["effective_rank", "rankme_centered", "eigenvalue_rank", "nesum", "participation_ratio", "iso_score"]
    names += ["participation_ratio_corrected", "cev_auc", "anisotropy", "unit_std", "two_nn", "two_nn_mle"]
    assert [REFERENCES[name](z) for name in names] == [0] * len(names)
    of_raw_rows = ["rankme", "matrix_entropy", "stable_rank", "srank", "feature_rank"]
    assert [REFERENCES[name](z) for name in of_raw_rows] == pytest.approx([float(value > 0)] * 5, abs=1e-5)
    assert REFERENCES["collapsed_dimensions"](z) == 3
    assert REFERENCES["w2_uniformity"](z) == pytest.approx(math.sqrt(2) if value else 1)
    assert REFERENCES["vicreg_variance"](z) == pytest.approx(0.99)
    assert [REFERENCES[name](z, z) for name in ("lidar", "cka", "cka_debiased")] == pytest.approx([0, 0, 0])
    assert math.isnan(REFERENCES["normality"](z, directions(2, 3)))


def test_the_mean_counts_where_rows_are_not_centred():
    z = cross(8) + 1e4
    for name in ("rankme", "matrix_entropy", "stable_rank", "srank"):
        assert REFERENCES[name](z) == pytest.approx(1, abs=2e-3), name
    for name in ("effective_rank", "nesum", "participation_ratio"):
        assert REFERENCES[name](z) == pytest.approx(8), name


def test_corrected_participation_ratio():
    assert REFERENCES["participation_ratio_corrected"](np.arange(5.0)[:, None] ** 2 * [1, 2]) == pytest.approx(1)
    # The mean over all 3^4 samples of 4 from three points: (tr C)^2 over tr C^2 of the population, each unbiased.
    points = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    samples = [points[list(chosen)] for chosen in itertools.product(range(3), repeat=4)]
    traces = [((s[0] - s[1]) @ (s[0] - s[1])) * ((s[2] - s[3]) @ (s[2] - s[3])) / 4 for s in samples]
    squares = [((s[0] - s[1]) @ (s[2] - s[3])) ** 2 / 4 for s in samples]
    assert np.mean(traces) / np.mean(squares) == pytest.approx(REFERENCES["participation_ratio"](points))
    z = np.random.default_rng(3).normal(size=(9, 3)) * [3, 2, 1] + 5  # sums over all rows less those with equal ones
    gram = z @ z.T
    total = {"num": 0.0, "den": 0.0}
    for i, j, k, m in itertools.permutations(range(9), 4):
        total["num"] += gram[i, i] * gram[j, j] - 2 * gram[i, i] * gram[j, k] + gram[i, j] * gram[k, m]
        total["den"] += gram[i, j] ** 2 - 2 * gram[i, j] * gram[j, k] + gram[i, j] * gram[k, m]
    corrected = REFERENCES["participation_ratio_corrected"](z)
    assert corrected == pytest.approx(total["num"] / total["den"], rel=1e-9)
    assert REFERENCES["iso_score_corrected"](z) == pytest.approx((corrected - 1) / 2)


def test_w2_of_unit_rows_follows_from_the_spectrum_alone():
    z = np.random.default_rng(4).normal(size=(N, 5)) + 1
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    roots = np.sqrt(np.linalg.eigvalsh(np.cov(unit.T, bias=True)))
    assert REFERENCES["w2_uniformity"](z) ** 2 == pytest.approx(2 - 2 / math.sqrt(5) * roots.sum(), rel=1e-12)


def test_epps_pulley_of_equal_rows():
    z, a = np.ones((3, 2)), directions(2, 2)

    def integrand(t, x):
        return abs(np.exp(1j * t * x) - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2)

    exact = np.mean([3 * scipy.integrate.quad(integrand, -3, 3, args=(direction.sum(),))[0] for direction in a])
    assert REFERENCES["epps_pulley"](z, a) == pytest.approx(exact, rel=1e-3)  # the trapezoid rule's error
    assert REFERENCES["epps_pulley"](np.tile(z, (2, 1)) * 5, a) == pytest.approx(2 * REFERENCES["epps_pulley"](z, a))


def test_normality_is_the_anderson_darling_integral():
    z = np.random.default_rng(5).exponential(size=(12, 1))
    u = np.sort(scipy.stats.norm.cdf((z[:, 0] - z.mean()) / z.std(ddof=1)))
    edges = [0.0, *u, 1.0]
    pieces = [
        scipy.integrate.quad(lambda v, i=i: (i / 12 - v) ** 2 / (v * (1 - v)), edges[i], edges[i + 1])[0]
        for i in range(13)
    ]
    assert REFERENCES["normality"](z, [[1.0], [-1.0]]) == pytest.approx(12 * sum(pieces), rel=1e-6)
    gaussian = scipy.stats.norm.ppf((np.arange(50) + 0.5) / 50)[:, None]
    assert REFERENCES["normality"](gaussian, [[1.0]]) < 0.1


def test_two_nn(monkeypatch):
    plane = np.random.default_rng(6).uniform(size=(150, 2)) @ np.random.default_rng(7).normal(size=(2, 5))
    for name in ("two_nn", "two_nn_mle"):
        assert REFERENCES[name](plane) == pytest.approx(2, abs=0.4)
        with_duplicates = np.concatenate([plane, plane[:20], plane[:20]])
        assert REFERENCES[name](with_duplicates) == pytest.approx(2, abs=0.5)
    pareto = [(1 - i / 20) ** (-1 / 3.5) for i in range(1, 20)] + [1e9]  # F(mu_i) = i/20; the last one is dropped
    monkeypatch.setattr(slow_rows, "_neighbour_ratios", lambda z: pareto)
    assert REFERENCES["two_nn"](None) == pytest.approx(3.5)
    monkeypatch.setattr(slow_rows, "_neighbour_ratios", lambda z: [math.exp(1 / 3.5)] * 7)
    assert REFERENCES["two_nn_mle"](None) == pytest.approx(3.5)


def test_hubness_of_a_star():
    star = np.concatenate([np.zeros((1, 6)), np.eye(6)])  # every point is nearest to the centre, the centre to e_1
    assert REFERENCES["hubness"](star, k=1) == pytest.approx(scipy.stats.skew([6, 1, 0, 0, 0, 0, 0]))
    assert REFERENCES["hubness"](star) == 0  # fewer than k others: all occur equally often


def test_barlow_alignment_and_norms_by_hand():
    z, z_prime = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]), np.array([[0.0, 1.0], [0.0, 5.0], [4.0, 3.0]])
    c = np.corrcoef(z.T, z_prime.T)[:2, 2:]
    assert REFERENCES["barlow_off_diagonal"](z, z_prime) == pytest.approx(c[0, 1] ** 2 + c[1, 0] ** 2)
    assert REFERENCES["barlow_diagonal"](z, z_prime) == pytest.approx((1 - c[0, 0]) ** 2 + (1 - c[1, 1]) ** 2)
    assert REFERENCES["alignment"](z, z_prime) == pytest.approx((2 + 0 + 0.08) / 3)
    assert REFERENCES["norm_spread"](z) == pytest.approx(np.std([1, 2, 5]) / (8 / 3))


def test_lidar_of_known_scatter():
    between, within = np.array([4.0, 2.0, 1.0, 0.5]), np.array([1.0, 0.1, 1.0, 0.01])
    means = math.sqrt(N) * orthonormal(N, 4) * np.sqrt(between)
    gaps = math.sqrt(N) * orthonormal(N, 4, seed=1) * np.sqrt(within)
    ratios = between * N / (N - 1) / (2 * within + 0.3)  # unbiased: of two views, each is half a gap from their mean
    p = ratios / ratios.sum() + 1e-3
    value = REFERENCES["lidar"](means + gaps + 7, means - gaps + 7, delta=0.3, eps=1e-3)
    assert value == pytest.approx(math.exp(-np.sum(p * np.log(p))), rel=1e-10)


def test_cka():
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(7, 3)) + 2, rng.normal(size=(7, 4))
    a, b = x - x.mean(0), y - y.mean(0)
    features = np.linalg.norm(a.T @ b) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert REFERENCES["cka"](x, y) == pytest.approx(features)

    def u_statistic(k, m):  # E k l + E k E l - 2 E k_ij l_ik, each over distinct rows
        tuples = itertools.permutations(range(7), 4)
        return np.mean([k[i, j] * (m[i, j] + m[s, t] - 2 * m[i, s]) for i, j, s, t in tuples])

    k, m = x @ x.T, y @ y.T
    expected = u_statistic(k, m) / math.sqrt(u_statistic(k, k) * u_statistic(m, m))
    assert REFERENCES["cka_debiased"](x, y) == pytest.approx(expected)
    assert REFERENCES["cka_debiased"](a, b + 9) == pytest.approx(expected)  # the mean does not matter


def test_whitening_mse():
    rng = np.random.default_rng(9)
    z = rng.normal(size=(40, 3)) * [5, 1, 0.1]
    triangular = np.array([[2.0, 1.0, -3.0], [0.0, 0.5, 1.0], [0.0, 0.0, 4.0]])  # Cholesky whitening removes it
    assert REFERENCES["whitening_mse"](z, z @ triangular + 3) == pytest.approx(0, abs=1e-10)
    assert REFERENCES["whitening_mse"](z, rng.normal(size=(40, 3))) == pytest.approx(2, abs=0.5)
    with pytest.raises(np.linalg.LinAlgError):
        REFERENCES["whitening_mse"](cross(3), cross(3))


def test_neural_collapse():
    classes, spread = 4, 0.3
    etf = np.eye(classes) - 1 / classes
    z = 5.0 + np.concatenate([etf * (1 + spread), etf * (1 - spread)])  # Sw = spread^2 Sb
    labels = np.tile(np.arange(classes) * 10, 2)
    assert REFERENCES["nc1"](z, labels) == pytest.approx(spread**2 * (classes - 1) / classes)
    assert REFERENCES["cdnv"](z, labels) == pytest.approx(spread**2 * (classes - 1) / (2 * classes))
    assert REFERENCES["nc2_norms"](z, labels) == pytest.approx(0, abs=1e-12)
    assert REFERENCES["nc2_angles"](z, labels) == pytest.approx(0, abs=1e-12)
    assert REFERENCES["within_class_rank"](z, labels) == pytest.approx(1)
    line, of_line = np.array([[0.0], [1.0], [5.0], [5.0]]), [0, 1, 2, 2]  # centred means -2, -1, 3
    assert REFERENCES["nc2_norms"](line, of_line) == pytest.approx(np.std([2, 1, 3]) / 2)
    assert REFERENCES["nc2_angles"](line, of_line) == pytest.approx((1.5 + 0.5 + 0.5) / 3)
    assert REFERENCES["cdnv"](line, of_line) == 0
    sized = np.concatenate([cross(2), cross(4)])
    assert REFERENCES["within_class_rank"](sized, [0] * 4 + [1] * 8) == pytest.approx((4 * 2 + 8 * 4) / 12)
