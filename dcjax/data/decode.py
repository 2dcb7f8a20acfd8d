"""Decoding of image files on the host, with simplejpeg and OpenCV. The files may come from anyone."""

import functools
import re
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from dcjax.runtime.errors import SettingError, printable

MAX_PIXELS = 2**27  # 400 MB as RGB; the largest files of ImageNet have 3 * 10^7
MAX_SIDE = 65_535  # a JPEG has no longer ones
MAX_SCANNED = 2**31  # pixels times scans; a decoder passes over the whole image in each scan of a progressive JPEG

_JPEG = b"\xff\xd8\xff"
_STARTS = {"JPEG": _JPEG, "PNG": b"\x89PNG\r\n\x1a\n", "BMP": b"BM"}
MAX_CHUNKS = 2**17  # of a PNG
MAX_STORED = 2**26  # bytes of the pixels of a PNG that are held in memory before they are decoded
MAX_BLOCK = 2**16 - 1  # bytes of a block of a zlib stream that is not compressed
INFLATED = 2**14  # bytes that are inflated at a time, to a thousand times as many at most
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
# A frame header of a JPEG: marker, length, precision, height, width, components. Matches may overlap.
_FRAME = re.compile(rb"(?=\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]\x00[\x0b\x0e\x11\x14].(..)(..))", re.DOTALL)
_BASELINE, _SCAN = (0xC0, 0xC1), 0xDA
_SKIPPED = (0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE)  # markers of segments that have a length and no image


class DamagedImageError(SettingError):
    """An image that cannot be read or decoded; the message names it."""


# What OpenCV logs of a damaged file is in the error; its own lines name no file. 0 is silent. The function lies in
# `cv2.utils.logging` since OpenCV 5, and in `cv2` before.
_opencv: Any = getattr(cv2.utils, "logging", cv2)
_opencv.setLogLevel(0)


def decode(data: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image file (JPEG, PNG, BMP or WebP) to uint8 RGB `[h, w, 3]`.

    The first bytes tell the format, and no other format reaches a decoder. The size in the header is checked before
    memory is taken for the pixels.

    Args:
      data: the bytes of the file.
      name: the name of the image in an error, such as its path.

    Raises:
      DamagedImageError: the bytes are no image, only the beginning of one, or an image of more than `MAX_PIXELS`
        pixels or with a side of more than `MAX_SIDE`.
    """
    name = printable(name)
    height, width = _checked_size(data, name)
    if data.startswith(_JPEG):
        try:  # gives the same pixels as OpenCV in a tenth less time
            return simplejpeg.decode_jpeg(data)
        except ValueError:  # a damaged file, or a kind that only OpenCV reads, such as CMYK
            pass
    # The orientation that a camera noted is ignored, as torchvision's image folders ignore it: published numbers come
    # from the images as they are stored.
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    plain = plain_png(data) if data.startswith(_STARTS["PNG"]) else data
    try:
        image = None if plain is None else cv2.imdecode(np.frombuffer(plain, np.uint8), flags)
    except cv2.error:
        image = None
    if cut_short(data):
        raise DamagedImageError(f"{name}: an image of which the end is missing ({len(data)} bytes)")
    if image is None or image.shape != (height, width, 3):
        raise _no_image(data, name)
    return image


def format_of(data: bytes) -> str | None:
    """The format that the first bytes of a file tell, a key of `_SIZES`; None for any other."""
    if (data[:4], data[8:12]) == (b"RIFF", b"WEBP"):
        return "WebP"
    return next((kind for kind, start in _STARTS.items() if data.startswith(start)), None)


def cut_short(data: bytes) -> bool:
    """Whether a JPEG or PNG file ends before its image does; OpenCV would fill the missing part with grey.

    A JPEG is cut short if its last start of a scan (FF DA) comes after its last end of image (FF D9). Neither marker
    occurs inside of a scan's data, where FF is followed by 00. A thumbnail has its own end, but comes before the scan.
    """
    if data.startswith(_JPEG):
        return data.find(b"\xff\xda", max(data.rfind(b"\xff\xd9"), 0)) >= 0
    return data.startswith(_STARTS["PNG"]) and b"IEND" not in data[-1024:]


def plain_png(data: bytes) -> bytes | None:
    """A PNG without the chunks that its pixels do not need; None if it lacks some of its pixels.

    OpenCV would give whatever lay in memory in place of pixels that are missing, and would read animations. Whether
    pixels are missing shows only when all are inflated. OpenCV then gets them as they are after that, where possible,
    so that they are inflated once.
    """
    kept, bodies, place, start = [data[:8]], [], 0, 8
    for _ in range(MAX_CHUNKS):
        length, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        end = start + 8 + length
        if kind == b"IDAT":
            place = place or len(kept)
            bodies.append(data[start + 8 : end])
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(data[start : end + 4])
        start = end + 4
        if kind == b"IEND" or start >= len(data):
            break
    needed = _png_bytes(data)
    try:
        if 0 < needed <= MAX_STORED and (chunk := _stored_chunk(b"".join(bodies), needed)):
            others = (part for part in kept[place:] if part[4:8] != b"IDAT")
            return b"".join([*kept[:place], *chunk, *others])
        return b"".join(kept) if _reaches(bodies, needed) else None
    except zlib.error:
        return None


def _stored_chunk(deflated: bytes, size: int) -> list[Any] | None:
    """The parts of a PNG chunk IDAT with inflated bytes, in blocks that are copied when they are read.

    Returns None unless `deflated` is a whole zlib stream of `size` bytes. Its own checksum then shows that they are
    right, so that those of the chunks are not looked at.
    """
    inflater = zlib.decompressobj()
    raw = memoryview(inflater.decompress(deflated, size + 1))  # not as many as a hostile stream has
    if not inflater.eof or len(raw) != size:
        return None
    parts: list[Any] = [b"IDAT\x78\x01"]
    for first in range(0, size, MAX_BLOCK):
        block = raw[first : first + MAX_BLOCK]
        # Whether it is the last block, its length, and the length's complement.
        parts += [struct.pack("<BHH", first + MAX_BLOCK >= size, len(block), len(block) ^ 0xFFFF), block]
    end = len(deflated) - len(inflater.unused_data)
    parts.append(deflated[end - 4 : end])  # the checksum, which is of the inflated bytes
    check = functools.reduce(lambda check, part: zlib.crc32(part, check), parts, 0)
    return [(sum(map(len, parts)) - 4).to_bytes(4, "big"), *parts, check.to_bytes(4, "big")]


def _reaches(bodies: list[bytes], size: int) -> bool:
    """Whether a zlib stream has so many bytes or more; what follows may be endless and is not inflated."""
    found, inflater = 0, zlib.decompressobj()
    for body in bodies:
        for first in range(0, len(body), INFLATED):
            if found >= size:
                break
            found += len(inflater.decompress(body[first : first + INFLATED]))
    return found >= size > 0


def _png_bytes(data: bytes) -> int:
    """How many bytes the pixels of a PNG take before they are deflated; 0 for a header that is not allowed."""
    height, width = _png_size(data) or (0, 0)
    depth, colour, interlaced = data[24:25], data[25:26], data[28:29]
    channels = {b"\0": 1, b"\2": 3, b"\3": 1, b"\4": 2, b"\6": 4}.get(colour, 0)
    passes = _ADAM7 if interlaced == b"\1" else ((0, 0, 1, 1),)
    total = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * channels * int.from_bytes(depth, "big") // 8))
    return total if channels else 0


def _checked_size(data: bytes, name: str) -> tuple[int, int]:
    """Height and width in the header, within the bounds."""
    kind = format_of(data)
    size = _SIZES[kind](data) if kind else None
    if size is None or min(size) < 1:
        raise _no_image(data, name)
    height, width = size
    if max(size) > MAX_SIDE or height * width > MAX_PIXELS:
        raise DamagedImageError(
            f"{name}: an image of {width} x {height} pixels; allowed are {MAX_PIXELS} pixels and sides of {MAX_SIDE}"
        )
    if kind == "JPEG" and not _single_scan(data):
        scans = data.count(b"\xff\xda")
        if scans * height * width > MAX_SCANNED:
            raise DamagedImageError(
                f"{name}: a JPEG of {width} x {height} pixels in {scans} scans; allowed are {MAX_SCANNED} pixels in all"
            )
    return height, width


def _no_image(data: bytes, name: str) -> DamagedImageError:
    return DamagedImageError(
        f"{name}: not an image that can be decoded ({len(data)} bytes), expected a JPEG, PNG, BMP or WebP"
    )


# The size in a header as (height, width); None if there is none. Pillow's `Image.open` is not used for it: it takes
# memory for the canvas of a WebP, and its own limit of the pixels is a global setting that warns.


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        return int(height), int(width)
    except ValueError:  # OpenCV may still read it, so the largest of all frames in it counts, wherever they stand
        frames = [tuple(int.from_bytes(side, "big") for side in sides) for sides in _FRAME.findall(data)]
        return (max(h for h, _ in frames), max(w for _, w in frames)) if frames else None


def _png_size(data: bytes) -> tuple[int, int] | None:
    if data[12:16] != b"IHDR" or len(data) < 24:
        return None
    return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")


def _bmp_size(data: bytes) -> tuple[int, int] | None:
    header = int.from_bytes(data[14:18], "little")
    if len(data) < 26 or (header != 12 and header < 36):
        return None
    if header == 12:
        return int.from_bytes(data[20:22], "little"), int.from_bytes(data[18:20], "little")
    width, height = (int.from_bytes(data[i : i + 4], "little", signed=True) for i in (18, 22))
    return abs(height), abs(width)  # a negative height means that the first row is the top one


def _webp_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 30:
        return None
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(data[27:30], "little"), 1 + int.from_bytes(data[24:27], "little")
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
        case b"VP8 ":
            return int.from_bytes(data[28:30], "little") & 0x3FFF, int.from_bytes(data[26:28], "little") & 0x3FFF
    return None


def _single_scan(data: bytes) -> bool:
    """Whether a JPEG surely has one scan alone; False also where this walk over its segments does not know.

    Counting the scans takes a tenth as long as decoding, and most files need not be counted.
    """
    start, components = 2, None
    while data[start : start + 1] == b"\xff" and start + 10 <= len(data):
        marker, length = data[start + 1], int.from_bytes(data[start + 2 : start + 4], "big")
        if marker in _BASELINE:
            components = data[start + 9]
        elif marker == _SCAN:  # of all components at once; libjpeg refuses another one after it
            return data[start + 4] == components
        elif marker not in _SKIPPED:
            return False
        start += 2 + length
    return False


_SIZES = {"JPEG": _jpeg_size, "PNG": _png_size, "BMP": _bmp_size, "WebP": _webp_size}
