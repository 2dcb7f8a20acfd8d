"""Operations in JAX on one float image with colours in [0, 1]; `dcjax.data.augment` composes them.

Images are planar, `[3, h, w]`: rows of one colour lie together in memory, so XLA computes them as vectors. With the
colours last the operations take ten times as long on CPU.

The formulas are torchvision's, and PIL's for the resize, so that a recipe means the same here. Nothing is rounded to 8
bits between two operations: image libraries round only because they store bytes.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

ATTEMPTS = 10

Image = Float[Array, "3 h w"]
Scalar = Float[Array, ""] | float


# Geometry of one image.


def flip(image: Image) -> Image:
    """Mirror image, left to right; `[3, h, w]` to `[3, h, w]`."""
    return image[:, :, ::-1]


def crop_box(
    u: Float[Array, "draws"], *, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Int[Array, "4"]:
    """Box `(top, left, h, w)` of a random resized crop, in whole pixels.

    Ten attempts draw an area (share of the image, uniform in `scale`) and an aspect ratio (log-uniform in `ratio`).
    The first box that fits gets a uniform place. If none fits, it is the largest central box with a ratio in `ratio`.

    Args:
      u: `[2 * ATTEMPTS + 2]` uniform numbers: areas, ratios, top, left.
      height, width: height and width of the image.
      scale, ratio: (low, high) of the area and of the ratio width / height.

    References:
      torchvision's `RandomResizedCrop.get_params`.
    """
    areas = height * width * (scale[0] + (scale[1] - scale[0]) * u[:ATTEMPTS])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratios = jnp.exp(low + (high - low) * u[ATTEMPTS : 2 * ATTEMPTS])
    ws = jnp.round(jnp.sqrt(areas * ratios)).astype(jnp.int32)
    hs = jnp.round(jnp.sqrt(areas / ratios)).astype(jnp.int32)
    fits = (ws > 0) & (ws <= width) & (hs > 0) & (hs <= height)
    first = jnp.argmax(fits)
    h = hs[first]
    w = ws[first]
    # Since u < 1 in float32, the product stays below the number of places.
    top = jnp.floor(u[2 * ATTEMPTS] * (height - h + 1).astype(jnp.float32)).astype(jnp.int32)
    left = jnp.floor(u[2 * ATTEMPTS + 1] * (width - w + 1).astype(jnp.float32)).astype(jnp.int32)
    return jnp.where(fits[first], jnp.stack([top, left, h, w]), _central_box(height, width, ratio))


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> Array:
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return jnp.asarray(((height - h) // 2, (width - w) // 2, h, w), jnp.int32)


def resized_crop(image: Image, box: Int[Array, "4"], *, size: int, interpolation: str) -> Float[Array, "3 size size"]:
    """Resizes a box of the image to `[3, size, size]` by antialiased interpolation, and clips it to [0, 1].

    Args:
      image: `[3, h, w]` in [0, 1].
      box: `(top, left, h, w)` in pixels.
      size: side of the result.
      interpolation: a key of `KERNELS`.

    References:
      PIL's resize of the cropped image, which is torchvision's with antialiasing; Keys (1981), a = -0.5, for bicubic.
    """
    top, left, h, w = box
    kernel = KERNELS[interpolation]
    rows = _weights(kernel, top, h, image.shape[1], size)
    columns = _weights(kernel, left, w, image.shape[2], size)
    # The default precision of a matrix product is TF32 on GPU and bfloat16 on TPU, which is coarser than 8-bit pixels.
    precision = jax.lax.Precision.HIGHEST
    image = jnp.einsum("oh,chw->cow", rows, image, precision=precision)
    image = jnp.einsum("cow,pw->cop", image, columns, precision=precision)
    return jnp.clip(image, 0.0, 1.0)  # bicubic overshoots at edges


def _linear(x: Array) -> Array:
    return jnp.maximum(1.0 - x, 0.0)


def _cubic(x: Array) -> Array:
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


# Name to a function of the distance from the output's centre. `crops.INTERPOLATIONS` lists the same names.
KERNELS: dict[str, Callable[[Array], Array]] = {"bilinear": _linear, "bicubic": _cubic}


def _weights(kernel: Callable[[Array], Array], start: Array, extent: Array, inputs: int, outputs: int) -> Array:
    """Weights `[outputs, inputs]` of one axis. Pixels outside the crop weigh 0, so that the shape stays static."""
    # The distance of pixel centre i + 1/2 from output centre (o + 1/2) * extent / outputs, in units of an input pixel
    # when enlarging and of an output pixel when shrinking, so that the kernel widens to all pixels of an output. The
    # integers are exact; two float32 centres would lose the digits that their difference needs.
    pixels = jnp.arange(inputs, dtype=jnp.int32)[None, :] - start
    distance = (2 * pixels + 1) * outputs - (2 * jnp.arange(outputs, dtype=jnp.int32)[:, None] + 1) * extent
    x = jnp.abs(distance).astype(jnp.float32) / (2 * jnp.maximum(extent, outputs)).astype(jnp.float32)
    weights = jnp.where((pixels >= 0) & (pixels < extent), kernel(x), 0.0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def gaussian_blur(image: Image, sigma: Scalar, *, radius: int) -> Image:
    """Gaussian blur with `2 * radius + 1` normalised taps and reflected borders (the edge pixel is not repeated).

    Args:
      image: `[3, h, w]`.
      sigma: standard deviation in pixels.
      radius: taps on either side; static, and below both sides of the image.

    Raises:
      ValueError: the image is too small to be reflected.

    References:
      torchvision's `gaussian_blur`.
    """
    height, width = image.shape[1:]
    if radius >= min(height, width):
        raise ValueError(f"image: found {height} x {width}, expected more than {radius} pixels a side to blur it")
    taps = jnp.exp(-0.5 * (jnp.arange(-radius, radius + 1, dtype=jnp.float32) / sigma) ** 2)
    taps /= jnp.sum(taps)
    return _convolve(_convolve(image, taps, axis=1), taps, axis=2)


def _convolve(image: Array, taps: Array, *, axis: int) -> Array:
    radius, size = len(taps) // 2, image.shape[axis]
    padding = [(radius, radius) if i == axis else (0, 0) for i in range(3)]
    # Without the barrier XLA merges the operations before it into the sum and computes them again for every tap.
    padded = jax.lax.optimization_barrier(jnp.pad(image, padding, mode="reflect"))
    total = taps[0] * jax.lax.slice_in_dim(padded, 0, size, axis=axis)
    for k in range(1, len(taps)):
        total += taps[k] * jax.lax.slice_in_dim(padded, k, k + size, axis=axis)
    return total


# Colour of one image.


def luminance(image: Image) -> Float[Array, "1 h w"]:
    """Grey value of every pixel, `[1, h, w]`, with the weights of ITU-R BT.601 as torchvision rounds them."""
    return 0.2989 * image[0:1] + 0.587 * image[1:2] + 0.114 * image[2:3]


def grayscale(image: Image) -> Image:
    """The grey image, `[3, h, w]` with three equal channels."""
    return jnp.broadcast_to(luminance(image), image.shape)


def adjust_brightness(image: Image, factor: Scalar) -> Image:
    """Multiplies every colour by `factor` and clips it to [0, 1], as torchvision's `adjust_brightness`."""
    return jnp.clip(factor * image, 0.0, 1.0)


def adjust_contrast(image: Image, factor: Scalar) -> Image:
    """Multiplies the distance to the mean grey value by `factor` and clips, as torchvision's `adjust_contrast`."""
    # The rows are summed first: XLA then adds vectors, where a sum over the whole image goes number by number.
    total = jnp.sum(jnp.sum(luminance(image), axis=1))
    return _blend(image, total / (image.shape[1] * image.shape[2]), factor)


def adjust_saturation(image: Image, factor: Scalar) -> Image:
    """Multiplies the distance to a pixel's grey value by `factor` and clips, as torchvision's `adjust_saturation`."""
    return _blend(image, luminance(image), factor)


def _blend(image: Array, other: Array, factor: Scalar) -> Array:
    return jnp.clip(factor * image + (1 - factor) * other, 0.0, 1.0)


def adjust_hue(image: Image, shift: Scalar) -> Image:
    """Turns the hue by `shift` turns of the colour circle and keeps saturation and value (HSV).

    The largest channel and the chroma do not change with the hue, so each new channel is a piecewise linear function of
    the hue, between the smallest and the largest channel. The result is that of torchvision's `adjust_hue`.
    """
    r, g, b = image
    value = jnp.maximum(jnp.maximum(r, g), b)
    chroma = value - jnp.minimum(jnp.minimum(r, g), b)
    inverse = 1.0 / jnp.maximum(chroma, 1e-6)  # a pixel of less chroma is grey, whatever its hue
    # The largest channel is found by order and not by `value == r`: XLA may compute a colour twice, fused in two ways,
    # and then no channel equals the maximum. If two channels are nearly equal, either one gives the same hue.
    red = (g - b) * inverse
    green = 2.0 + (b - r) * inverse
    blue = 4.0 + (r - g) * inverse
    sextant = jnp.where((r >= g) & (r >= b), red, jnp.where(g >= b, green, blue))

    def channel(offset: float) -> Array:
        k = sextant + (6.0 * shift + offset)
        k = k - 6.0 * jnp.floor(k / 6.0)
        return value - chroma * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)

    return jnp.stack([channel(5.0), channel(3.0), channel(1.0)])


def color_jitter(
    image: Image, u: Float[Array, "8"], *, brightness: float, contrast: float, saturation: float, hue: float
) -> Image:
    """Changes brightness, contrast, saturation and hue by random amounts, in a uniformly random order.

    Args:
      image: `[3, h, w]` in [0, 1].
      u: `[8]` uniform numbers: four amounts, then four numbers whose order is the order of the operations.
      brightness, contrast, saturation: static strength `b`; the factor is U[max(0, 1 - b), 1 + b]; 0 leaves it out.
      hue: static strength `h`; the shift is U[-h, h] turns; 0 leaves it out.

    References:
      torchvision's `ColorJitter`.
    """
    operations: list[Callable[[Array], Array]] = []
    times = []
    blends = ((brightness, adjust_brightness), (contrast, adjust_contrast), (saturation, adjust_saturation))
    for i, (strength, blend) in enumerate(blends):
        if strength > 0:
            operations.append(functools.partial(blend, factor=_factor(strength, u[i])))
            times.append(u[4 + i])
    if hue > 0:
        operations.append(functools.partial(adjust_hue, shift=hue * (2 * u[3] - 1)))
        times.append(u[7])
    if not operations:
        return image
    order = jnp.argsort(jnp.stack(times))
    # Each turn applies one operation. Even where `vmap` makes the switch compute all of them, that is one pass a turn.
    return jax.lax.fori_loop(0, len(operations), lambda i, x: jax.lax.switch(order[i], operations, x), image)


def _factor(strength: float, u: Array) -> Array:
    low = max(0.0, 1.0 - strength)
    return low + (1.0 + strength - low) * u


def solarize(image: Image) -> Image:
    """Inverts colours of 0.5 and above, as torchvision's `solarize` at threshold 0.5."""
    return jnp.where(image >= 0.5, 1.0 - image, image)
