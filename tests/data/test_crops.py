"""Decoding and cropping on the host."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from dcjax.data.crops import (
    DRAWS,
    INTERPOLATIONS,
    center_crop,
    crop_resize,
    decode,
    random_crops,
    random_resized_crop_box,
)
from dcjax.data.image_ops import KERNELS
from dcjax.data.sources.base import DamagedImageError
from dcjax.runtime.errors import SettingError

BOX = dict(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
DRAW = dict(BOX, interpolation="bicubic")


def two_crops(image: np.ndarray, *, size: int, **options) -> np.ndarray:
    out = np.empty((2, size, size, 3), np.uint8)
    random_crops(image, out, **options)
    return out


def smooth(height: int, width: int) -> np.ndarray:
    """An image in which every place has its own colour: red grows downwards, green to the right."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y / (height - 1), 255 * x / (width - 1), np.full((height, width), 40)], -1).astype(np.uint8)


def photograph(height: int, width: int) -> np.ndarray:
    """Noise whose amplitudes fall with the frequency, as in photographs."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) + 1 / max(height, width)
    noise = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / frequency).real for _ in range(3)]
    return np.clip(127 + 50 * np.stack(noise, -1) / np.std(noise), 0, 255).astype(np.uint8)


def test_boxes_have_torchvisions_distribution():
    rng, n = np.random.default_rng(0), 4000
    # So large that no attempt is rejected but for the ratio of the largest ones, and no rounding shows.
    boxes = np.array(
        [
            random_resized_crop_box(rng.random(DRAWS), 2000, 2000, scale=(0.08, 0.5), ratio=(3 / 4, 4 / 3))
            for _ in range(n)
        ]
    )
    top, left, h, w = boxes.T
    assert stats.kstest(h * w / 2000**2, stats.uniform(0.08, 0.42).cdf).pvalue > 1e-3
    log_ratio = np.log(w / h) / np.log(4 / 3)
    assert stats.kstest(log_ratio, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    for start, extent in ((top, h), (left, w)):
        assert stats.kstest((start + 0.5) / (2001 - extent), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(h * w, log_ratio)[0, 1]) < 4 / np.sqrt(n)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(10, 100, (0, 43, 10, 13)), (100, 10, (43, 0, 13, 10)), (10, 10, (0, 0, 10, 10))],
)
def test_a_box_that_never_fits_is_central(height, width, expected):
    # Areas above the whole image are never accepted, so that the fall-back must answer.
    box = random_resized_crop_box(np.full(DRAWS, 0.5), height, width, scale=(20.0, 21.0), ratio=(3 / 4, 4 / 3))
    assert box == expected


def test_small_images_give_boxes_inside():
    rng = np.random.default_rng(1)
    for height, width in ((1, 1), (1, 7), (5, 2), (3, 3)):
        for _ in range(50):
            top, left, h, w = random_resized_crop_box(rng.random(DRAWS), height, width, **BOX)
            assert 0 <= top <= top + h <= height
            assert 0 <= left <= left + w <= width
            assert min(h, w) >= 1


def test_crops_depend_on_seed_position_and_view_alone():
    image = smooth(90, 120)
    crops = two_crops(image, seed=3, position=11, size=32, **DRAW)
    assert crops.shape == (2, 32, 32, 3)
    assert crops.dtype == np.uint8
    np.testing.assert_array_equal(crops, two_crops(image, seed=3, position=11, size=32, **DRAW))
    one = np.empty((1, 32, 32, 3), np.uint8)
    random_crops(image, one, seed=3, position=11, **DRAW)
    np.testing.assert_array_equal(crops[:1], one)
    others = [two_crops(image, seed=s, position=p, size=32, **DRAW) for s, p in ((3, 12), (4, 11), (11, 3), (-3, 11))]
    every = [crops[0], crops[1], *(view for other in others for view in other)]
    assert len({crop.tobytes() for crop in every}) == len(every)


def test_consecutive_positions_give_independent_boxes():
    image, n = smooth(60, 60), 1500
    crops = np.stack([two_crops(image, seed=0, position=p, size=4, **DRAW) for p in range(n)])
    middle = crops[:, :, 1:3, 1:3, :2].mean((2, 3))  # [n, 2, 2]: centre of the crop, down and to the right
    series = np.concatenate([middle[:-1].reshape(n - 1, 4), middle[1:].reshape(n - 1, 4)], axis=1).T
    correlation = np.corrcoef(series) - np.eye(8)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(n)


def test_crop_resize_takes_the_box():
    image = smooth(101, 201)
    small = crop_resize(image, (20, 40, 60, 80), 10, interpolation="bicubic")
    assert small.shape == (10, 10, 3)
    rows, columns = 20 + 60 * (np.arange(10) + 0.5) / 10 - 0.5, 40 + 80 * (np.arange(10) + 0.5) / 10 - 0.5
    np.testing.assert_allclose(small[:, 3, 0], 255 * rows / 100, atol=1.5)  # 8-bit image, 8-bit result
    np.testing.assert_allclose(small[3, :, 1], 255 * columns / 200, atol=1.5)
    large = crop_resize(image, (20, 40, 30, 40), 64, interpolation="bicubic")
    rows = 20 + 30 * (np.arange(64) + 0.5) / 64 - 0.5
    np.testing.assert_allclose(large[4:-4, 30, 0], 255 * rows[4:-4] / 100, atol=1.5)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_shrinking_does_not_alias(interpolation):
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 254
    small = crop_resize(stripes, (0, 0, 256, 256), 100, interpolation=interpolation)
    assert np.ptp(small.astype(int)) <= 110  # a mean of 2.56 columns; without averaging the whole 254 would show
    assert abs(small.mean() - 127) < 2
    half = crop_resize(stripes, (0, 0, 256, 256), 128, interpolation=interpolation)
    np.testing.assert_array_equal(half[:, 2:-2], 127)  # at the border the outer pixel counts twice


@pytest.mark.parametrize(("height", "width"), [(40, 70), (96, 97), (115, 96), (144, 250), (96, 300)])
def test_the_bilinear_resize_is_that_of_pil(height, width):
    image = photograph(120 + height, width)
    expected = Image.fromarray(image[7 : 7 + height]).resize((96, 96), Image.Resampling.BILINEAR)
    found = np.zeros((96, 96, 3), np.uint8)
    crop_resize(image, (7, 0, height, width), 96, interpolation="bilinear", out=found)
    np.testing.assert_array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("scale", [0.4, 0.8, 1.2, 1.5, 2.0, 2.6])
def test_the_bicubic_resize_is_close_to_that_of_pil(scale):
    side = round(96 * scale)
    image = photograph(side, side)
    expected = np.asarray(Image.fromarray(image).resize((96, 96), Image.Resampling.BICUBIC)).astype(float)

    def error(found: np.ndarray) -> float:
        return np.sqrt(np.mean((found - expected) ** 2))

    ours = error(crop_resize(image, (0, 0, side, side), 96, interpolation="bicubic"))
    plain = error(cv2.resize(image, (96, 96), interpolation=cv2.INTER_CUBIC))
    assert ours < 4  # of 255
    assert ours < (plain / 2 if scale > 1 else plain + 1e-9)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (256, 256), (257, 511), (40, 50)])
def test_center_crop(height, width):
    image = smooth(height, width)
    crop = center_crop(image, 224, interpolation="bilinear")
    assert crop.shape == (224, 224, 3)
    assert crop.flags["C_CONTIGUOUS"]
    # 224 of the 256 pixels of the shorter side: the colours of the middle, and their range.
    share = 224 / 256 * min(height, width)
    for axis, (channel, side) in enumerate(((0, height), (1, width))):
        line = np.moveaxis(crop[..., channel], axis, 0).mean(1)
        assert abs(line.mean() - 127) < 2
        assert abs((line[-1] - line[0]) - 255 * share / side) < 255 * 3 / min(height, width, 100)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (300, 280), (700, 700)])
def test_center_crop_is_that_of_pil(height, width):
    """The probe's 256/224: the shorter side by PIL's antialiased bilinear resize, then the middle."""
    image = photograph(height, width)
    size = 256 * width // min(height, width), 256 * height // min(height, width)
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    left, top = round((resized.width - 224) / 2), round((resized.height - 224) / 2)
    expected = np.asarray(resized)[top : top + 224, left : left + 224]
    np.testing.assert_array_equal(center_crop(image, 224, interpolation="bilinear"), expected)


def test_host_and_device_know_the_same_interpolations():
    assert set(INTERPOLATIONS) == set(KERNELS)


def test_center_crop_of_the_right_size_is_a_slice():
    image = np.random.default_rng(0).integers(0, 256, (256, 300, 3), dtype=np.uint8)
    np.testing.assert_array_equal(center_crop(image, 224, interpolation="bilinear"), image[16:240, 38:262])


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


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1)])
def test_sides_of_one_pixel(height, width):
    image = decode(cv2.imencode(".png", np.full((height, width, 3), 7, np.uint8))[1].tobytes(), "thin.png")
    np.testing.assert_array_equal(center_crop(image, 8, interpolation="bilinear"), 7)
    views = two_crops(image, seed=0, position=1, size=8, **DRAW)
    assert views.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(views, 7)


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
