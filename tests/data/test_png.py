"""PNG files of every kind: the pixels of OpenCV, inflated once, or an error if some are missing."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from dcjax.data import decode
from dcjax.data.decode import DamagedImageError

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def start_of(depth, colour, interlaced, transparent, width=33, height=19):
    """The chunks before the pixels, and how many bytes these take."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    size = decode._png_bytes(start)
    if colour == 3:
        start += chunk(b"PLTE", np.random.default_rng(1).bytes(3 * 2**depth))
    if transparent:
        start += chunk(b"tRNS", {0: b"\0\1", 2: b"\0\1\0\2\0\3", 3: bytes(range(min(256, 2**depth)))}[colour])
    return start, size


def png(start, pixels):
    half = len(pixels) // 2
    parts = (chunk(b"IDAT", pixels[:half]), chunk(b"IDAT", pixels[half:]), chunk(b"IEND", b""))
    return start + b"".join(parts)


def filtered(size, width_bytes):
    """Random bytes in rows, whose first byte is a filter where the rows are known."""
    raw = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    raw[:: 1 + width_bytes] = np.arange(len(raw[:: 1 + width_bytes])) % 5
    return raw.tobytes()


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("colour", CHANNELS)
def test_pixels_are_those_of_opencv(colour, interlaced, monkeypatch):
    for depth in DEPTHS[colour]:
        for transparent in (False, True) if colour in (0, 2, 3) else (False,):
            start, size = start_of(depth, colour, interlaced, transparent)
            row = -(-33 * CHANNELS[colour] * depth // 8)
            raw = bytes(size) if interlaced else filtered(size, row)
            if interlaced:
                raw = raw[:-row] + b"\x7b" * row
            data = png(start, zlib.compress(raw))
            expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
            np.testing.assert_array_equal(decode.decode(data, "x"), expected)
            assert expected.any()
            for limit in (decode.MAX_STORED, 20):  # held in memory, and not
                with monkeypatch.context() as patch:
                    patch.setattr(decode, "MAX_STORED", limit)
                    np.testing.assert_array_equal(decode.decode(data, "x"), expected)
                    with pytest.raises(DamagedImageError):
                        decode.decode(png(start, zlib.compress(raw[:-1])), "x")


def test_pixels_are_inflated_once(monkeypatch):
    start, size = start_of(8, 2, 0, False)
    found = []
    monkeypatch.setattr(decode.cv2, "imdecode", lambda data, flags: found.append(data.tobytes()))
    with pytest.raises(DamagedImageError):
        decode.decode(png(start, zlib.compress(b"\0" * size)), "x")
    assert len(found[0]) > size  # not compressed


def test_more_bytes_than_pixels_are_not_inflated():
    """What a hostile file has beyond its pixels is left alone, and they decode as they did."""
    start, size = start_of(8, 2, 0, False)
    data = png(start, zlib.compress(filtered(size, 99) + bytes(10**6)))
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(decode.decode(data, "x"), expected)


def test_a_checksum_that_is_wrong_is_damage():
    start, size = start_of(8, 2, 0, False)
    pixels = bytearray(zlib.compress(filtered(size, 99), 0))
    pixels[200] ^= 1
    wrong = png(start, b"") + b""
    at = len(start)
    body = struct.pack(">I", len(pixels)) + b"IDAT" + bytes(pixels) + b"\0\0\0\0"
    with pytest.raises(DamagedImageError):
        decode.decode(start + body + wrong[at + 24 :], "x")
