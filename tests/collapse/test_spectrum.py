"""The spectrum of arrays, batches and files, and its plot."""

import subprocess
import sys

import jax.numpy as jnp
import matplotlib.image
import ml_dtypes
import numpy as np
import pytest
from helpers import new_process
from matplotlib.figure import Figure

from dcjax.collapse import arrays, spectrum
from dcjax.collapse.plot import plot_spectra


def embedding(values, n=400, seed=0):
    """Rows whose covariance (divisor n) has exactly these singular values, around a mean that is not zero."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, len(values)))
    u = np.linalg.qr(z - z.mean(0))[0]
    rotation = np.linalg.qr(rng.normal(size=(len(values),) * 2))[0]
    return np.sqrt(n) * (u * np.sqrt(values)) @ rotation.T + 3.0


def test_spectrum_against_known_values():
    values = 2.0 ** -np.arange(8)
    np.testing.assert_allclose(spectrum(embedding(values), normalize=False), values, rtol=1e-10)


def test_spectrum_is_the_covariances():
    z = embedding(np.array([3.0, 1.0, 0.2]))
    expected = np.linalg.svd(np.cov(z.T, bias=True), compute_uv=False)
    np.testing.assert_allclose(spectrum(z, normalize=False), expected, rtol=1e-10)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    np.testing.assert_allclose(
        spectrum(z, normalize=True), np.linalg.svd(np.cov(unit.T, bias=True), compute_uv=False), rtol=1e-9
    )


def test_collapsed_dimensions_are_resolved_far_below_float32():
    values = 10.0 ** -np.arange(0, 20, 2)
    # The mean of 3 is 3e9 times the smallest deviations of 1e-9, so float64 leaves them an accuracy of 1e-6.
    np.testing.assert_allclose(spectrum(embedding(values), normalize=False), values, rtol=1e-4)


def test_more_dimensions_than_rows():
    assert (spectrum(np.random.default_rng(0).normal(size=(4, 10)), normalize=False)[4:] == 0).all()


def test_float32_entries_are_exact_to_their_own_rounding():
    """The Gram matrix in float64: 1e-15 of the largest, a hundredth of 1e-13, with a mean of 10 times the spread."""
    z = (embedding(10.0 ** -np.arange(0, 14), n=2000) + 7.0).astype(np.float32)
    wide = z.astype(np.float64)
    exact = np.linalg.svd(wide - wide.mean(axis=0), compute_uv=False) ** 2 / len(z)
    found = spectrum(z)
    resolved = exact > 1e-11 * exact[0]
    assert resolved.sum() >= 11
    np.testing.assert_allclose(found[resolved], exact[resolved], rtol=1e-2)
    np.testing.assert_allclose(found, exact, atol=1e-14 * exact[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_batches_and_files_give_what_the_array_gives(tmp_path, dtype, monkeypatch):
    z = embedding(2.0 ** -np.arange(5)).astype(dtype)
    expected = spectrum(z)
    np.save(tmp_path / "z.npy", z)
    mapped = np.load(tmp_path / "z.npy", mmap_mode="r")
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 1)  # blocks of 64 rows
    # float32 rows have rounding of 6e-8, the same in all cases; float64 sums differ in their last digits.
    for same in (mapped, iter([z[:7], z[7:200], z[200:]]), [z[:150], z[150:]], jnp.asarray(z)):
        np.testing.assert_allclose(spectrum(same), expected, rtol=1e-6 if dtype == np.float64 else 1e-12)


def test_integers_lists_and_bfloat16():
    z = np.random.default_rng(0).integers(0, 9, (20, 3))
    expected = spectrum(z.astype(np.float64))
    for same in (z, z.astype(np.uint8), z.tolist(), z.astype(ml_dtypes.bfloat16), jnp.asarray(z, jnp.bfloat16)):
        np.testing.assert_allclose(spectrum(same), expected, rtol=1e-12)


def test_tensors_of_pytorch():
    torch = pytest.importorskip("torch")
    z = torch.arange(12.0).reshape(4, 3) ** 2
    expected = spectrum(z.numpy())
    for same in (z, z.clone().requires_grad_(), z.to(torch.bfloat16), [z[:2], z[2:]]):
        np.testing.assert_allclose(spectrum(same), expected, atol=1e-12 * expected[0])


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (np.zeros(3), r"^z must .*found \(3,\)"),
        (np.zeros((1, 3)), r"^z must .*found 1 rows"),
        (np.full((3, 3), np.nan), "^z must be finite, found NaN"),
        (np.zeros((3, 0)), r"^z must .*found \(3, 0\)"),
        (np.zeros((3, 2), complex), "^z must hold real numbers, found complex128"),
        ([[1.0, 2.0], [3.0]], "^z must .*found rows of different lengths"),
        ([], "found"),
        (iter([]), "^z must .*found 0 rows"),
        (iter([np.zeros((2, 3)), np.zeros((2, 4))]), "^batches must have the same d, found 3 and 4"),
        (iter([np.zeros(3)]), r"^a batch must have the shape \[n, d\], found \(3,\)"),
        (7, "^z must be an array .*found int"),
    ],
)
def test_bad_input(z, message):
    with pytest.raises(ValueError, match=message):
        spectrum(z)


def test_the_spectrum_is_computed_without_matplotlib():
    code = "import sys; from dcjax.collapse import spectrum; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=new_process(), check=True)


def test_plot(tmp_path, monkeypatch):
    figures, save = [], Figure.savefig

    def savefig(figure, *args, **options):
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    curves = {"r": 2.0 ** -np.arange(64), "z": np.r_[np.ones(8), np.zeros(8)]}
    files = [tmp_path / "one.png", tmp_path / "two.png"]
    for file in files:
        plot_spectra(curves, file, title="digits")
    (axes,) = figures[0].axes
    assert axes.get_title() == "digits"
    assert "rank" in axes.get_xlabel()
    assert "singular value" in axes.get_ylabel()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["r", "z"]
    r, z = axes.lines
    np.testing.assert_array_equal(r.get_xdata(), np.arange(1, 65))  # ranks count from 1
    np.testing.assert_allclose(r.get_ydata(), np.maximum(-np.arange(64) * np.log(2), np.log(1e-14)))
    # Zeros have no logarithm: they lie at the floor, below everything that float32 can tell from zero.
    np.testing.assert_array_equal(z.get_ydata()[:8], 0)
    assert np.isfinite(z.get_ydata()).all()
    assert (z.get_ydata()[8:] < np.log(1e-13)).all()
    assert r.get_linestyle() != z.get_linestyle()
    assert matplotlib.image.imread(files[0]).shape[1] == 840
    assert files[0].read_bytes() == files[1].read_bytes()
