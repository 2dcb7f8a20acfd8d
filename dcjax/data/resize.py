"""Smaller copies of large images for a prepared set, which are read and decoded faster."""

import logging

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dcjax.data.decode import DamagedImageError, decode, format_of

# Of PIL's kernels, Lanczos changes the crops of ImageNet files least. Quality 90 without chroma subsampling changes
# them less than 95 with it, in fewer bytes: three of four files have none (experiments/results, "Resized files").
QUALITY = 90
ENCODING = f"Lanczos, JPEG of quality {QUALITY}, chroma 4:4:4"
LONGEST_SIDE = 65_500  # the most pixels that libjpeg allows


def as_stored(data: bytes, name: str, resize: int | None) -> bytes:
    """The bytes that preparation stores for an image file.

    Damaged files, and files that are no images, are logged and stored as they are, so that a run finds, names and
    counts them as it does in the folder.

    Args:
      data: the bytes of the file.
      name: the name of the image in the log, such as its path.
      resize: most pixels of the shorter side; None to resize nothing.
    """
    if format_of(data) is None:
        logging.warning("%s is no JPEG, PNG, BMP or WebP; it goes in as it is", name)
    elif resize is not None:
        try:
            return resized(data, name, resize)
        except DamagedImageError as error:
            logging.warning("%s; it goes in as it is", error)
    return data


def resized(data: bytes, name: str, side: int) -> bytes:
    """An image file whose shorter side has at most `side` pixels.

    The same bytes come out on any machine with the same versions of Pillow and OpenCV.

    Args:
      data: the bytes of the file.
      name: the name of the image in an error, such as its path.
      side: pixels of the shorter side.

    Returns:
      `data` itself if the image is not larger, or is so long that its copy would not fit into a JPEG. Otherwise an RGB
      JPEG of the resized pixels of `decode`, without an orientation or a colour profile, neither of which `decode`
      applies.

    Raises:
      DamagedImageError: the image cannot be decoded.
    """
    image = decode(data, name)
    height, width = image.shape[:2]
    if min(height, width) <= side or max(height, width) * side > LONGEST_SIDE * min(height, width):
        return data
    return encode(shrink(image, side))


def encode(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """An RGB image as JPEG. OpenCV encodes with the exact cosine transform, simplejpeg only with the fast one."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    flags += [cv2.IMWRITE_JPEG_OPTIMIZE, 1]  # the image's own Huffman codes give the same pixels in fewer bytes
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flags)[1].tobytes()


def shrink(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Resizes an image to a shorter side of `side` pixels and keeps its aspect to the nearest pixel.

    PIL widens its kernel by the scale, so nothing aliases. OpenCV has only one such kernel, the mean over areas, which
    blurs more.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    size = round(width * side / short), round(height * side / short)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
