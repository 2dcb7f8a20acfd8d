"""Preparation with --resize: smaller copies of large images, the bytes of all others."""

import io
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers import ROOT
from PIL import Image

from dcjax.data import array_record, open_source, prepare
from dcjax.data import decode as decoding
from dcjax.data.decode import DamagedImageError, decode
from dcjax.data.resize import as_stored, resized
from dcjax.runtime.errors import SettingError


def photograph(height, width, seed=0):
    """Noise whose amplitudes fall with the frequency, as in photographs, its colours weaker than its brightness."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) + 2 / max(height, width)
    noise = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / frequency**1.5).real for _ in range(4)]
    noise = noise[0][..., None] + 0.3 * np.stack(noise[1:], -1)
    return np.clip(127 + 40 * noise / np.std(noise), 0, 255).astype(np.uint8)


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def by_pil(image, width, height):
    """The pixels of the copy as PIL alone makes it."""
    small = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(Image.open(io.BytesIO(encoded(small, quality=90, subsampling="4:4:4"))))


@pytest.fixture
def tree(tmp_path):
    """Two splits of large images, among them a small one, a note and one that was cut short."""
    for split, count in (("train", 4), ("val", 2)):
        for label in "ab":
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.jpg").write_bytes(encoded(photograph(60, 80 + i, seed=i), quality=95))
    folder = tmp_path / "images" / "train" / "b"
    (folder / "small.png").write_bytes(encoded(photograph(32, 90), "PNG"))
    (folder / "note.jpg").write_text("a note")
    (folder / "cut.jpg").write_bytes(encoded(photograph(60, 80))[:-100])
    return tmp_path / "images"


def convert(tree, top, **options):
    return prepare.prepare_folder(str(tree), "mine", data_dir=str(top), **options)


def opened(top, split="train"):
    return open_source("tfds", dir=str(top), dataset="mine", split=split)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(60, 80, (32, 43)), (80, 60, (43, 32)), (64, 64, (32, 32)), (33, 100, (32, 97)), (61, 200, (32, 105))],
)
def test_the_shorter_side_gets_the_target_and_the_aspect_stays(height, width, expected):
    image = photograph(height, width)
    small = decode(resized(encoded(image, "PNG"), "x", 32), "x")
    assert small.shape == (*expected, 3)
    assert abs(expected[0] / expected[1] - height / width) * max(height, width) < 1 + max(height, width) / 32
    np.testing.assert_array_equal(small, by_pil(image, *expected[::-1]))


@pytest.mark.parametrize("side", [60, 61, 1000])
def test_an_image_that_is_not_larger_keeps_its_bytes(side):
    for data in (encoded(photograph(60, 80)), encoded(photograph(80, 60), "PNG")):
        assert resized(data, "x", side) is data


@pytest.mark.parametrize(
    "kind", ["grey", "CMYK", "palette", "alpha", "grey and alpha", "16 bit", "turned", "subsampled"]
)
def test_every_kind_of_image_has_the_pixels_that_the_loader_sees(kind):
    image = Image.fromarray(photograph(60, 80))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter; neither the loader nor the copy applies that
    faded = image.copy()
    faded.putalpha(image.convert("L"))
    data = {
        "grey": lambda: encoded(image.convert("L")),
        "CMYK": lambda: encoded(image.convert("CMYK")),
        "palette": lambda: encoded(image.convert("P"), "PNG"),
        "alpha": lambda: encoded(faded, "PNG"),
        "grey and alpha": lambda: encoded(faded.convert("LA"), "PNG"),
        "16 bit": lambda: encoded(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG"),
        "turned": lambda: encoded(image, exif=exif),
        "subsampled": lambda: encoded(image, subsampling="4:2:0"),
    }[kind]()
    seen = decode(data, "x")
    assert seen.shape == (60, 80, 3)
    small = resized(data, "x", 40)
    assert small.startswith(b"\xff\xd8")
    assert b"Exif" not in small
    pixels = decode(small, "x")
    assert pixels.shape == (40, 53, 3)
    np.testing.assert_array_equal(pixels, by_pil(seen, 53, 40))
    if "grey" in kind or kind == "16 bit":  # stays grey to the last bit
        np.testing.assert_array_equal(pixels, pixels[..., :1].repeat(3, -1))
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(small)).convert("RGB")))


def test_an_image_too_long_for_a_jpeg_keeps_its_bytes(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_SIDE", 2**20)
    data = encoded(np.zeros((2, 140_000, 3), np.uint8), "PNG")
    assert resized(data, "x", 1) is data


def test_damaged_files_are_stored_as_they_are(caplog):
    cut = encoded(photograph(60, 80))[:-100]
    with pytest.raises(DamagedImageError, match=r"^some/file\.jpg: ") as caught:
        resized(cut, "some/file.jpg", 32)
    for data in (cut, b"a note", b""):
        assert as_stored(data, "some/file.jpg", 32) is data
    assert [record.getMessage() for record in caplog.records] == [
        f"{caught.value}; it goes in as it is",
        "some/file.jpg is no JPEG, PNG, BMP or WebP; it goes in as it is",
        "some/file.jpg is no JPEG, PNG, BMP or WebP; it goes in as it is",
    ]


def test_a_prepared_set_holds_the_resized_images(tree, tmp_path, caplog):
    folder = convert(tree, tmp_path / "sets", resize=32)
    assert sum("it goes in as it is" in record.getMessage() for record in caplog.records) == 2
    for split, count in (("train", 11), ("val", 4)):
        source, files = opened(tmp_path / "sets", split), open_source("folder", dir=str(tree), dataset="", split=split)
        assert len(source) == count
        for i in range(count):
            data, label = files.read(i)
            assert source.read(i) == (as_stored(data, "", 32), label)
    train = opened(tmp_path / "sets")
    assert [train.read(i)[0][:6] for i in (8, 9, 10)] == [b"\xff\xd8\xff\xe0\x00\x10", b"a note", b"\x89PNG\r\n"]
    with pytest.raises(DamagedImageError, match="train image 9 "):
        train[9]
    info = tfds.builder_from_directory(folder).info
    assert "shorter side of more than 32 px" in info.description
    assert "quality 90, chroma 4:4:4" in info.description
    assert dict(info.metadata or {})["dcjax_resize"] == 32
    # Once more, and the files are the same to the last byte.
    again = convert(tree, tmp_path / "again", resize=32)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names if "array_record" in name)


def test_the_fingerprint_tells_the_size(tree, tmp_path):
    # No image is larger than either size: all bytes are the same, and only the setting tells the sets apart.
    sets = {resize: convert(tree, tmp_path / str(resize), resize=resize).parent.parent for resize in (None, 1000, 2000)}
    assert len({opened(top).fingerprint for top in sets.values()}) == 3
    assert not (sets[None] / "mine" / "1.0.0" / "metadata.json").exists()


def test_a_set_prepared_with_another_size_is_not_prepared_again(tree, tmp_path):
    convert(tree, tmp_path, resize=32)
    before = opened(tmp_path).fingerprint
    for resize in (32, 40, None):
        with pytest.raises(
            SettingError, match=r"1\.0\.0 is prepared in .* already, with --resize=32; .*another --version"
        ):
            convert(tree, tmp_path, resize=resize)
    assert opened(tmp_path).fingerprint == before
    convert(tree, tmp_path, version="2.0.0")
    with pytest.raises(SettingError, match=r"2\.0\.0 is prepared in .* already, without --resize; .*another --version"):
        convert(tree, tmp_path, version="2.0.0", resize=32)


@pytest.mark.parametrize("first", [None, 32])
def test_an_interrupted_preparation_goes_on_with_its_own_size_alone(tree, tmp_path, monkeypatch, first):
    whole, written = array_record.write_shard, []

    def interrupted(path, source, shard, features, **options):
        if shard.split == "val":
            raise KeyboardInterrupt
        whole(path, source, shard, features, **options)
        written.append(path.name)

    with monkeypatch.context() as patch:
        patch.setattr(array_record, "write_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(tree, tmp_path, resize=first)
    work = tmp_path / "mine" / "1.0.0.incomplete"
    kept = {path.name: path.stat().st_mtime_ns for path in work.iterdir()}
    words = "with --resize=32" if first else "without --resize"
    for other in {None, 32, 40} - {first}:
        now = other or "not given"
        with pytest.raises(
            SettingError, match=rf"incomplete was begun {words}, now it is {now}; give the same"
        ) as caught:
            convert(tree, tmp_path, resize=other)
        assert "\n" not in str(caught.value)
    assert {path.name: path.stat().st_mtime_ns for path in work.iterdir()} == kept
    folder = convert(tree, tmp_path, resize=first)
    assert all((folder / name).stat().st_mtime_ns == kept[name] for name in written)
    assert len(opened(tmp_path)) == 11


def test_an_interruption_does_not_wait_for_whole_files(tree, tmp_path, monkeypatch):
    read, stop, waited = [], threading.Event(), []

    def until_the_second(source, i):
        read.append(i)
        if len(read) == 2:
            stop.set()
        return encoded(photograph(60, 80)), 0

    source = prepare.open_splits(str(tree))["train"]
    path, features = tmp_path / "mine.array_record", array_record.image_features("ab")
    with monkeypatch.context() as patch:
        patch.setattr(prepare.FolderSource, "read", until_the_second)
        array_record.write_shard(path, source, array_record.Shard("train", 0, 1, 0, 11), features, resize=32, stop=stop)
    assert read == [0, 1]
    assert not list(tmp_path.glob("*array_record*"))

    def interrupted(path, source, shard, features, *, resize, stop):
        if shard.split == "train":
            raise KeyboardInterrupt
        waited.append(stop.wait(60))

    monkeypatch.setattr(array_record, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(tree, tmp_path, resize=32)
    assert all(waited)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--folder=x --name=mine --resize=0", "--resize must be at least 1 pixel, found 0"),
        ("--folder=x --name=mine --resize=-320", "--resize must be at least 1 pixel, found -320"),
        ("--folder=x --name=mine --resize=small", "--resize: invalid int value: 'small'"),
        ("--folder=x --name=mine --resize=3.5", "--resize: invalid int value: '3.5'"),
        ("--dataset=imagenet2012 --resize=320", "--resize=320 goes with --folder alone"),
    ],
)
def test_mistakes(flags, message, tmp_path):
    with pytest.raises(SettingError, match=message) as caught:
        prepare.main([*flags.split(), f"--data_dir={tmp_path}"])
    assert "\n" not in str(caught.value)


def test_the_command(tree, tmp_path, capsys):
    prepare.main([f"--folder={tree}", "--name=mine", f"--data_dir={tmp_path}", "--resize=32"])
    assert f"dcjax: prepared {tmp_path / 'mine' / '1.0.0'}" in capsys.readouterr().out
    assert json.loads((tmp_path / "mine" / "1.0.0" / "metadata.json").read_text())["dcjax_resize"] == 32


def test_a_mistake_is_one_line_and_exit_status_2(tmp_path):
    argv = [sys.executable, "-m", "dcjax.data.prepare", "--folder=x", "--name=mine", "--resize=0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*argv, f"--data_dir={tmp_path}"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "dcjax: --resize must be at least 1 pixel, found 0\n")
