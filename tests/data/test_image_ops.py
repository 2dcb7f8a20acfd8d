"""Operations on one image, against the slow float64 reference.

The tolerance is 1e-5 in float32: a few roundings of numbers near 1, and sums of a few hundred of them.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_augment import (
    check,
    check_planar,
    noise,
    photo,
    planar,
    slow_blur,
    slow_grey,
    slow_jitter,
    slow_op,
    slow_resize,
)

from dcjax.data import image_ops

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def test_blends():
    image, factors = photo(14, 18), np.float32([0.0, 0.6, 1.0, 1.4])
    blends = (image_ops.adjust_brightness, image_ops.adjust_contrast, image_ops.adjust_saturation)
    blended = jax.jit(jax.vmap(lambda x, f: [blend(x, f) for blend in blends], in_axes=(None, 0)))
    for op, found in enumerate(blended(planar(image), factors)):
        check_planar(found, np.stack([slow_op(image, op, float(factor)) for factor in factors]))


def test_hue():
    image = photo(14, 18)
    image[0, 0] = 1.0, 0.0, 0.0
    turn = jax.jit(image_ops.adjust_hue)
    for shift in (-0.5, -0.1, 0.0, 0.07, 0.5):
        check_planar(turn(planar(image), jnp.float32(shift)), slow_op(image, 3, shift))
    check_planar(turn(planar(image), jnp.float32(0)), image)
    # A third of a turn permutes the primaries.
    check(turn(planar(image), jnp.float32(1 / 3))[:, 0, 0], np.array([0.0, 1.0, 0.0]))


def test_grayscale_solarize_flip():
    image = photo(14, 18)
    image[0, 0] = 0.5
    grey, solarized, flipped = jax.jit(lambda x: (image_ops.grayscale(x), image_ops.solarize(x), image_ops.flip(x)))(
        planar(image)
    )
    check_planar(grey, slow_grey(image))
    np.testing.assert_array_equal(grey[1:], grey[:-1])
    check_planar(solarized, np.where(image >= 0.5, 1 - image, image))
    assert float(solarized[0, 0, 0]) == 0.5
    check_planar(flipped, image[:, ::-1])


@pytest.mark.parametrize(("sigma", "radius"), [(0.1, 6), (1.3, 6), (2.0, 6), (2.0, 13)])
def test_blur(sigma, radius):
    image = photo(14, 18)
    blurred = jax.jit(image_ops.gaussian_blur, static_argnames="radius")
    check_planar(blurred(planar(image), jnp.float32(sigma), radius=radius), slow_blur(image, sigma, radius))
    with pytest.raises(ValueError, match="found 14 x 18"):
        image_ops.gaussian_blur(planar(image), sigma, radius=14)


def test_jitter_applies_its_operations_in_every_order():
    image = photo(10, 12)
    rng = np.random.default_rng(0)
    u = rng.random((24, 8)).astype(np.float32)
    u[:, 4:] = [[0.1 + 0.2 * p for p in order] for order in itertools.permutations(range(4))]
    strengths = (0.4, 0.4, 0.2, 0.1)
    jitter = functools.partial(image_ops.color_jitter, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    found = jax.jit(jax.vmap(jitter, in_axes=(None, 0)))(planar(image), u)
    expected = np.stack([slow_jitter(image, row.astype(np.float64), strengths) for row in u])
    check_planar(found, expected)
    assert len({e.tobytes() for e in expected}) == 24


@pytest.mark.parametrize(
    "strengths", [(0.4, 0.0, 0.0, 0.0), (0.4, 0.4, 0.0, 0.0), (0.0, 0.0, 1.5, 0.5), (0.0, 0.0, 0.0, 0.5)]
)
def test_jitter_of_some_operations(strengths):
    image = photo(10, 12)
    jitter = jax.jit(image_ops.color_jitter, static_argnames=("brightness", "contrast", "saturation", "hue"))
    names = dict(zip(("brightness", "contrast", "saturation", "hue"), strengths, strict=True))
    for u in np.random.default_rng(1).random((4, 8)).astype(np.float32):
        check_planar(jitter(planar(image), u, **names), slow_jitter(image, u.astype(np.float64), strengths))


BOXES = [(0, 0, 24, 30), (3, 5, 20, 21), (7, 9, 6, 5), (0, 29, 24, 1), (2, 0, 11, 30)]


@pytest.mark.parametrize("interpolation", image_ops.KERNELS)
@pytest.mark.parametrize("size", [7, 32])
def test_resized_crop(size, interpolation):
    image = photo(24, 30)
    jitted = jax.jit(image_ops.resized_crop, static_argnames=("size", "interpolation"))
    resize = functools.partial(jitted, interpolation=interpolation)
    for box in BOXES:
        found = resize(planar(image), jnp.asarray(box, jnp.int32), size=size)
        check_planar(found, slow_resize(image, box, size, interpolation))
    whole = resize(planar(image[:, :24]), jnp.asarray((0, 0, 24, 24), jnp.int32), size=24)
    check_planar(whole, image[:, :24], 1e-6)


@pytest.mark.parametrize("interpolation", image_ops.KERNELS)
@pytest.mark.parametrize("size", [7, 32])
def test_resized_crop_is_that_of_pil(size, interpolation):
    pil = pytest.importorskip("PIL.Image")
    resampling = pil.Resampling[interpolation.upper()]
    image = noise(24, 30, 3)
    smooth = np.round(255 * (0.5 + 0.4 * np.sin(np.mgrid[:24, :30].sum(0)[..., None] / np.array([4.0, 6.0, 9.0]))))
    jitted = jax.jit(image_ops.resized_crop, static_argnames=("size", "interpolation"))
    resize = functools.partial(jitted, interpolation=interpolation)
    for top, left, h, w in BOXES:
        corners, box = (left, top, left + w, top + h), jnp.asarray((top, left, h, w), jnp.int32)
        # In floating point PIL rounds nothing, so noise will do; in 8 bits it rounds and clips after either axis.
        floats = [pil.fromarray((image[..., c] / 255).astype(np.float32)).crop(corners) for c in range(3)]
        expected = np.stack([np.asarray(f.resize((size, size), resampling)) for f in floats], axis=-1)
        check_planar(resize(planar(image / 255), box, size=size), np.clip(expected, 0, 1))
        bytes_ = pil.fromarray(smooth.astype(np.uint8)).crop(corners).resize((size, size), resampling)
        found = resize(planar(smooth / 255), box, size=size)
        check_planar(found, np.asarray(bytes_) / 255, 1.2 / 255)
