"""Local collapse and the matrices of a checkpoint."""

import numpy as np
import pytest

from dcjax.collapse import alignments, local_spectra, matrix_reports, metrics

RNG = np.random.default_rng(0)


def test_full_as_a_whole_and_flat_everywhere():
    """Ten flat clusters in as many different planes: the whole has full rank, every cell has two directions."""
    cells = []
    for c in range(10):
        plane = np.linalg.qr(RNG.normal(size=(12, 2)))[0]
        centre = 40 * np.eye(12)[c % 12]
        cells.append(centre + RNG.normal(size=(60, 2)) @ plane.T)
    z = np.concatenate(cells)
    found = local_spectra(z)
    assert found.rank == pytest.approx(2, abs=0.1)
    assert found.isotropic_rank > 11
    assert metrics(z, names=["effective_rank", "local_rank"])["effective_rank"] > 8
    assert metrics(z, names=["local_rank"])["local_rank"] == pytest.approx(found.rank, rel=1e-9)
    assert found.sizes.tolist() == [60] * 10
    assert (found.eigenvalues[:, 2:] < 1e-20 * found.eigenvalues[:, :1]).all()


def test_isotropic_rows_are_their_own_baseline():
    found = local_spectra(RNG.normal(size=(400, 8)), cells=5)
    assert found.rank == pytest.approx(found.isotropic_rank, rel=0.03)
    assert found.sizes.sum() == found.isotropic_sizes.sum() == 400


def test_duplicates_and_small_cells():
    z = np.repeat(RNG.normal(size=(4, 3)), 10, axis=0)
    assert local_spectra(z, cells=10).rank == 0  # four cells of equal rows


@pytest.mark.parametrize("cells", [0, 14])
def test_cells_out_of_range_are_refused(cells):
    with pytest.raises(ValueError, match=r"^cells must be from 1 to 13, a third of the rows, found"):
        local_spectra(RNG.normal(size=(40, 3)), cells=cells)


def test_the_matrices_of_a_checkpoint():
    flat = RNG.normal(size=(8, 2)) @ RNG.normal(size=(2, 6))
    kernel = RNG.normal(size=(3, 3, 4, 5))
    arrays = {"a/kernel": flat, "b/kernel": kernel, "bias": np.ones(6), "c.weight": np.moveaxis(kernel, -1, 0)}
    arrays["single"] = np.ones((1, 6))
    found = {report.name: report for report in matrix_reports(arrays)}
    assert set(found) == {"a/kernel", "b/kernel", "c.weight"}
    assert found["a/kernel"].collapsed == 4
    assert found["a/kernel"].effective_rank <= 2
    s = np.linalg.svd(kernel.reshape(36, 5), compute_uv=False)
    np.testing.assert_allclose(found["b/kernel"].singular_values, s)
    np.testing.assert_allclose(found["c.weight"].singular_values, s)  # PyTorch's layout
    assert found["b/kernel"].stable_rank == pytest.approx((s**2).sum() / s[0] ** 2)
    with pytest.raises(ValueError, match=r"^w must be finite"):
        matrix_reports({"w": np.full((2, 2), np.nan)})


def test_aligned_layers():
    """W2 = Q S U1^T is aligned with W1 = U1 S V^T, in Flax's and in PyTorch's layout; a random W2 is not."""
    q, u, v = (np.linalg.qr(RNG.normal(size=(6, 6)))[0] for _ in range(3))
    s = np.exp(-0.3 * np.arange(6))
    w1, w2 = u * s @ v.T, q * s @ u.T
    for arrays in ({"w1": w1.T, "w2": w2.T}, {"w1.weight": w1, "w2.weight": w2}):
        (found,) = alignments(arrays)
        assert found.names == tuple(arrays)
        assert found.least == pytest.approx(1)
        assert found.dominant == pytest.approx(1)  # balanced: C = 0
    (other,) = alignments({"w1": w1.T, "w2": RNG.normal(size=(6, 6))})
    assert other.mean < 0.8
    assert alignments({"w1": w1.T, "w2": RNG.normal(size=(5, 6))}) == []
