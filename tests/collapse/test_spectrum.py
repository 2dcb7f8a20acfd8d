"""The spectrum, the effective rank and the plot."""

import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from helpers import new_process
from matplotlib.figure import Figure

from dcjax.collapse import effective_rank, spectrum
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


def test_effective_rank_of_known_spectra():
    s = np.sqrt(2.0 ** -np.arange(8))
    assert effective_rank(s) == pytest.approx(6.14274720751, abs=1e-10)
    assert effective_rank(s**2) == pytest.approx(3.89866687547739, abs=1e-12)  # by mpmath, 30 digits
    assert effective_rank(np.array([1.0] * 4 + [0.0] * 4)) == pytest.approx(4)
    assert effective_rank(np.zeros(3)) == 0


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (np.zeros(3), r"^z must .*found \(3,\)"),
        (np.zeros((1, 3)), r"^z must .*found \(1, 3\)"),
        (np.full((3, 3), np.nan), "^z must be finite, found NaN"),
    ],
)
def test_bad_input(unchecked_shapes, z, message):
    with pytest.raises(ValueError, match=message):
        spectrum(z, normalize=False)


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
