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
    if expected == "bfloat16":
        assert "the rounding of bfloat16 entries" in found.reason
        assert found.threshold == found.floor


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


@pytest.mark.parametrize(("rows", "kind"), [(1, "undetermined"), (DIM, "undetermined"), (DIM + 1, "none")])
def test_few_rows_decide_nothing(rows, kind):
    found = verdict(FULL[:rows], tolerance=0.0)
    assert found.kind == kind
    if kind == "undetermined":
        assert found.collapsed is None
        assert "pass more than 32 rows" in found.next


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
    views = [(FULL + amplitude * RNG.normal(size=FULL.shape)) * scale for _ in range(2)]
    quantities = Quantities(*views)
    found = judge(quantities, views=quantities)
    assert found.kind == "dimensional"
    assert cause in found.reason
    assert "--views" in verdict(views[0]).next


def test_constant_columns_are_named():
    z = FULL.copy()
    z[:, 3] = 7.0
    assert verdict(z).reason.endswith("(1 of the columns is constant)")
    z[:, 5] = 0
    assert verdict(z).reason.endswith("(2 of the columns are constant)")


def test_nothing_is_left_where_views_collapse_exactly():
    z = FULL.copy()
    z[:, 3:] = 0
    quantities = Quantities(z, z)
    found = judge(quantities, views=quantities)
    assert "only rounding is left there" in found.reason
    assert "constant columns" in found.next
