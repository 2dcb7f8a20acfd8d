"""Decoding and cropping on the host, for sources whose images vary in size: NumPy and OpenCV, no JAX.

The draws depend on the seed, the example's position in the global stream and the view alone, so that they are the
same for any number of processes and read threads.
"""

import cv2
import numpy as np
from jaxtyping import UInt8

from dcjax.data.source import DamagedImageError

Box = tuple[int, int, int, int]
ATTEMPTS = 10


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
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:
        image = None
    if image is None or image.size == 0:
        raise DamagedImageError(f"{name}: not an image that can be decoded ({len(data)} bytes), expected a JPEG or PNG")
    if cut_short(data):
        raise DamagedImageError(f"{name}: an image of which the end is missing ({len(data)} bytes)")
    return image


def cut_short(data: bytes) -> bool:
    """Whether a JPEG or PNG file ends before its image does; OpenCV would fill up what is missing with grey.

    In the data of a JPEG's scan a byte 255 is followed by 0, so both markers can only be what they are: an image whose
    last scan starts after the last end is not whole. (A thumbnail inside has its own end, but comes before the scan.)
    """
    if data.startswith(b"\xff\xd8"):
        return data.find(b"\xff\xda", max(data.rfind(b"\xff\xd9"), 0)) >= 0
    return data.startswith(b"\x89PNG") and b"IEND" not in data[-1024:]


def random_resized_crop_box(
    rng: np.random.Generator, height: int, width: int, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Box `(top, left, h, w)` of a random resized crop, in whole pixels.

    Args:
      rng: source of the draws.
      height, width: of the image.
      scale: smallest and largest area, as a share of the image; drawn uniformly.
      ratio: smallest and largest aspect ratio width / height; drawn log-uniformly.

    Returns:
      The first of ten drawn boxes that fits, at a uniform place; else the largest central box with a ratio in
      `ratio`.

    Source: torchvision's `RandomResizedCrop.get_params`; the same distribution as `dcjax.data.image_ops.crop_box`.
    """
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def crop_resize(image: UInt8[np.ndarray, "h w 3"], box: Box, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The box `(top, left, h, w)` of the image, resized to `[size, size, 3]`."""
    top, left, h, w = box
    return _resize(image[top : top + h, left : left + w], size, size)


def two_crops(
    image: UInt8[np.ndarray, "h w 3"],
    *,
    seed: int,
    position: int,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> UInt8[np.ndarray, "2 size size 3"]:
    """Two independent random resized crops, one per view.

    Args:
      image: `[h, w, 3]` uint8.
      seed: of the run.
      position: the example's position in the global stream.
      size: side of the crops in pixels.
      scale, ratio: as in `random_resized_crop_box`.

    Returns:
      `[2, size, size, 3]` uint8.
    """
    return np.stack([_crop(image, seed, position, view, size, scale, ratio) for view in (0, 1)])


def one_crop(
    image: UInt8[np.ndarray, "h w 3"],
    *,
    seed: int,
    position: int,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> UInt8[np.ndarray, "size size 3"]:
    """One random resized crop, `[size, size, 3]` uint8, for the linear probe; arguments as in `two_crops`."""
    return _crop(image, seed, position, 0, size, scale, ratio)


def center_crop(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The crop for evaluation: the shorter side resized to 256/224 of `size`, then the central `[size, size, 3]`.

    Source: section 4 of the paper (256 and 224); the rounding is that of torchvision's `Resize` and `CenterCrop`.
    """
    height, width = image.shape[:2]
    short = round(size * 256 / 224)
    h = short if height <= width else int(short * height / width)
    w = short if width <= height else int(short * width / height)
    top, left = round((h - size) / 2), round((w - size) / 2)
    return np.ascontiguousarray(_resize(image, h, w)[top : top + size, left : left + size])


def _crop(
    image: np.ndarray,
    seed: int,
    position: int,
    view: int,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    # Philox is keyed, not seeded: two keys give unrelated streams without hashing, and a generator is cheap to make.
    key = np.array([seed % 2**64, 2 * position + view], np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key))
    box = random_resized_crop_box(rng, image.shape[0], image.shape[1], scale=scale, ratio=ratio)
    return crop_resize(image, box, size)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Close to PIL's antialiased bicubic resize, at the speed of OpenCV's, which aliases when it shrinks."""
    scales = image.shape[0] / height, image.shape[1] / width
    if min(scales) > 1 and max(scales) > 7 / 3:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    if max(scales) > 1:
        # PIL widens its kernel by the scale. A low pass of three taps before a kernel of fixed width comes nearest to
        # that with outer taps of (scale - 1) / 4: on photographs nearer than averaging areas, in half of its time.
        outer = [min(max((scale - 1) / 4, 0), 1 / 3) for scale in scales]
        rows, columns = (np.array([k, 1 - 2 * k, k], np.float32) for k in outer)
        image = cv2.sepFilter2D(image, -1, columns, rows, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
