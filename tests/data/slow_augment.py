"""The augmentation in float64, one image at a time, in loops, from the formulas; and what its tests share."""

import colorsys
import math

import jax
import jax.numpy as jnp
import numpy as np

from dcjax.data import Augmentation, augment

PAPER = dict(
    crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), interpolation="bicubic", flip=0.5, jitter=0.8,
    brightness=0.4, contrast=0.4,
    saturation=0.2, hue=0.1, grayscale=0.2, blur=(1.0, 0.1), blur_sigma=(0.1, 2.0), solarize=(0.0, 0.2),
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
)  # fmt: skip
PLAIN = dict(
    PAPER, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grayscale=0.0, blur=(0.0, 0.0),
    solarize=(0.0, 0.0), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),
)  # fmt: skip


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def photo(height: int, width: int) -> np.ndarray:
    """A float64 image with smooth parts, edges, grey and saturated pixels."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([np.sin(x / 3) * 0.5 + 0.5, np.cos(y / 4 + x / 9) * 0.5 + 0.5, (x * y % 7) / 6], axis=-1)
    image[: height // 4, : width // 4] = 0.5
    image[-3:, -3:] = (1.0, 0.0, 1.0)
    image[-3:, :3] = 0.0
    return image


def check(found: jax.Array, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=0, atol=tolerance)


def planar(image: np.ndarray) -> jax.Array:
    """`[..., h, w, 3]` to float32 `[..., 3, h, w]`, as `dcjax.data.image_ops` has its images."""
    return jnp.asarray(np.moveaxis(image, -1, -3), jnp.float32)


def check_planar(found: jax.Array, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """An image of `dcjax.data.image_ops` against `[..., h, w, 3]`."""
    check(jnp.moveaxis(found, -3, -1), expected, tolerance)


def slow_weights(start: int, extent: int, inputs: int, outputs: int, interpolation: str) -> np.ndarray:
    def triangle(x: float) -> float:
        return max(1 - abs(x), 0.0)

    def keys(x: float) -> float:
        x = abs(x)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    kernel = {"bilinear": triangle, "bicubic": keys}[interpolation]
    weights = np.zeros((outputs, inputs))
    scale = extent / outputs
    for o in range(outputs):
        for i in range(start, start + extent):
            weights[o, i] = kernel((i - start + 0.5 - (o + 0.5) * scale) / max(scale, 1.0))
    return weights / weights.sum(1, keepdims=True)


def slow_resize(image: np.ndarray, box: tuple[int, ...], size: int, interpolation: str) -> np.ndarray:
    top, left, h, w = box
    rows = slow_weights(top, h, image.shape[0], size, interpolation)
    columns = slow_weights(left, w, image.shape[1], size, interpolation)
    return np.clip(np.einsum("oh,pw,hwc->opc", rows, columns, image), 0, 1)


def slow_box(u: np.ndarray, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]):
    for k in range(10):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * u[k])
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** u[10 + k]
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(u[20] * (height - h + 1)), int(u[21] * (width - w + 1)), h, w
    h, w = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def slow_grey(image: np.ndarray) -> np.ndarray:
    return (image @ np.array([0.2989, 0.587, 0.114]))[..., None]


def slow_op(image: np.ndarray, op: int, amount: float) -> np.ndarray:
    if op == 3:
        turned = image.copy()
        for place in np.ndindex(*image.shape[:2]):
            h, s, v = colorsys.rgb_to_hsv(*image[place])
            turned[place] = colorsys.hsv_to_rgb((h + amount) % 1, s, v)
        return turned
    other = (0.0, slow_grey(image).mean(), slow_grey(image))[op]
    return np.clip(amount * image + (1 - amount) * other, 0, 1)


def slow_jitter(image: np.ndarray, u: np.ndarray, strengths: tuple[float, ...]) -> np.ndarray:
    for op in np.argsort(u[4:8]):
        b = strengths[op]
        if b > 0:
            low, high = (-b, b) if op == 3 else (max(0, 1 - b), 1 + b)
            image = slow_op(image, op, low + (high - low) * u[op])
    return image


def slow_blur(image: np.ndarray, sigma: float, radius: int) -> np.ndarray:
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        pad = [(0, 0)] * 3
        pad[axis] = (radius, radius)
        image = np.apply_along_axis(np.convolve, axis, np.pad(image, pad, mode="reflect"), taps, mode="valid")
    return image


def slow_view(image: np.ndarray, u: np.ndarray, view: int, size: int, s: Augmentation) -> np.ndarray:
    box = slow_box(u, *image.shape[:2], s.crop_scale, s.crop_ratio)
    x = slow_resize(image / 255, box, size, s.interpolation)
    if u[augment.FLIP] < s.flip:
        x = x[:, ::-1]
    if u[augment.JITTER] < s.jitter:
        x = slow_jitter(x, u[augment.JITTER_DRAWS], (s.brightness, s.contrast, s.saturation, s.hue))
    if u[augment.GRAYSCALE] < s.grayscale:
        x = np.repeat(slow_grey(x), 3, axis=-1)
    if u[augment.BLUR] < s.blur[view]:
        low, high = s.blur_sigma
        x = slow_blur(x, low + (high - low) * u[augment.SIGMA], math.ceil(3 * high))
    if u[augment.SOLARIZE] < s.solarize[view]:
        x = np.where(x >= 0.5, 1 - x, x)
    return (x - s.mean) / s.std
