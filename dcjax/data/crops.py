"""Decoding and cropping on the host, for sources whose images vary in size: NumPy and OpenCV, no JAX.

The draws depend on the seed, the example's position in the global stream and the view alone, so that they are the
same for any number of processes and read threads.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from dcjax.data.sources.base import DamagedImageError

Box = tuple[int, int, int, int]
ATTEMPTS = 10
JPEG = b"\xff\xd8"  # how such a file begins
DRAWS = 2 * ATTEMPTS + 2
INTERPOLATIONS = ("bilinear", "bicubic")


def decode(data: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """An encoded image (JPEG, PNG, ...) as uint8 RGB `[h, w, 3]`.

    Args:
      data: the bytes of the file.
      name: what the error calls the image, such as its path.

    Raises:
      DamagedImageError: bytes that are not an image, or the beginning of one.
    """
    # The orientation that a camera noted is ignored, as PIL and with it torchvision's image folders do: the published
    # numbers are of the images as they are stored.
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    if data.startswith(JPEG):
        try:  # the same pixels as OpenCV's, a tenth sooner
            return simplejpeg.decode_jpeg(data)
        except ValueError:  # damaged, or of a kind that OpenCV alone knows, such as CMYK
            pass
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:
        image = None
    if image is None or image.size == 0:
        raise DamagedImageError(
            f"{name}: not an image that can be decoded ({len(data)} bytes), expected a JPEG, PNG, BMP or WebP"
        )
    if cut_short(data):
        raise DamagedImageError(f"{name}: an image of which the end is missing ({len(data)} bytes)")
    return image


def cut_short(data: bytes) -> bool:
    """Whether a JPEG or PNG file ends before its image does; OpenCV would fill up what is missing with grey.

    In the data of a JPEG's scan a byte 255 is followed by 0, so both markers can only be what they are: an image whose
    last scan starts after the last end is not whole. (A thumbnail inside has its own end, but comes before the scan.)
    """
    if data.startswith(JPEG):
        return data.find(b"\xff\xda", max(data.rfind(b"\xff\xd9"), 0)) >= 0
    return data.startswith(b"\x89PNG") and b"IEND" not in data[-1024:]


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
      The first of ten drawn boxes that fits, at a uniform place; else the largest central box with a ratio in
      `ratio`.

    Source: torchvision's `RandomResizedCrop.get_params`; the same boxes as `dcjax.data.image_ops.crop_box`.
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
      out: `[size, size, 3]` uint8, contiguous; the result is written to it.

    Returns:
      `[size, size, 3]` uint8: PIL's antialiased resize of the box, which bicubic comes close to (see `_resize`).
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
    """Independent random resized crops of one image, one per view.

    Args:
      image: `[h, w, 3]` uint8.
      out: `[views, size, size, 3]` uint8, contiguous; the crops are written to it.
      seed: of the run.
      position: the example's position in the global stream.
      scale, ratio: as in `random_resized_crop_box`.
      interpolation: one of `INTERPOLATIONS`.
    """
    for view, u in zip(out, view_draws(seed, position), strict=False):
        box = random_resized_crop_box(u, image.shape[0], image.shape[1], scale=scale, ratio=ratio)
        crop_resize(image, box, len(view), interpolation=interpolation, out=view)


def view_draws(seed: int, position: int) -> list[list[float]]:
    """The uniform numbers of both views of one example, `[2][DRAWS]`."""
    # Philox is keyed, not seeded: two keys give unrelated streams without hashing, and a generator is cheap to make.
    key = np.array([seed % 2**64, position], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random((2, DRAWS)).tolist()


def center_crop(
    image: UInt8[np.ndarray, "h w 3"], size: int, *, interpolation: str
) -> UInt8[np.ndarray, "size size 3"]:
    """The crop for evaluation: the shorter side resized to 256/224 of `size`, then the central `[size, size, 3]`.

    Args:
      image: `[h, w, 3]` uint8.
      size: side of the crop.
      interpolation: one of `INTERPOLATIONS`.

    Returns:
      `[size, size, 3]` uint8, contiguous.

    References:
      Section 4 of the paper (256 and 224); the rounding is that of torchvision's `Resize` and `CenterCrop`.
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
    """PIL's antialiased resize; the bicubic one comes close to it at the speed of OpenCV's, which aliases."""
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
        # PIL widens its kernel by the scale. A low pass of three taps before a kernel of fixed width comes nearest to
        # that with outer taps of (scale - 1) / 4: on photographs nearer than averaging areas, in half of its time.
        outer = [min(max((scale - 1) / 4, 0), 1 / 3) for scale in scales]
        rows, columns = (np.array([k, 1 - 2 * k, k], np.float32) for k in outer)
        image = cv2.sepFilter2D(image, -1, columns, rows, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_CUBIC)
