"""The settings of the augmentation, without JAX; `dcjax.data.augment` applies them on the device."""

import dataclasses
import math
from typing import Any

from dcjax.data.crops import check_interpolation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The settings of the two views. It is hashable, so that it can be a static argument of `jax.jit`.

    Args:
      crop_scale, crop_ratio: smallest and largest area (share of the image) and aspect ratio (width / height) of
        the crop.
      interpolation: the interpolation of the crop, "bicubic" or "bilinear", both antialiased.
      flip, jitter, grayscale: probabilities, equal in both views.
      brightness, contrast, saturation: strength `b`; the factor is drawn from U[max(0, 1 - b), 1 + b].
      hue: strength `h`; the shift is drawn from U[-h, h], in turns of the colour circle.
      blur, solarize: probabilities in view 1 and in view 2.
      blur_sigma: smallest and largest standard deviation of the blur, in pixels.
      mean, std: mean and standard deviation of each channel, for the normalisation.

    An operation whose probability or strength is 0 is not traced at all. Sequences become tuples of floats.

    Raises:
      ValueError: a value is out of its range; the message begins with the field.

    References:
      Section 4 of the paper; the two views of BYOL (Grill et al., 2020) and Barlow Twins (Zbontar et al., 2021).
    """

    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    interpolation: str
    flip: float
    jitter: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    grayscale: float
    blur: tuple[float, float]
    blur_sigma: tuple[float, float]
    solarize: tuple[float, float]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def imagenet(cls) -> "Augmentation":
        """The paper's recipe for ImageNet, with ImageNet's mean and standard deviation."""
        return cls(
            crop_scale=(0.08, 1.0),
            crop_ratio=(3 / 4, 4 / 3),
            interpolation="bicubic",
            flip=0.5,
            jitter=0.8,
            brightness=0.4,
            contrast=0.4,
            saturation=0.2,
            hue=0.1,
            grayscale=0.2,
            blur=(1.0, 0.1),
            blur_sigma=(0.1, 2.0),
            solarize=(0.0, 0.2),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        )

    @classmethod
    def small_images(cls) -> "Augmentation":
        """`imagenet` for photographs of 32 to 64 pixels: larger crops and, as in SimCLR's paper, no blur."""
        return dataclasses.replace(cls.imagenet(), crop_scale=(0.2, 1.0), blur=(0.0, 0.0))

    def __post_init__(self) -> None:
        check_interpolation(self.interpolation)
        for name in ("crop_scale", "crop_ratio", "blur", "blur_sigma", "solarize"):
            self._set(name, _floats(name, getattr(self, name), 2))
        for name in ("mean", "std"):
            self._set(name, _floats(name, getattr(self, name), 3))
        for name in ("flip", "jitter", "brightness", "contrast", "saturation", "hue", "grayscale"):
            self._set(name, _floats(name, [getattr(self, name)], 1)[0])
        for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            _require(all(0 <= p <= 1 for p in values), name, value, "a probability lies in [0, 1]")
        for name in ("brightness", "contrast", "saturation"):
            _require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "a finite number of at least 0")
        _require(0 <= self.hue <= 0.5, "hue", self.hue, "a hue shift lies in [0, 0.5]")
        low, high = self.crop_scale
        _require(0 < low <= high <= 1, "crop_scale", self.crop_scale, "(low, high) with 0 < low <= high <= 1")
        for name in ("crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            _require(0 < low <= high < math.inf, name, (low, high), "(low, high) with 0 < low <= high")
        _require(all(map(math.isfinite, self.mean)), "mean", self.mean, "three finite numbers")
        _require(all(0 < s < math.inf for s in self.std), "std", self.std, "three numbers above 0")

    @property
    def blur_radius(self) -> int:
        """The number of taps on either side of the blur's kernel."""
        # Three standard deviations hold 99.7 % of the kernel. The number of taps has to be static, so the largest sigma
        # determines it; for a smaller sigma the outer taps vanish.
        return math.ceil(3 * self.blur_sigma[1])

    def check_size(self, size: int) -> None:
        """Raises `ValueError` if the blur is too wide for views of `size` pixels."""
        right = f"at most {(size - 1) // 3}, since the blur's reach of {self.blur_radius} pixels must be below {size}"
        _require(max(self.blur) <= 0 or self.blur_radius < size, "blur_sigma", self.blur_sigma, right)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen


def _floats(name: str, value: Any, count: int) -> tuple[float, ...]:
    try:
        values = tuple(float(v) for v in value)
    except (TypeError, ValueError):
        values = ()
    _require(len(values) == count, name, value, "a number" if count == 1 else f"{count} numbers")
    return values


def _require(condition: bool, name: str, value: Any, right: str) -> None:
    if not condition:
        raise ValueError(f"{name}: found {value!r}, expected {right}")
