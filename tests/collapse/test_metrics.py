"""The table of measures: against slow references, closed forms, and the pitfalls of other packages."""

import inspect
import math

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import slow_metrics
from test_slow_metrics import cross, orthonormal, with_spectrum

from dcjax.collapse import METRICS, Interval, effective_rank, jackknife, metrics
from dcjax.collapse.metrics import GROWS, HIGH, LOW, chosen_names, evaluate
from dcjax.collapse.quantities import Quantities
from dcjax.collapse.ranks import alpha_req, rankme
from dcjax.collapse.running import Digits

# Without a reference of their own: k-means of both would have to agree, so theirs is given to the definition below.
OF_CLUSTERS = {"cluster_learnability", "local_rank"}
SHAPES = [(14, 9), (13, 20), (16, 14)]


def draws(n, d, seed=0):
    """Rows with an uneven spectrum and a mean, their other views, and labels."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 1.5
    return z, z + 0.3 * rng.normal(size=(n, d)), np.arange(n) % 3


def reference(name, z, z_prime, labels, directions):
    arguments = {"views": (z, z_prime), "labels": (z, labels), "": (z,)}[METRICS[name].needs]
    if name in ("normality", "epps_pulley"):
        arguments += (directions,)
    return slow_metrics.REFERENCES[name](*arguments)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_slow_references(shape, monkeypatch):
    monkeypatch.setattr("dcjax.collapse.quantities.DIRECTIONS", 20)  # the slow ones take a millisecond each
    z, z_prime, labels = draws(*shape)
    found = metrics(z, z_prime, labels=labels)
    directions = Quantities(z).directions
    undefined = {"alpha_req"} if shape[1] < 13 else set()
    undefined |= {"whitening_mse", "lidar"} if shape[0] <= shape[1] else set()
    if shape == (13, 20):
        undefined.add("alpha_req")  # 12 eigenvalues are not zero, so ranks 11 and 12 only
    assert set(found) == set(METRICS) - undefined
    for name, value in found.items():
        if name not in OF_CLUSTERS:
            # Both are float64; differences of squares, as in distances, lose some digits.
            expected = reference(name, z, z_prime, labels, directions)
            assert value == pytest.approx(expected, rel=1e-8, abs=1e-10), name


def test_the_table_says_what_each_measure_takes():
    given = {name for name, _ in inspect.getmembers(Quantities)} | {"count"}
    for name, metric in METRICS.items():
        assert metric.quantities, name
        assert set(metric.quantities) <= given, name
        assert metric.function.__doc__, name
        assert metric.better in ("higher", "lower", "1", "-"), name
        assert metric.reference, name
    assert METRICS["uniformity"].of_sample
    assert not METRICS["rankme"].of_sample


@pytest.mark.parametrize(("k", "d"), [(4, 8), (8, 8)])
def test_k_of_d_equal_directions(k, d):
    found = metrics(cross(k, d))
    for name in ("effective_rank", "eigenvalue_rank", "participation_ratio", "nesum", "stable_rank", "matrix_entropy"):
        assert found[name] == pytest.approx(k, rel=1e-12), name
    assert found["rankme"] == pytest.approx(k, rel=1e-4)  # its eps
    assert found["iso_score"] == pytest.approx((k - 1) / (d - 1))
    assert found["collapsed_dimensions"] == d - k
    assert found["w2_uniformity"] == pytest.approx(math.sqrt(2 * (1 - math.sqrt(k / d))), abs=1e-7)
    assert found["cev_auc"] == pytest.approx((k * (k + 1) / 2 + k * (d - k)) / (k * d))
    assert found["anisotropy"] == pytest.approx(1 / k)
    assert found["pseudo_condition_number"] == pytest.approx(float(k == d), abs=1e-7)
    assert found["srank"] == k


def test_an_isotropic_sample():
    z = np.random.default_rng(0).normal(size=(6000, 64)).astype(np.float32)
    names = [name for name in METRICS if not METRICS[name].needs and name not in OF_CLUSTERS]
    found = metrics(z, names=names, sample=1500)
    assert found["rankme"] == pytest.approx(63.9, abs=0.05)  # 64 (1 - d / (4 n) ...)
    assert found["uniformity"] == pytest.approx(-3.875, abs=0.002)
    assert found["unit_std"] == pytest.approx(1, abs=0.001)
    assert found["self_cluster"] == pytest.approx(0, abs=1e-3)
    assert found["mean_cosine"] == pytest.approx(0, abs=1e-3)
    assert found["participation_ratio_corrected"] == pytest.approx(64, abs=0.2)
    assert found["normality"] < 0.752  # the level at which 5 % of normal samples are refused
    assert found["norm_spread"] == pytest.approx(1 / math.sqrt(128), rel=0.05)


def test_rank_one():
    z = np.outer(np.linspace(-1, 2, 40), np.ones(6))
    found = metrics(z)
    for name in ("effective_rank", "participation_ratio", "nesum", "stable_rank", "matrix_entropy", "eigenvalue_rank"):
        assert found[name] == pytest.approx(1, abs=1e-6), name
    assert found["iso_score"] == pytest.approx(0, abs=1e-7)
    assert found["collapsed_dimensions"] == 5


@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_equal_rows_give_numbers_or_nothing(rows, value):
    z = np.full((rows, 5), value)
    found = metrics(z, z, labels=np.arange(rows) % 2)
    assert all(math.isfinite(v) for v in found.values())
    for name in ("effective_rank", "participation_ratio", "participation_ratio_corrected", "nesum", "rankme_centered"):
        assert found.get(name, 0) == 0, name
    assert found["alignment"] == 0
    assert found["unit_std"] == 0


def test_undefined_measures_are_left_out_or_said():
    z = np.random.default_rng(0).normal(size=(30, 4))
    assert "alpha_req" not in metrics(z)
    with pytest.raises(ValueError, match=r"^alpha_req is not defined for these rows: alpha of"):
        metrics(z, names=["rankme", "alpha_req"])


# The pitfalls of METRICS.md.


def test_rankme_with_its_papers_epsilon():
    """eps = 1e-5, as another package has it, would give 1.27, 37.9 and 445 for these collapsed spectra."""
    for rank, expected in ((1, 1.003), (30, 30.1), (360, 361.04)):
        s = np.r_[np.ones(rank), np.zeros(2048 - rank)]
        assert rankme(s) == pytest.approx(expected, rel=5e-4)


def test_rankme_is_lowered_by_a_mean_and_its_centred_form_is_not():
    z = np.random.default_rng(0).normal(size=(1024, 128)).astype(np.float32)
    plain, moved = metrics(z, names=["rankme", "rankme_centered"]), metrics(z + 3, names=["rankme", "rankme_centered"])
    assert moved["rankme"] < 0.75 * plain["rankme"]
    assert moved["rankme_centered"] == pytest.approx(plain["rankme_centered"], rel=1e-9)


def test_ranks_are_of_singular_values_not_of_eigenvalues():
    lam = 1 / np.arange(1, 513)
    assert effective_rank(np.sqrt(lam)) == pytest.approx(409.6, abs=0.1)
    assert effective_rank(lam) == pytest.approx(117.2, abs=0.1)


def test_the_participation_ratio_and_its_bias():
    """1 / PR of n rows is about 1 / PR + 1 / (n - 1); the corrected one is right on average."""
    rng = np.random.default_rng(0)
    found = [metrics(rng.normal(size=(128, 512)).astype(np.float32), names=NAMES) for _ in range(5)]
    naive, corrected = (np.mean([values[name] for values in found]) for name in NAMES)
    assert naive == pytest.approx(1 / (1 / 512 + 1 / 127), rel=0.01)
    assert corrected == pytest.approx(512, rel=0.03)


NAMES = ("participation_ratio", "participation_ratio_corrected")


def test_uniformity_is_blind_where_w2_uniformity_sees():
    rng = np.random.default_rng(0)
    full = rng.normal(size=(800, 512)).astype(np.float32)
    half = full.copy()
    half[:, 256:] = 0
    one, other = (metrics(z, names=["uniformity", "w2_uniformity"]) for z in (full, half))
    assert abs(one["uniformity"] - other["uniformity"]) < 0.02  # 4 / 256 - 4 / 512
    assert other["w2_uniformity"] > one["w2_uniformity"] + 0.1


def test_the_range_of_alpha_changes_the_number():
    lam = np.r_[np.full(10, 11**-1.3), np.arange(11, 101) ** -1.3]
    assert alpha_req(lam, 1000) == pytest.approx(1.3, rel=1e-12)
    assert alpha_req(lam, 1000, ranks=(1, 100)) < 0.9
    assert alpha_req(np.arange(1, 9.0) ** -1.3, 100, ranks=(1, 8)) == pytest.approx(1.3)


def test_duplicates_do_not_break_two_nn():
    z = np.random.default_rng(0).normal(size=(300, 3))
    found, repeated = (metrics(rows, names=["two_nn", "two_nn_mle"]) for rows in (z, np.concatenate([z, z[:100]])))
    for name in found:
        assert found[name] == pytest.approx(3, rel=0.25)
        assert repeated[name] == pytest.approx(found[name], rel=1e-9)
    assert "two_nn" not in metrics(np.ones((30, 3)))


def test_lidar_takes_the_views_of_an_image_as_its_class():
    """Wide noise within the pairs lowers it; the same rows with other partners would give another number."""
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(200, 16))
    noise = rng.normal(size=(2, 200, 16)) * np.r_[np.full(8, 0.1), np.full(8, 3.0)]
    found = metrics(clean + noise[0], clean + noise[1], names=["lidar"])["lidar"]
    assert 7.5 < found < 9  # the eight clean directions


def test_cka_needs_its_correction_with_few_rows():
    rng = np.random.default_rng(0)
    found = metrics(rng.normal(size=(40, 200)), rng.normal(size=(40, 200)), names=["cka", "cka_debiased"])
    assert found["cka"] > 0.8
    assert abs(found["cka_debiased"]) < 0.1


def test_a_stream_gives_what_the_array_gives():
    z, z_prime, labels = draws(40, 14)
    whole = metrics(z, z_prime, labels=labels)
    batches = (iter([part[:13], part[13:14], part[14:]]) for part in (z, z_prime))
    streamed = metrics(*batches, labels=labels)
    assert streamed == pytest.approx(whole, rel=1e-8, abs=1e-10)


def test_a_sample_is_drawn_the_same_way_from_any_blocks():
    z = np.random.default_rng(0).normal(size=(500, 3))
    labels = np.arange(500)
    one = Quantities(z, z + 1, labels, sample=50)
    other = Quantities(iter(np.split(z, [1, 77, 300])), iter(np.split(z + 1, [200])), labels, sample=50)
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_array_equal(one.rows + 1, other.rows_prime)
    np.testing.assert_array_equal(z[one._labels], one.rows)
    assert (np.diff(one._labels) > 0).all()


def test_a_jackknife_knows_the_error_and_the_bias():
    rng = np.random.default_rng(0)
    z, names = rng.normal(size=(256, 16)), ["participation_ratio", "participation_ratio_corrected"]
    found = jackknife(z, names=names)
    assert found["participation_ratio"].low < found["participation_ratio"].value < found["participation_ratio"].high
    # The bias of the first kind is 1 - 1 / (1 + 16 / 255) of 16, nearly 1; the second kind has none.
    assert found["participation_ratio"].bias == pytest.approx(-0.95, abs=0.3)
    assert found["participation_ratio_corrected"].bias == pytest.approx(0, abs=0.3)
    values = [metrics(rng.normal(size=(256, 16)), names=names)["participation_ratio"] for _ in range(40)]
    half = (found["participation_ratio"].high - found["participation_ratio"].low) / 2
    assert half == pytest.approx(2.09 * np.std(values), rel=0.5)  # t(0.975, 19); 40 draws and 20 groups: 20 % each
    assert isinstance(found["participation_ratio"], Interval)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (ml_dtypes.bfloat16, "bfloat16"),
        (np.float16, "float16"),
        (np.float32, "float32"),
        (np.float64, "float64"),
    ],
)
@pytest.mark.parametrize("held", [np.float32, np.float64])
def test_recognises_entries_of_fewer_digits(stored, expected, held):
    if stored == np.float64 and held == np.float32:
        expected = "float32"
    digits = Digits()
    for part in np.split(np.random.default_rng(0).normal(size=(60, 5)).astype(stored).astype(held), 3):
        digits.update(part)
    assert digits.dtype.name == expected


def test_small_integers_and_codes_are_exact():
    for z in (np.eye(4), np.sign(np.random.default_rng(0).normal(size=(9, 3))), np.zeros((3, 2))):
        digits = Digits()
        digits.update(z.astype(np.float32))
        assert digits.dtype.name == "float32"


def test_one_array_of_any_library():
    z = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    names = ["rankme", "uniformity"]
    assert metrics(jnp.asarray(z), names=names) == metrics(z, names=names)
    assert metrics(z.tolist(), names=names) == pytest.approx(metrics(z, names=names), rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["rank"]}, "^the measure 'rank' is not known; known: effective_rank, "),
        ({"names": ["lidar"]}, "^the measure 'lidar' needs views"),
        ({"names": ["nc1"]}, "^the measure 'nc1' needs labels"),
        ({"z_prime": np.zeros((9, 3))}, "^z_prime must have as many rows as z, 10, found 9|found 9"),
        ({"z_prime": np.zeros((11, 3))}, "^z_prime must have as many rows as z, 10, found 11"),
        ({"z_prime": np.zeros((10, 4))}, "^z_prime must have as many columns as z, 3, found 4"),
        ({"labels": np.zeros(9)}, "^labels must be as many as the rows, found 9"),
        ({"labels": np.zeros(11)}, "^labels must be as many as the rows, 10, found 11"),
        ({"labels": np.zeros((10, 1))}, r"^labels must have the shape \[n\], found \(10, 1\)"),
        ({"z_prime": np.full((10, 3), np.nan)}, "^z must be finite"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics(np.random.default_rng(0).normal(size=(10, 3)), **arguments)


def test_a_jackknife_of_sampled_measures_keeps_its_sample():
    """Half-widths near those of as many independent rows; a new sample for each group would make them 4 times wider."""
    rng = np.random.default_rng(0)
    names = ["uniformity", "norm_spread"]
    found = jackknife(rng.normal(size=(1000, 8)), names=names, sample=200)
    draws = [metrics(rng.normal(size=(200, 8)), names=names) for _ in range(20)]
    for name in names:
        half = (found[name].high - found[name].low) / 2
        assert 0.4 < half / (2.09 * np.std([values[name] for values in draws])) < 2


def test_a_jackknife_leaves_out_what_a_part_does_not_have():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(20, 19))
    found = jackknife(z, z + 0.1 * rng.normal(size=z.shape), names=["lidar", "alignment"], groups=4)
    assert set(found) == {"alignment"}


def test_a_jackknife_refuses_too_few_rows():
    with pytest.raises(ValueError, match="found 30 rows and 20 groups"):
        jackknife(np.zeros((30, 3)))


def test_few_rows_move_the_values_as_the_table_says(monkeypatch):
    """60 rows in 20 dimensions against 2,000; of many draws, so that five standard errors show most biases."""
    monkeypatch.setattr("dcjax.collapse.quantities.DIRECTIONS", 8)
    scale, centres = np.arange(1, 21) ** -0.5, np.random.default_rng(9).normal(size=(3, 20)) / 2

    def measured(rows, draws):
        found = []
        for seed in range(draws):
            rng = np.random.default_rng(seed)
            labels = np.arange(rows) % 3
            x = rng.normal(size=(rows, 20)) * scale + centres[labels] + 0.3
            views = [(x + 0.2 * rng.normal(size=x.shape)).astype(np.float32) for _ in range(2)]
            found.append(metrics(*views, labels=labels, names=names))
        values = np.array([[one[name] for name in names] for one in found])
        return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(draws)

    names = [name for name in METRICS if name not in OF_CLUSTERS]
    (few, error), (many, other_error) = measured(60, 20), measured(2000, 2)
    away = dict(zip(names, (few - many) / np.maximum(np.hypot(error, other_error), 1e-9), strict=True))
    for name, by in away.items():
        if abs(by) > 5:
            expected = {LOW: -1, HIGH: 1, GROWS: -1}[METRICS[name].by_count]
            assert np.sign(by) == expected, name
    clear = {
        "effective_rank",
        "rankme",
        "participation_ratio",
        "alpha_req",
        "w2_uniformity",
        "lidar",
        "two_nn",
        "hubness",
    }
    assert clear <= {name for name, by in away.items() if abs(by) > 5}
    for name in ("participation_ratio_corrected", "iso_score_corrected", "cka_debiased", "uniformity", "alignment"):
        assert abs(away[name]) < 5, name


def test_names_follow_what_is_given():
    assert "lidar" not in chosen_names(None, paired=False, labelled=False)
    assert {"lidar", "nc1"} <= set(chosen_names(None, paired=True, labelled=True))


def test_the_unit_values():
    found = Quantities(with_spectrum(2.0 ** -np.arange(8)))
    expected = {
        "effective_rank": 6.14274720751,
        "eigenvalue_rank": 3.89866687547739,
        "participation_ratio": 2.97665369650,
        "nesum": 1.9921875,
        "stable_rank": 1.9921875,
        "iso_score": 0.282379099500,
        "cev_auc": 0.878921568627,
        "srank": 8,
    }
    for name, value in expected.items():
        assert evaluate(METRICS[name], found) == pytest.approx(value, rel=1e-10), name
    assert alpha_req(found.eigenvalues, 24, ranks=(1, 8)) == pytest.approx(1.95162856055, rel=1e-10)


def test_orthonormal_columns_are_isotropic():
    assert metrics(orthonormal(24, 8), names=["effective_rank"])["effective_rank"] == pytest.approx(8, rel=1e-12)


@pytest.mark.parametrize("shape", [(40, 1), (1, 5), (2, 2), (3, 40)], ids=str)
def test_the_smallest_shapes_give_numbers(shape):
    rng = np.random.default_rng(0)
    z = rng.normal(size=shape)
    found = metrics(z, z + 0.1 * rng.normal(size=shape), labels=np.arange(len(z)) % 2)
    assert all(math.isfinite(value) for value in found.values())
    assert found["effective_rank"] <= min(shape) + 1e-9
    assert ("iso_score" in found) == (shape[1] > 1)


def test_cluster_learnability_is_the_vote_of_the_neighbours():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(60, 3))
    quantities = Quantities(z)
    right = 0
    for i in range(len(z)):
        nearest = sorted((j for j in range(len(z)) if j != i), key=lambda j, i=i: np.linalg.norm(z[i] - z[j]))[:10]
        votes = [sum(quantities.clusters[j] == c for j in nearest) for c in range(10)]
        right += votes.index(max(votes)) == quantities.clusters[i]
    assert evaluate(METRICS["cluster_learnability"], quantities) == pytest.approx(right / 60)
    apart = np.repeat(100 * np.eye(10), 30, axis=0) + rng.normal(size=(300, 10))
    assert metrics(apart, names=["cluster_learnability"])["cluster_learnability"] == 1
