"""The settings of the augmentation: the paper's, those of the configs, and each mistake."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from slow_augment import PAPER

from dcjax.config import load_config
from dcjax.data import Augmentation

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("recipe", "config"),
    [
        (Augmentation.imagenet, ""),
        (Augmentation.small_images, ":cifar10"),
        (Augmentation.small_images, ":tiny_imagenet"),
    ],
)
def test_recipes_are_those_of_the_configs(recipe, config):
    assert recipe() == Augmentation(**load_config(f"configs/directclr.py{config}").augment)


def test_the_papers_recipe():
    assert Augmentation.imagenet() == Augmentation(**PAPER)


def test_settings_need_no_jax():
    code = """
import sys, dcjax
before = "jax" in sys.modules
import dcjax.data
dcjax.data.Augmentation.imagenet()
assert before or "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flip", 1.5), ("jitter", -0.1), ("grayscale", float("nan")), ("blur", (0.5, 2.0)), ("solarize", (0.5,)),
        ("brightness", -1.0), ("contrast", float("inf")), ("saturation", "much"), ("hue", 0.6), ("hue", None),
        ("crop_scale", (0.0, 1.0)), ("crop_scale", (0.5, 0.4)), ("crop_scale", (0.5, 1.1)), ("crop_ratio", (0.0, 1.0)),
        ("crop_ratio", 1.0), ("blur_sigma", (0.0, 2.0)), ("blur_sigma", (2.0, 1.0)), ("mean", (0.5, 0.5)),
        ("mean", (0.5, 0.5, float("nan"))), ("std", (0.2, 0.2, 0.0)),
    ],
)  # fmt: skip
def test_a_bad_setting_names_itself(field, value):
    with pytest.raises(ValueError, match=rf"^{field}: found \[?{re.escape(repr(value))}\]?, expected .+$") as caught:
        Augmentation(**{**PAPER, field: value})
    assert "\n" not in str(caught.value)


def test_lists_become_tuples_and_nothing_has_a_default():
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in PAPER.items()}
    assert Augmentation(**lists) == Augmentation(**PAPER)
    assert hash(Augmentation(**lists)) == hash(Augmentation(**PAPER))
    with pytest.raises(TypeError, match="hue"):
        Augmentation(**{name: value for name, value in PAPER.items() if name != "hue"})


def test_an_unknown_interpolation():
    message = r"^interpolation 'bicubik' is not known \(did you mean 'bicubic'\?\); known: bicubic, bilinear$"
    with pytest.raises(ValueError, match=message):
        Augmentation(**PAPER | {"interpolation": "bicubik"})


def test_a_blur_too_wide():
    Augmentation(**PAPER).check_size(7)
    Augmentation(**PAPER | {"blur": (0, 0)}).check_size(6)
    with pytest.raises(ValueError, match=r"^blur_sigma: found \(0\.1, 2\.0\), expected at most 1, "):
        Augmentation(**PAPER).check_size(6)
