"""Runs at the real scales for two steps on generated images, and the way to their data."""

import dataclasses
import math
import re
import subprocess

import cv2
import numpy as np
import pytest

from dcjax.data import open_source
from dcjax.models import make_encoder
from experiments import run
from experiments.records import read_result
from experiments.scales import PAPER_D0, SCALES, make_config, open_data

# Few images, so that a CPU finishes in seconds; the encoder, the image size and the recipe are the scale's own.
SHRUNK = (
    ("batch_size", 4),
    ("total_steps", 2),
    ("optimizer.warmup_steps", 1),
    ("devices", 1),
    ("probe.eval_batch_size", 8),
    ("data.threads", 1),
)


def write_photographs(folder, count, *, side, suffix):
    """Writes random images of one size."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(str(folder)))
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:02d}{suffix}"), rng.integers(256, size=(side, side, 3), dtype=np.uint8))


def write_tiny_imagenet(root):
    """Writes images in the layout in which Tiny-ImageNet is distributed."""
    for label in ("n01", "n02"):
        write_photographs(root / "train" / label / "images", 12, side=64, suffix=".JPEG")
        (root / "train" / label / f"{label}_boxes.txt").write_text("00.JPEG\t0\t0\t62\t62\n")
    write_photographs(root / "val" / "images", 8, side=64, suffix=".JPEG")
    lines = [f"{i:02d}.JPEG\tn0{1 + i % 2}\t0\t32\t44\t62\n" for i in range(8)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    write_photographs(root / "test" / "images", 3, side=64, suffix=".JPEG")


def sort_validation_images(root):
    """Runs the command that the scale's description of its data gives."""
    (command,) = re.findall(r"`(.*)`", SCALES["gpu_tiny_imagenet"].data)
    subprocess.run(["bash", "-c", command.replace("DIR", str(root))], check=True)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("laptop", marks=pytest.mark.slow),
        pytest.param("gpu", marks=pytest.mark.slow),
        pytest.param("gpu_resnet50", marks=pytest.mark.slow),
        pytest.param("gpu_tiny_imagenet", marks=pytest.mark.slow),
        pytest.param("gpu_tiny_imagenet_resnet50", marks=pytest.mark.slow),
    ],
)
def test_two_steps_at_a_real_scale(name, tmp_path, monkeypatch):
    scale = SCALES[name]
    if scale.images_per_class is not None:
        monkeypatch.setitem(SCALES, name, dataclasses.replace(scale, images_per_class=(12, 2)))
    images = tmp_path / "images"
    if "tiny_imagenet" in name:
        write_tiny_imagenet(images)
        sort_validation_images(images)
    else:
        for label in "ab":
            write_photographs(images / "train" / label, 14, side=32, suffix=".jpg" if label == "a" else ".png")
            write_photographs(images / "test" / label, 4, side=32, suffix=".png")
    job = run.Job(name, "direct", 0, SHRUNK, "check")
    places = {"data": str(images), "work": tmp_path / "work", "results": tmp_path / "results"}
    run.run(job, **places)
    result = read_result(job.file(places["results"]), config=job.config())

    d0 = round(PAPER_D0 * scale.width)
    assert set(result["scores"]) == {"r", f"r[:{d0}]", f"r[{d0}:]"}
    assert (len(result["spectra"]["r"]), len(result["spectra"]["z"])) == (scale.width, d0)
    assert np.isfinite(result["spectra"]["r"]).all()
    assert len(result["loss"]) == 2
    # A random encoder tells random images apart about as well as chance does, whose loss is ln 4.
    assert all(0.3 * math.log(4) < loss < 3 * math.log(4) for loss in result["loss"])
    config = make_config(name, "direct", seed=0)
    assert result["config"]["data.image_size"] == config.data.image_size
    assert result["config"]["model.name"] == config.model.name


@pytest.mark.parametrize("name", SCALES)
def test_the_width_of_a_scale_is_that_of_its_encoder(name):
    model = make_config(name, "direct", seed=0).model
    assert make_encoder(**{**model, "dtype": np.float32}).features == SCALES[name].width


def test_the_gpu_scales_are_both_encoders_on_both_data_sets():
    configs = {name: make_config(name, "direct", seed=0) for name in SCALES if name.startswith("gpu")}
    found = {(config.model.name, config.data.image_size) for config in configs.values()}
    assert found == {("resnet18", 32), ("resnet50", 32), ("resnet18", 64), ("resnet50", 64)}
    for name, config in configs.items():
        scale = SCALES[name]
        assert config.model.width == 1.0
        assert config.optimizer.warmup_epochs == config.total_epochs / 10
        assert config.data.stored_size == config.data.image_size
        assert f"{config.data.image_size} px" in scale.description
        assert f"{config.total_epochs:.0f} epochs" in scale.description
        assert f"{scale.width}-d" in scale.description
        assert "not measured" in scale.processor
        assert scale.minutes <= 60


def test_tiny_imagenet_is_read_as_its_description_says(tmp_path):
    write_tiny_imagenet(tmp_path)
    config = make_config("gpu_tiny_imagenet", "direct", seed=0)
    folder = open_data("gpu_tiny_imagenet", str(tmp_path), tmp_path / "work")

    def sources():
        train = open_source("folder", dir=folder, dataset="", split=config.data.train_split)
        return train, open_source("folder", dir=folder, dataset="", split=config.data.test_split, classes=train.classes)

    with pytest.raises(ValueError, match="images"):  # as unpacked, all of val is one class of that name
        sources()
    sort_validation_images(tmp_path)
    train, test = sources()
    assert (len(train), len(test)) == (24, 8)
    assert train.classes == ("n01", "n02")
    labels = {test.relative_name(i): test.read(i)[1] for i in range(8)}
    assert labels == {f"n0{1 + i % 2}/{i:02d}.JPEG": i % 2 for i in range(8)}
