"""Decoding of image files on the host."""

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from dcjax.runtime.errors import SettingError

JPEG = b"\xff\xd8"  # how such a file begins


class DamagedImageError(SettingError):
    """An image that cannot be read or decoded; the message names it."""


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
