"""Decoding on the host."""

import io

import cv2
import numpy as np
import pytest
from pictures import smooth

from dcjax.data.decode import DamagedImageError, decode
from dcjax.runtime.errors import SettingError


def test_decode_round_trip_and_channel_order():
    image = smooth(20, 30)
    encoded = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(decode(encoded, "a.png"), image)
    grey = cv2.imencode(".png", image[..., 0])[1].tobytes()
    np.testing.assert_array_equal(decode(grey, "grey.png"), np.repeat(image[..., :1], 3, axis=-1))


def test_decode_ignores_the_orientation_as_pil_does():
    pil = pytest.importorskip("PIL.Image")
    exif = pil.Exif()
    exif[0x0112] = 6  # turned by a quarter
    file = io.BytesIO()
    pil.fromarray(smooth(16, 32)).save(file, "JPEG", exif=exif)
    assert decode(file.getvalue(), "turned.jpg").shape == (16, 32, 3)


def pil_bytes(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA"])
def test_decode_takes_every_kind_of_image(mode):
    """ImageNet's folders hold CMYK and grey JPEGs, and a PNG that is named .JPEG: the bytes tell, not the name."""
    pil = pytest.importorskip("PIL.Image")
    kind = "PNG" if mode in ("P", "RGBA") else "JPEG"
    data = pil_bytes(pil.fromarray(smooth(40, 60)).convert(mode), kind)
    expected = np.asarray(pil.open(io.BytesIO(data)).convert("RGB")).astype(int)
    np.testing.assert_allclose(decode(data, "x.JPEG").astype(int), expected, atol=2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "progressive"])
def test_a_file_that_was_cut_short_is_damaged(kind):
    pil = pytest.importorskip("PIL.Image")
    options = {"progressive": True} if kind == "progressive" else {}
    whole = pil_bytes(pil.fromarray(smooth(64, 64)), kind if kind == "PNG" else "JPEG", **options)
    assert decode(whole, "whole").shape == decode(whole + bytes(100), "more").shape == (64, 64, 3)
    for part in (0.3, 0.7, 0.95):
        with pytest.raises(DamagedImageError, match=r"^cut: "):
            decode(whole[: int(part * len(whole))], "cut")


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(40), b"\xff\xd8\xff"])
def test_what_is_no_image_is_one_line_with_its_name(data):
    with pytest.raises(SettingError, match=r"^some/file\.jpg: not an image that can be decoded") as caught:
        decode(data, "some/file.jpg")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"subsampling": "4:2:0"}, {"progressive": True}, {"quality": 30}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpegs_decode_to_the_pixels_of_opencv(mode, options):
    pil = pytest.importorskip("PIL.Image")
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    data = pil_bytes(pil.fromarray(image).convert(mode), "JPEG", **options)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(decode(data, "x.jpg"), expected)


def test_bytes_that_a_reader_passes_over_do_no_damage():
    """Some of ImageNet's JPEGs have stray bytes between two segments; PIL reads them too."""
    pil = pytest.importorskip("PIL.Image")
    data = pil_bytes(pil.fromarray(smooth(40, 60)), "JPEG")
    end = data.rfind(b"\xff\xd9")
    np.testing.assert_array_equal(decode(data[:end] + bytes(5) + data[end:], "x.jpg"), decode(data, "x.jpg"))
