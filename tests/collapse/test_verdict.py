"""The verdict: the three kinds of collapse, the floor of rounding, the two causes."""

import ml_dtypes
import numpy as np
import pytest
from test_slow_metrics import with_spectrum

from dcjax.collapse import judge
from dcjax.collapse.quantities import Quantities

ROWS, DIM, KEPT = 2000, 32, 20
RNG = np.random.default_rng(0)
FULL = RNG.normal(size=(ROWS, DIM)) @ np.linalg.qr(RNG.normal(size=(DIM, DIM)))[0]
# Twelve columns that the others determine: no column is constant, and no entry is zero.
FLAT = np.concatenate([FULL[:, :KEPT], FULL[:, :KEPT] @ RNG.normal(size=(KEPT, DIM - KEPT)) / 4], axis=1)


def verdict(z, **options):
    return judge(Quantities(z), **options)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("held", [None, np.float32], ids=["as stored", "in a float32 file"])
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_dimensional_collapse_in_any_precision(dtype, held, mean):
    """The entries of low precision never show small eigenvalues: rounding fills the flat directions."""
    flat, full = ((z + mean).astype(dtype).astype(held or dtype) for z in (FLAT, FULL))
    found = verdict(flat)
    assert (found.kind, found.collapsed) == ("dimensional", DIM - KEPT)
    assert f"{DIM - KEPT} of {DIM} eigenvalues are at or below" in found.reason
    healthy = verdict(full)
    assert (healthy.kind, healthy.collapsed, healthy.next) == ("none", 0, "")
    expected = "float32" if dtype == np.float64 and held else np.dtype(dtype).name
    assert found.stored == healthy.stored == expected
    if expected == "bfloat16" and mean:
        assert "the rounding of bfloat16 entries" in found.reason


def test_the_floor_covers_the_rounding_of_the_entries():
    """What rounding leaves in the flat directions lies below the floor, and within a factor of 100 of it."""
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        for mean in (0.0, 30.0):
            quantities = Quantities((FLAT + mean).astype(dtype))
            left = quantities.eigenvalues[KEPT]
            assert left < judge(quantities).floor < 100 * left, (dtype, mean)


@pytest.mark.parametrize("z", [np.full((50, 3), 4.0), np.zeros((9, 2), np.float32), np.ones((7, 30), np.int64)])
def test_constant_rows_are_complete_collapse(z):
    found = verdict(z)
    assert (found.kind, found.collapsed) == ("complete", z.shape[1])
    assert found.reason.startswith(f"all {len(z)} rows are alike")


def test_rows_that_differ_by_rounding_are_alike():
    point = RNG.normal(size=DIM).astype(np.float32)
    z = point * (1 + 1e-7 * RNG.normal(size=(ROWS, DIM)).astype(np.float32))
    assert verdict(z).kind == "complete"
    assert verdict(point + 1e-3 * FULL).kind == "none"


@pytest.mark.parametrize(("rows", "kind"), [(1, "undetermined"), (DIM, "undetermined"), (2 * DIM, "none")])
def test_few_rows_decide_nothing(rows, kind):
    found = verdict(FULL[:rows])
    assert found.kind == kind
    if kind == "undetermined":
        assert found.collapsed is None
        assert "pass more than 32 distinct rows" in found.next


def test_one_column():
    assert verdict(FULL[:, :1]).kind == "none"
    assert verdict(np.ones((5, 1))).kind == "complete"


def test_the_tolerance_is_a_share_of_the_largest_eigenvalue():
    z = with_spectrum(10.0 ** -np.arange(8))
    for tolerance, collapsed in ((1e-6, 2), (2e-3, 5), (0.5, 7), (1e-12, 0)):
        found = verdict(z, tolerance=tolerance * 1.001)
        assert (found.collapsed or 0) == collapsed
        assert found.kind == ("dimensional" if collapsed else "none")


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan")])
def test_a_tolerance_out_of_range_is_refused(tolerance):
    with pytest.raises(ValueError, match=r"^tolerance must be in \[0, 1\), found"):
        verdict(FULL, tolerance=tolerance)


@pytest.mark.parametrize(("noise", "cause"), [(2.0, "first cause"), (0.1, "second cause")])
def test_views_tell_the_two_causes_apart(noise, cause):
    """A direction shrunk by a thousandth, in which the views differ more, or less, than the images do."""
    scale = np.r_[np.ones(KEPT), np.full(DIM - KEPT, 1e-4)]
    amplitude = np.r_[np.full(KEPT, 0.1), np.full(DIM - KEPT, noise)]
    rotation = np.linalg.qr(RNG.normal(size=(DIM, DIM)))[0]
    views = [(FULL + amplitude * RNG.normal(size=FULL.shape)) * scale @ rotation for _ in range(2)]
    quantities = Quantities(*views)
    found = judge(quantities, views=quantities)
    assert found.kind == "dimensional"
    assert cause in found.reason
    assert "--views" in verdict(views[0]).next


def test_a_large_tolerance_makes_no_column_constant():
    """One direction over all columns holds nearly all of the variance, so each column has a 32nd of its eigenvalue."""
    rotation = np.linalg.qr(RNG.normal(size=(DIM, DIM)))[0]
    z = FULL * np.r_[30.0, np.ones(DIM - 1)] @ rotation
    found = verdict(z, tolerance=0.1)
    assert found.collapsed == DIM - 1
    assert "constant" not in found.reason
    assert "column" not in found.reason


def test_views_of_other_images_tell_no_cause():
    scale = np.r_[np.ones(KEPT), np.full(DIM - KEPT, 1e-4)]
    rotation = np.linalg.qr(RNG.normal(size=(DIM, DIM)))[0]
    z = FULL * scale @ rotation
    views = z + 0.01 * RNG.normal(size=z.shape) * scale @ rotation
    assert "second cause" in judge(Quantities(z, views)).reason
    assert "any two images" in judge(Quantities(z, views[RNG.permutation(ROWS)])).reason
    assert "the two views are equal" in judge(Quantities(z, z)).reason


def test_constant_columns_are_named():
    z = FULL.copy()
    z[:, 3] = 7.0
    assert verdict(z).reason.endswith("each is a single column (1 of the columns is constant or nearly so)")
    z[:, 5] = 1e-4 * FULL[:, 5]
    assert verdict(z).reason.endswith("(2 of the columns are constant or nearly so)")
    assert "ReLU" in verdict(z).next


def test_arithmetic_is_no_augmentation():
    """A product with a matrix of low rank in float32 rounds by more than its entries do, differently for each view."""
    mixing = (RNG.normal(size=(DIM, KEPT)) @ RNG.normal(size=(KEPT, DIM))).astype(np.float32)
    views = [(FULL + 0.1 * RNG.normal(size=FULL.shape)).astype(np.float32) @ mixing for _ in range(2)]
    found = judge(Quantities(*views), tolerance=1e-9)
    assert (found.kind, found.collapsed) == ("dimensional", DIM - KEPT)
    assert "only the rounding of arithmetic is left" in found.reason


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_one_large_column_does_not_hide_the_others(dtype):
    """The rounding of a column of 50 is as large as the spread of the others."""
    for large in (np.full(ROWS, 1000.0), 50 + RNG.normal(size=ROWS)):
        z = np.concatenate([large[:, None], 0.1 * FULL], axis=1).astype(dtype)
        found = verdict(z)
        assert found.kind == ("dimensional" if large.std() == 0 else "none")
        assert found.collapsed == (large.std() == 0)


def test_duplicates_do_not_count_as_rows():
    found = verdict(np.repeat(FULL[:20], 60, axis=0))
    assert found.kind == "undetermined"
    assert found.reason == "20 distinct rows cannot fill 32 dimensions"


@pytest.mark.parametrize("dim", [64, 512])
def test_hardly_more_rows_than_columns_are_too_few(dim):
    z = RNG.normal(size=(dim + 1, dim)).astype(np.float32)
    assert verdict(z).kind in (("undetermined",) if dim == 512 else ("undetermined", "none"))
    assert verdict(RNG.normal(size=(2 * dim, dim)).astype(np.float32)).kind == "none"


def test_normalised_rows_lose_one_direction():
    """LayerNorm, with or without a scale, and softmax."""
    layer_norm = (FULL - FULL.mean(axis=1, keepdims=True)) / FULL.std(axis=1, keepdims=True)
    softmax = np.exp(FULL) / np.exp(FULL).sum(axis=1, keepdims=True)
    for z in (layer_norm, layer_norm * RNG.uniform(0.5, 2, DIM), softmax):
        found = verdict(z.astype(np.float32))
        assert (found.kind, found.collapsed) == ("dimensional", 1)
        assert "LayerNorm" in found.reason


def test_integers_are_exact_in_any_array():
    z = RNG.integers(0, 256, (ROWS, 20))
    z[:, 0] = z[:, 0] > 100
    for dtype in (np.int64, np.uint8, np.float32, np.float64):
        assert verdict(z.astype(dtype)).kind == "none"
    assert Quantities(z.astype(np.float32)).digits.dtype == np.float32


def test_other_byte_orders_and_sizes_of_entries():
    assert verdict(FLAT.astype(">f8")).collapsed == verdict(FLAT.astype(">f4")).collapsed == DIM - KEPT
    for scale in (1e60, 1e-60):
        assert verdict(FULL * scale).kind == "none"
    for scale, message in ((1e80, "entries must be at most 1e"), (1e-90, "entries must be 0 or reach 1e")):
        with pytest.raises(ValueError, match=message):
            verdict(FULL * scale)
