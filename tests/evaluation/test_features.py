"""Features on the host and on the devices: where each row is, how much memory it takes, and what is computed of it."""

import functools
import re

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import place

from dcjax.collapse import Covariance, spectrum, unit_rows
from dcjax.evaluation import (
    TOLERANCE,
    extract,
    features,
    fit_logistic,
    gather_rows,
    make_encode,
    place_rows,
    rows_per_process,
    standardize,
    take_rows,
    top_k_accuracy,
)
from dcjax.evaluation.features import NO_IMAGE
from dcjax.runtime.errors import SettingError
from dcjax.runtime.mesh import make_mesh

WIDTH = 6


def batches_of(images, batch_size, process=0, processes=1):
    """What `eval_batches` gives a process: images whose only pixel is their index."""
    share = batch_size // processes
    for start in range(process * share, -(-images // batch_size) * batch_size, batch_size):
        index = np.arange(start, start + share)
        mask = index < images
        image = np.where(mask, index, 0).astype(np.uint8)[:, None, None, None]
        yield {
            "image": image,
            "label": np.where(mask, index % 3, -1).astype(np.int32),
            "index": np.where(mask, index, -1),
            "mask": mask,
        }


def forward(scale, images):
    r = images.reshape(-1, 1) * scale * jnp.arange(1.0, WIDTH + 1)
    return {"r": r, "z": r[:, :2]}


def extracted(images, batch_size, devices, **options):
    mesh = make_mesh(devices)
    return extract(
        make_encode(forward, mesh), 1.0, batches_of(images, batch_size), mesh, images=images, **options
    ), mesh


@pytest.mark.parametrize(("images", "batch_size", "devices"), [(45, 16, 8), (45, 7, 1), (3, 16, 8), (48, 16, 8)])
def test_every_image_is_kept_once_and_memory_is_what_the_formula_says(images, batch_size, devices):
    found, mesh = extracted(images, batch_size, devices, keep=("r", "z"))
    rows = rows_per_process(images, batch_size=batch_size, processes=1, devices=devices)
    assert found.r.nbytes == rows * WIDTH * 4
    assert found.z.nbytes == rows * 2 * 4
    assert found.own == images
    np.testing.assert_array_equal(found.index[:images], np.arange(images))
    assert (found.index[images:] == NO_IMAGE).all()
    np.testing.assert_array_equal(found.r[:images, 1], 2.0 * np.arange(images))
    assert (found.r[images:] == 0).all()
    np.testing.assert_array_equal(found.labels, np.arange(images) % 3)
    np.testing.assert_array_equal(gather_rows(found.r, found), found.r[:images])

    placed = place_rows(found, mesh, columns=slice(1, 4))
    assert placed.r.shape == (rows, 3)
    assert [shard.data.nbytes for shard in placed.r.addressable_shards] == [rows // devices * 3 * 4] * devices
    np.testing.assert_array_equal(placed.r, found.r[:, 1:4])
    np.testing.assert_array_equal(placed.labels, np.r_[found.labels, [-1] * (rows - images)])


def test_only_what_is_asked_for_is_kept():
    found, _ = extracted(20, 8, 1)
    assert found.z is None


@pytest.mark.parametrize("images", [45, 100, 3])
def test_the_formula_holds_every_processs_share(images):
    """Four processes of two devices each: enough rows for the one that extracts most, in whole rows of its devices."""
    shares = [sum(int(batch["mask"].sum()) for batch in batches_of(images, 32, process, 4)) for process in range(4)]
    assert sum(shares) == images
    assert rows_per_process(images, batch_size=32, processes=4, devices=8) == -(-max(shares) // 2) * 2


def test_the_memory_of_imagenet_is_what_the_docstring_says():
    images, width = 1_281_167, 2048
    for processes in (1, 8):
        rows = rows_per_process(images, batch_size=128 * processes, processes=processes, devices=processes)
        gigabytes = f"{rows * width * 4 / 1e9:.2f} GB"
        assert re.search(rf"^    {processes} process(es)?: +{gigabytes} of host memory", features.__doc__, re.M)


def test_features_that_are_not_finite_are_named():
    mesh = make_mesh(1)
    encode = make_encode(forward, mesh)
    with pytest.raises(SettingError, match="the features of the encoder are not finite"):
        extract(encode, jnp.nan, batches_of(20, 8), mesh, images=20)


@pytest.mark.parametrize("devices", [1, 8])
def test_rows_are_taken_by_their_image(devices):
    mesh = make_mesh(devices)
    x = np.random.default_rng(0).normal(size=(45, 3)).astype(np.float32)
    placed = place(x, np.zeros(45, np.int32), mesh)
    wanted = np.array([[44, 0, 7, 7], [12, 43, 1, 30]], np.int32)
    np.testing.assert_array_equal(take_rows(placed.r, placed.index, wanted, mesh=mesh), x[wanted])


def test_the_logistic_regression_has_one_optimum_on_any_number_of_devices(x64):
    """Rows that pad the last devices do not count, neither in the map to standard features nor in the accuracy."""
    rng = np.random.default_rng(0)
    x, labels = 3 + rng.normal(size=(45, 4)), rng.integers(3, size=45).astype(np.int32)
    results = []
    for devices in (1, 8):
        placed = place(x, labels, make_mesh(devices))
        wide = placed.r.astype(jnp.float64)
        (scaled,) = standardize(wide, where=placed.labels >= 0)
        classifier = fit_logistic(scaled, placed.labels, classes=3, tolerance=1e-13)
        results.append((classifier.w, classifier.b, top_k_accuracy(classifier, scaled, placed.labels, k=1)))
        assert classifier.residual <= 1e-13
    # Within n * sqrt(3 d) * 1e-13 of the optimum both times.
    for one, eight in zip(*results, strict=True):
        np.testing.assert_allclose(one, eight, atol=1e-10)


def test_the_fit_of_fewer_rows_than_features_on_eight_devices():
    rng = np.random.default_rng(0)
    placed = place(rng.normal(size=(12, 40)).astype(np.float32), np.arange(12, dtype=np.int32) % 3, make_mesh(8))
    assert fit_logistic(placed.r, placed.labels, classes=3).residual <= TOLERANCE


@pytest.mark.parametrize("normalize", [False, True])
def test_the_spectrum_from_the_parts_of_several_processes(normalize):
    """Parts of different sizes, one of them empty, and values of which a sum of covariances would lose the half."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(60, 8)) * 10.0 ** -np.arange(0, 16, 2) + 1
    states = []
    for part in np.split(z, [5, 5, 40]):
        state = Covariance.init(8, np.float64)
        states.append(state.update(unit_rows(part) if normalize else part))
    found = functools.reduce(Covariance.merge, states).singular_values()
    expected = spectrum(z, normalize=normalize)
    # The singular values themselves are exact to a rounding of the largest entries, here the mean of 1.
    np.testing.assert_allclose(np.sqrt(found), np.sqrt(expected), rtol=1e-10, atol=1e-14)
