"""Images made to do harm: they are refused before memory is taken for their pixels, in one line."""

import io
import os
import resource
import struct
import time
import zlib

import numpy as np
import pytest
from pictures import smooth
from PIL import Image

from dcjax.data import TolerantSource, decode, prepare
from dcjax.data.decode import MAX_PIXELS, MAX_SCANNED, DamagedImageError
from dcjax.data.sources import folder as folders
from dcjax.data.sources.folder import FolderSource
from dcjax.runtime.errors import SettingError


def encoded(kind, mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(smooth(32, 48)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def with_bytes(data, start, *parts):
    return data[:start] + b"".join(parts) + data[start + sum(map(len, parts)) :]


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, rows, more=b""):
    """A PNG of 8-bit grey with a header that may state more rows than there are."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def of_size(kind, width, height):
    """A file of another size than its header states."""
    if kind == "PNG":
        return png(width, height, bytes(99))
    data = encoded("JPEG", "CMYK") if kind == "CMYK" else encoded(kind)
    if kind in ("JPEG", "CMYK"):
        return with_bytes(data, data.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))
    if kind == "BMP":
        return with_bytes(data, 18, struct.pack("<ii", width, height))
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(data) + 10) + b"WEBPVP8X" + struct.pack("<II", 10, 0) + canvas + data[12:]


@pytest.mark.parametrize("kind", ["JPEG", "CMYK", "PNG", "BMP", "WEBP"])
def test_bombs_are_refused_at_once(kind):
    data = of_size(kind, 50_000, 50_000)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(DamagedImageError, match=r"^a/b\.jpg: an image of 50000 x 50000 pixels; allowed are") as caught:
        decode.decode(data, "a/b.jpg")
    assert time.monotonic() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("width", "height"), [(65_536, 1), (1, 2**31 - 1), (2**14, 2**13 + 1)])
def test_sides_and_pixels_are_bounded(width, height):
    with pytest.raises(DamagedImageError, match=rf"an image of {width} x {height} pixels"):
        decode.decode(of_size("BMP", width, height), "x")
    assert width > 65_535 or height > 65_535 or width * height > MAX_PIXELS


@pytest.mark.parametrize("kind", ["PNG", "BMP", "JPEG"])
def test_no_pixels(kind):
    with pytest.raises(DamagedImageError, match="not an image"):
        decode.decode(of_size(kind, 0, 7), "x")


def test_a_top_down_bmp_and_every_kind_of_webp():
    data = encoded("BMP")
    turned = with_bytes(data, 22, struct.pack("<i", -32))
    np.testing.assert_array_equal(decode.decode(turned, "x"), decode.decode(data, "x")[::-1])
    for options in ({}, {"lossless": True}, {"exif": Image.Exif()}):
        assert decode.decode(encoded("WEBP", **options), "x").shape == (32, 48, 3)
    assert decode.decode(encoded("WEBP", "RGBA"), "x").shape == (32, 48, 3)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PPM", "JPEG2000", "TGA", "PCX"])
def test_other_formats_reach_no_decoder(kind, monkeypatch):
    monkeypatch.setattr(decode.cv2, "imdecode", pytest.fail)
    with pytest.raises(DamagedImageError, match="expected a JPEG, PNG, BMP or WebP"):
        decode.decode(encoded(kind, "P" if kind == "GIF" else "RGB"), "named.jpg")


def test_the_bytes_tell_the_format_and_not_the_suffix(tmp_path):
    (tmp_path / "a.bmp").write_bytes(encoded("PNG"))
    np.testing.assert_array_equal(FolderSource(str(tmp_path), "train")[0][0], smooth(32, 48))


def test_a_jpeg_of_endless_scans():
    data = encoded("JPEG", progressive=True)
    start = data.rfind(b"\xff\xda")
    scan = data[start : data.rfind(b"\xff\xd9")]
    width, height = 11_000, 12_000
    frame = data.index(b"\xff\xc2") + 5
    large = with_bytes(data, frame, struct.pack(">HH", height, width))
    few = MAX_SCANNED // (width * height)
    with pytest.raises(DamagedImageError, match=r"pixels in \d+ scans"):
        decode.decode(large[:start] + scan * (few + 1) + b"\xff\xd9", "x")
    assert decode.decode(data, "x").shape == (32, 48, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_a_jpeg_cut_short_anywhere_is_damaged(mode, options):
    data = encoded("JPEG", mode, **options)
    for end in range(len(data)):
        with pytest.raises(DamagedImageError):
            decode.decode(data[:end], "x")


def test_a_png_that_lacks_rows_is_damaged():
    """OpenCV would give pixels that were never written, other ones at every reading."""
    assert decode.decode(png(20, 20, (b"\0" + b"\7" * 20) * 20), "x").max() == 7
    for rows in (0, 19):
        with pytest.raises(DamagedImageError):
            decode.decode(png(20, 20, (b"\0" + b"\7" * 20) * rows), "x")
    cut = encoded("PNG")
    for end in range(0, len(cut), 3):
        with pytest.raises(DamagedImageError):
            decode.decode(cut[:end], "x")


def test_an_animated_png_is_its_first_image():
    still = Image.fromarray(smooth(32, 48))
    data = encoded("PNG", save_all=True, append_images=[still.rotate(180)])
    assert b"acTL" in data
    np.testing.assert_array_equal(decode.decode(data, "x"), smooth(32, 48))


def test_what_is_no_file_is_a_damaged_image(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MAX_BYTES", 50_000)
    (tmp_path / "a" / "2.png").parent.mkdir()
    (tmp_path / "a" / "2.png").write_bytes(encoded("PNG"))
    os.mkfifo(tmp_path / "a" / "1.jpg")
    (tmp_path / "a" / "3.jpg").write_bytes(b"\xff\xd8\xff" + bytes(50_000))
    (tmp_path / "a" / "4.jpg").symlink_to("/dev/zero")
    (tmp_path / "a" / "5.jpg").mkdir()
    (tmp_path / "a" / "6.jpg").touch()
    source = FolderSource(str(tmp_path), "train")
    problems = ["not a regular file", "", "has 50,003 bytes; at most 50,000", "not a regular", "is a folder", "0 bytes"]
    for i, problem in enumerate(problems):
        if problem:
            with pytest.raises(DamagedImageError, match=problem):
                source[i]
    np.testing.assert_array_equal(TolerantSource(source, 0.9)[2][0], smooth(32, 48))
    with pytest.raises(SettingError, match=r"1\.jpg is not a regular file"):
        prepare.prepare_folder(str(tmp_path), "pipes", data_dir=str(tmp_path / "sets"))


def test_the_name_in_an_error_is_printable():
    with pytest.raises(DamagedImageError) as caught:
        decode.decode(b"", "a\n\x1b[31m.jpg")
    assert str(caught.value).isprintable()
