"""Cropping on the host, for sources whose images vary in size: NumPy, OpenCV and PIL, no JAX.

The draws depend only on the seed, the example's position in the global stream and the view. So they are the same for
any number of processes and reader threads.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dcjax.runtime.errors import not_known

Box = tuple[int, int, int, int]
ATTEMPTS = 10
DRAWS = 2 * ATTEMPTS + 2
INTERPOLATIONS = ("bilinear", "bicubic")


def check_interpolation(name: str) -> None:
    """Raises `ValueError` for a name that is not among `INTERPOLATIONS`."""
    if name not in INTERPOLATIONS:
        raise ValueError(not_known("interpolation", name, INTERPOLATIONS))


def random_resized_crop_box(
    u: Sequence[float], height: int, width: int, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Box `(top, left, h, w)` of a random resized crop, in whole pixels.

    Args:
      u: `[DRAWS]` uniform numbers: areas, ratios, top, left.
      height, width: of the image.
      scale: smallest and largest area, as a share of the image; drawn uniformly.
      ratio: smallest and largest aspect ratio width / height; drawn log-uniformly.

    Returns:
      The first of ten drawn boxes that fits, at a uniform place; if none fits, the largest central box with a ratio in
      `ratio`.

    References:
      torchvision's `RandomResizedCrop.get_params`. `dcjax.data.image_ops.crop_box` gives the same boxes.
    """
    for k in range(ATTEMPTS):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * u[k])
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** u[ATTEMPTS + k]
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(u[-2] * (height - h + 1)), int(u[-1] * (width - w + 1)), h, w
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def crop_resize(
    image: UInt8[np.ndarray, "h w 3"], box: Box, size: int, *, interpolation: str, out: np.ndarray | None = None
) -> UInt8[np.ndarray, "size size 3"]:
    """Resizes a box of the image.

    Args:
      image: `[h, w, 3]` uint8.
      box: `(top, left, h, w)` in pixels.
      size: side of the result.
      interpolation: one of `INTERPOLATIONS`.
      out: `[size, size, 3]` uint8, contiguous, where the result is written; None for a new array.

    Returns:
      `[size, size, 3]` uint8: PIL's antialiased resize of the box, exactly for bilinear and closely for bicubic.
    """
    top, left, h, w = box
    return _resize(image[top : top + h, left : left + w], size, size, interpolation, out)


def random_crops(
    image: UInt8[np.ndarray, "h w 3"],
    out: UInt8[np.ndarray, "views size size 3"],
    *,
    seed: int,
    position: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: str,
) -> None:
    """Writes independent random resized crops of one image, one per view.

    Args:
      image: `[h, w, 3]` uint8.
      out: `[views, size, size, 3]` uint8, contiguous, where the crops are written.
      seed: the seed of the crops.
      position: the example's position in the global stream.
      scale, ratio: as in `random_resized_crop_box`.
      interpolation: one of `INTERPOLATIONS`.
    """
    for view, u in zip(out, view_draws(seed, position), strict=False):
        box = random_resized_crop_box(u, image.shape[0], image.shape[1], scale=scale, ratio=ratio)
        crop_resize(image, box, len(view), interpolation=interpolation, out=view)


def view_draws(seed: int, position: int) -> list[list[float]]:
    """The uniform numbers of both views of one example, `[2][DRAWS]`."""
    # Philox takes a key: two keys give unrelated streams without hashing, and a generator is cheap to make.
    key = np.array([seed % 2**64, position], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random((2, DRAWS)).tolist()


def center_crop(
    image: UInt8[np.ndarray, "h w 3"], size: int, *, interpolation: str
) -> UInt8[np.ndarray, "size size 3"]:
    """The crop for evaluation: resizes the shorter side to 256/224 of `size` and takes the central `[size, size, 3]`.

    Args:
      image: `[h, w, 3]` uint8.
      size: side of the crop.
      interpolation: one of `INTERPOLATIONS`.

    Returns:
      `[size, size, 3]` uint8, contiguous.

    References:
      Section 4 of the paper (256 and 224). Rounds as torchvision's `Resize` and `CenterCrop` do.
    """
    height, width = image.shape[:2]
    short = round(size * 256 / 224)
    h = short if height <= width else int(short * height / width)
    w = short if width <= height else int(short * width / height)
    top, left = round((h - size) / 2), round((w - size) / 2)
    return np.ascontiguousarray(_resize(image, h, w, interpolation)[top : top + size, left : left + size])


def _resize(
    image: np.ndarray, height: int, width: int, interpolation: str, out: np.ndarray | None = None
) -> np.ndarray:
    """PIL's antialiased bilinear resize, or a bicubic one close to PIL's at the speed of OpenCV's, which aliases."""
    if interpolation == "bilinear":
        resized = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BILINEAR)
        if out is None:
            return np.asarray(resized)
        out[:] = resized
        return out
    scales = image.shape[0] / height, image.shape[1] / width
    if min(scales) > 1 and max(scales) > 7 / 3:
        return cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_AREA)
    if max(scales) > 1:
        # PIL widens its kernel by the scale. A low pass of three taps before a fixed kernel comes nearest to that with
        # outer taps of (scale - 1) / 4. On photographs it is nearer than the mean over areas, in half the time.
        outer = [min(max((scale - 1) / 4, 0), 1 / 3) for scale in scales]
        rows, columns = (np.array([k, 1 - 2 * k, k], np.float32) for k in outer)
        image = cv2.sepFilter2D(image, -1, columns, rows, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_CUBIC)
