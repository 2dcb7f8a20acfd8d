"""The views, against the slow float64 reference; the draws."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats
from slow_augment import PAPER, PLAIN, check, noise, slow_box, slow_resize, slow_view

from dcjax.data import Augmentation, augment, image_ops
from dcjax.data.augment import normalize, one_view, two_views, view_draws
from dcjax.data.crops import DRAWS, random_resized_crop_box

pytestmark = pytest.mark.usefixtures("strict_dtypes")

views_of = jax.jit(two_views, static_argnames=("size", "settings", "mesh"))
draws_of = jax.jit(jax.vmap(view_draws, in_axes=(None, 0, None)), static_argnums=2)


KEY, POSITIONS, RECIPE = jax.random.key(3), np.arange(100, 116), Augmentation(**PAPER)
# One shape for all tests of the whole recipe, which share its program. The colours survive a blur.
IMAGES = np.kron(noise(16, 5, 5, 3), np.ones((1, 4, 4, 1), np.uint8))
# In colours 1e-5, as in the tests of the operations.
TOLERANCE = 1e-5 / min(RECIPE.std)


# Views.


@pytest.fixture(scope="module")
def reference():
    """Both views of the recipe, in float64."""
    draws = [np.asarray(draws_of(KEY, POSITIONS, view), np.float64) for view in (0, 1)]
    return [
        np.stack([slow_view(i, row, view, 16, RECIPE) for i, row in zip(IMAGES, u, strict=True)])
        for view, u in enumerate(draws)
    ]


def test_views_are_those_of_the_slow_reference(reference):
    for x, expected in zip(views_of(IMAGES, KEY, POSITIONS, size=16, settings=RECIPE), reference, strict=True):
        check(x, expected, TOLERANCE)


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_an_accelerators_views_are_those_of_the_slow_reference(reference, monkeypatch, platform):
    rule = {"tpu": lambda *args, tpu, **_: tpu(*args), "gpu": lambda *args, default, **_: default(*args)}[platform]
    monkeypatch.setattr(jax.lax, "platform_dependent", rule)
    monkeypatch.setattr(augment, "TPU_BYTES", 5 * 4 * 3 * 16**2)  # five images, with a remainder
    compiled = jax.jit(lambda *args: two_views(*args, size=16, settings=RECIPE))
    for x, expected in zip(compiled(IMAGES, KEY, POSITIONS), reference, strict=True):
        check(x, expected, TOLERANCE)


def test_host_crops_pass_through_and_the_probe_only_crops_and_flips():
    crops, key, positions = noise(6, 2, 16, 16, 3), jax.random.key(0), np.arange(6)
    x, x_prime = views_of(crops, key, positions, size=16, settings=Augmentation(**PLAIN))
    # A division by 255 may be compiled to a product: two roundings.
    check(x, crops[:, 0] / 255, 1e-6)
    check(x_prime, crops[:, 1] / 255, 1e-6)
    probe = jax.jit(one_view, static_argnames=("size", "settings", "cropped"))
    settings = Augmentation(**PAPER)
    u = np.asarray(draws_of(key, positions, 0), np.float64)
    geometry = Augmentation(**{**PAPER, "jitter": 0, "grayscale": 0, "blur": (0, 0)})
    expected = np.stack([slow_view(i, row, 0, 12, geometry) for i, row in zip(crops[:, 0], u, strict=True)])
    check(probe(crops[:, 0], key, positions, size=12, settings=settings, cropped=False), expected, 1e-4)
    expected = np.stack([i[:, ::-1] if row[augment.FLIP] < 0.5 else i for i, row in zip(crops[:, 0], u, strict=True)])
    found = probe(crops[:, 0], key, positions, size=16, settings=settings, cropped=True)
    check(found, (expected / 255 - settings.mean) / settings.std)


def test_normalize():
    images, settings = noise(3, 20, 20, 3), Augmentation(**PAPER)
    scale = functools.partial(
        jax.jit(normalize, static_argnames=("size", "interpolation", "mean", "std")), mean=settings.mean
    )
    check(
        scale(images, size=20, interpolation="bilinear", std=settings.std),
        (images / 255 - settings.mean) / settings.std,
    )
    resized = np.stack([slow_resize(i / 255, (0, 0, 20, 20), 12, "bilinear") for i in images])
    check(
        scale(images, size=12, interpolation="bilinear", std=settings.std),
        (resized - settings.mean) / settings.std,
        5e-5,
    )


def test_what_is_off_is_not_traced_and_keeps_grey_images_grey():
    digits = Augmentation(**{**PAPER, "flip": 0, "hue": 0, "saturation": 0, "grayscale": 0, "solarize": (0, 0)})
    images = np.repeat(noise(16, 8, 8, 1), 3, axis=-1)
    plain = dict(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    digits = Augmentation(**{**{f: getattr(digits, f) for f in PAPER}, **plain})
    for x in views_of(images, jax.random.key(0), np.arange(16), size=8, settings=digits):
        np.testing.assert_allclose(x, np.broadcast_to(x[..., :1], x.shape), rtol=0, atol=1e-5)

    def trace(images: np.ndarray, **changes) -> str:
        settings = Augmentation(**{**PLAIN, **changes})
        return str(jax.make_jaxpr(lambda *a: two_views(*a, size=8, settings=settings))(images, key, np.arange(4)))

    key, crops = jax.random.key(0), noise(4, 2, 8, 8, 3)
    off = trace(crops)
    assert not any(f" {name}[" in off for name in ("rev", "sort", "dot_general", "exp", "floor", "select_n", "clamp"))
    assert " rev[" in trace(crops, flip=0.5)
    assert " exp " in trace(crops, blur=(1.0, 0.0))
    assert " floor" not in trace(crops, jitter=0.8, hue=0.0)
    assert " floor" in trace(crops, jitter=0.8)


# Draws.


def test_draws_depend_on_seed_position_and_view_alone():
    key, positions = jax.random.key(7), np.array([5, 3, 9, 5, *range(20, 32)])
    u = np.asarray(draws_of(key, positions, 0))
    assert u.shape == (16, augment.DRAWS)
    assert u.min() >= 0
    assert u.max() < 1
    np.testing.assert_array_equal(u[0], u[3])
    np.testing.assert_array_equal(u[2], view_draws(key, 9, 0))
    expected = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, 3), 0), (augment.DRAWS,), jnp.float32)
    np.testing.assert_array_equal(u[1], expected)
    others = [draws_of(key, positions, 1), draws_of(jax.random.key(8), positions, 0)]
    assert all(not np.any(u == np.asarray(other)) for other in others)
    place = np.random.default_rng(0).permutation(16)
    x, _ = views_of(IMAGES, KEY, POSITIONS, size=16, settings=RECIPE)
    y, _ = views_of(IMAGES[place], KEY, POSITIONS[place], size=16, settings=RECIPE)
    np.testing.assert_allclose(x[place], y, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("named", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_same_on_one_and_on_eight_devices(named):
    """With the mesh named each device augments its own images; else XLA splits the program, however it likes."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    images, spread = jax.device_put(IMAGES, rows), jax.device_put(POSITIONS, rows)
    for view in (0, 1):
        u = draws_of(KEY, spread, view)
        assert len(u.sharding.device_set) == 8
        np.testing.assert_array_equal(u, draws_of(KEY, POSITIONS, view))  # whole numbers: no rounding
    settings = {"size": 16, "settings": RECIPE, "mesh": mesh if named else None}
    compiled = views_of.lower(images, KEY, spread, **settings).compile()
    if named:
        moving = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
        assert not any(f" {name}(" in compiled.as_text() for name in moving)
    one = views_of(IMAGES, KEY, POSITIONS, size=16, settings=RECIPE)
    for x, y in zip(one, compiled(images, KEY, spread), strict=True):
        assert not named or y.sharding.is_equivalent_to(rows, y.ndim)
        # The compiler may round sums of pixels in another order.
        np.testing.assert_allclose(x, y, rtol=0, atol=TOLERANCE)


def test_draws_are_uniform_and_independent():
    n = 20_000
    u = np.concatenate([draws_of(jax.random.key(0), np.arange(n), view) for view in (0, 1)], axis=1)  # [n, 72]
    # 72 columns and 2556 pairs: bounds that chance alone passes with a probability above 0.99.
    assert all(stats.kstest(column, "uniform").pvalue > 1e-4 for column in u.T)
    correlation = np.corrcoef(u.T) - np.eye(u.shape[1])
    assert np.abs(correlation).max() < 5 / math.sqrt(n)
    order = np.argsort(u[:, augment.JITTER_DRAWS][:, 4:], axis=1)
    counts = np.unique(order @ np.array([64, 16, 4, 1]), return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


def test_operations_happen_as_often_as_they_should():
    n = 4000
    image = np.zeros((9, 9, 3), np.uint8)
    image[4, 4] = 100  # a dark dot on black, whose sum a blur keeps and a brightness changes
    images, positions = np.broadcast_to(image, (n, 9, 9, 3)), np.arange(n)
    settings = dict(PLAIN, jitter=0.8, contrast=0.0, saturation=0.0, hue=0.0, blur=(1.0, 0.1), blur_sigma=(0.5, 0.6))
    views = views_of(images, jax.random.key(0), positions, size=9, settings=Augmentation(**settings))
    for view, x in enumerate(np.asarray(views)):
        total = x[..., 0].sum((1, 2)) * 255 / 100
        assert 0.6 <= total.min() < 0.61
        assert 1.39 < total.max() <= 1.4001
        near(np.abs(total - 1) > 1e-4, 0.8)
        near(x[:, 4, 5, 0] > 0, settings["blur"][view])
    image = np.full((9, 9, 3), (220, 0, 0), np.uint8)
    image[:, :4] = (220, 0, 90)
    settings = dict(PLAIN, flip=0.5, grayscale=0.2, solarize=(0.0, 0.2))
    images = np.broadcast_to(image, (n, 9, 9, 3))
    views = views_of(images, jax.random.key(0), positions, size=9, settings=Augmentation(**settings))
    for view, x in enumerate(np.asarray(views)):
        corner = x[:, 0, 0]
        grey = np.ptp(corner, axis=1) < 1e-5
        near(grey, 0.2)
        near(corner[~grey, 2] < 1e-5, 0.5)  # flipped
        near(
            corner[~grey, 0] < 0.5, settings["solarize"][view]
        )  # the grey value of these colours is below the threshold


def near(happened: np.ndarray, probability: float) -> None:
    """Four standard deviations; never and always are exact."""
    spread = math.sqrt(probability * (1 - probability) / len(happened))
    assert abs(happened.mean() - probability) <= 4 * spread


@pytest.mark.parametrize(("height", "width"), [(32, 32), (75, 100), (20, 200)])
def test_crops_are_distributed_as_on_the_host(height, width):
    n, scale, ratio = 3000, (0.08, 1.0), (3 / 4, 4 / 3)
    u = draws_of(jax.random.key(height), np.arange(n), 0)[:, augment.CROP]
    box = functools.partial(image_ops.crop_box, height=height, width=width, scale=scale, ratio=ratio)
    device = np.asarray(jax.jit(jax.vmap(box))(u))
    slow = np.array([slow_box(row, height, width, scale, ratio) for row in np.asarray(u, np.float64)])
    assert (device == slow).all(1).mean() > 0.999  # a half that float32 rounds to the other side
    rng = np.random.default_rng(0)
    host = np.array(
        [random_resized_crop_box(rng.random(DRAWS), height, width, scale=scale, ratio=ratio) for _ in range(n)]
    )
    same = [random_resized_crop_box(row, height, width, scale=scale, ratio=ratio) for row in np.asarray(u, np.float64)]
    np.testing.assert_array_equal(same, slow)
    for boxes in (device, host):
        top, left, h, w = boxes.T
        assert min(top.min(), left.min(), h.min() - 1, w.min() - 1) >= 0
        assert (top + h).max() <= height
        assert (left + w).max() <= width
    for statistic in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: b[:, 0], lambda b: b[:, 1]):
        assert stats.ks_2samp(statistic(device), statistic(host), method="asymp").pvalue > 1e-3


# Mistakes.


def test_bad_images_are_refused_before_compilation():
    key, settings = jax.random.key(0), Augmentation(**PAPER)
    positions = np.arange(2)
    for images in (
        noise(2, 16, 15, 3),
        noise(2, 16, 16, 1),
        noise(2, 3, 16, 16, 3),
        noise(2, 2, 8, 8, 3),
        noise(2, 16),
    ):
        with pytest.raises(ValueError, match=r"images: found uint8 \["):
            views_of(images, key, positions, size=16, settings=settings)
    with pytest.raises(ValueError, match="found float32"):
        views_of(np.zeros((2, 16, 16, 3), np.float32), key, positions, size=16, settings=settings)
    with pytest.raises(ValueError, match="positions: found shape"):
        views_of(noise(2, 16, 16, 3), key, np.arange(3), size=16, settings=settings)
    with pytest.raises(
        ValueError, match=r"^blur_sigma: found \(0\.1, 2\.0\), expected at most 1, since .* 6 pixels must be below 6"
    ):
        views_of(noise(2, 16, 16, 3), key, positions, size=6, settings=settings)
