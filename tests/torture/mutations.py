"""Kinds of damage to the bytes of a file, for the fuzzer."""

import hashlib
import json
import random
import zlib

EXTREMES = (0, 1, 2**7 - 1, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
ODD = (-1, 2**63, 2**200, 1e300, float("nan"), True, None, "x", "\x1b[2J", "y" * 9000, [], {}, {"a": {}}, [[1]])
WORDS = (
    b"-1",
    b"NaN",
    b"1e999",
    b"9" * 400,
    b"9" * 5000,
    b"null",
    b'"\\ud800"',
    b"[" * 300,
    b"\x00",
    b"\x1b[2J",
    b"{}",
)
MAGIC = (
    *(
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"BM",
        b"RIFF\x00\x00\x00\x00WEBPVP8 ",
        b"II*\x00",
        b"v/1\x01",
        b"GIF89a",
    ),
    *(b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"PAR1", b"#?RADIANCE\n", b"\x00\x00\x00 ftypavif", b"P6\n9999 9999\n255\n"),
)


def damaged(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """A file with one to four kinds of damage; `other` is another whole file."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        data = draw.choice(DAMAGES)(draw, data, other)
    return data


def flip_bits(draw: random.Random, data: bytes, other: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(draw.choice((1, 2, 8, 64)) if found else 0):
        found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
    return bytes(found)


def set_bytes(draw: random.Random, data: bytes, other: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(draw.choice((1, 2, 8)) if found else 0):
        found[draw.randrange(len(found))] = draw.choice((0, 0xFF, 0x7F, 0x80, draw.randrange(256)))
    return bytes(found)


def cut_off(draw: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def take_out(draw: random.Random, data: bytes, other: bytes) -> bytes:
    start = draw.randrange(len(data) + 1)
    return data[:start] + data[start + draw.choice((1, 4, 60)) :]


def repeat(draw: random.Random, data: bytes, other: bytes) -> bytes:
    start, size = draw.randrange(len(data) + 1), draw.choice((1, 4, 60, 1000))
    return data[: start + size] + data[start : start + size] * draw.choice((1, 2, 50)) + data[start + size :]


def insert(draw: random.Random, data: bytes, other: bytes) -> bytes:
    start = draw.randrange(len(data) + 1)
    return data[:start] + draw.choice((draw.randbytes(draw.randint(1, 40)), draw.choice(WORDS))) + data[start:]


def splice(draw: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other) + 1) :]


def set_number(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """Sets an integer, mostly one of the header, to an extreme one."""
    size = draw.choice((1, 2, 4, 8))
    start = draw.randrange(min(len(data), draw.choice((32, 200, len(data)))) + 1) if data else 0
    value = (draw.choice(EXTREMES) & (1 << 8 * size) - 1).to_bytes(size, draw.choice(("little", "big")))
    return data[:start] + value + data[start + size :]


def set_word(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """Sets a number in a text, such as a shape in a header, to an odd one."""
    digits = [i for i, byte in enumerate(data[:4000]) if byte in b"0123456789"]
    if not digits:
        return data
    start = draw.choice(digits)
    return data[:start] + draw.choice(WORDS) + data[start + draw.choice((0, 1, 3)) :]


def mend_png(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """Gives the chunks of a damaged PNG checksums that fit, so that the damage gets past them."""
    found, start = bytearray(data), 8
    while data.startswith(b"\x89PNG") and start + 12 <= len(found):
        end = start + 8 + int.from_bytes(found[start : start + 4], "big")
        if end + 4 > len(found):
            break
        found[end : end + 4] = zlib.crc32(found[start + 4 : end]).to_bytes(4, "big")
        start = end + 4
    return bytes(found)


def mend_manifest(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """Changes a value of a manifest and gives it the hash that fits, so that the change gets past it."""
    try:
        content = json.loads(data)["manifest"]
        files = content["files"]
        name = draw.choice(sorted(files))
        odd = draw.choice(ODD)
        match draw.randrange(4):
            case 0:
                content[draw.choice(sorted(content))] = odd
            case 1:
                files[name][draw.choice(("size", "sha256"))] = odd
            case 2:
                files[draw.choice(("../x", "/etc/passwd", "\x1b[2J", "a\n", "\ud800", "x" * 5000, "\0"))] = files.pop(
                    name
                )
            case 3:
                content["versions"]["jax"] = odd
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return data
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return json.dumps({"manifest": content, "sha256": digest}).encode()


def zeros(draw: random.Random, data: bytes, other: bytes) -> bytes:
    return bytes(draw.choice((0, 1, 100, 4000)))


def noise_with_magic(draw: random.Random, data: bytes, other: bytes) -> bytes:
    return draw.choice(MAGIC) + draw.randbytes(draw.choice((0, 20, 500)))


DAMAGES = (
    *(flip_bits, set_bytes, cut_off, take_out, repeat, insert, splice, set_number, set_number, set_number, set_word),
    *(set_word, mend_png, mend_png, mend_manifest, mend_manifest, mend_manifest, zeros, noise_with_magic),
)
