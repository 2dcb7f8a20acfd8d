"""Augmentation on the device: the two asymmetric views of the paper, as pure functions of (images, key, position).

Every number that an example's view needs is drawn in one call from a key that depends on the seed, the example's
position in the global stream and the view, so the draws are the same bits on any number of devices and processes. The
functions are meant to be called under `jax.jit`, with `size`, `settings` and `mesh` static.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Integer, PRNGKeyArray, UInt8

from dcjax.data import image_ops
from dcjax.runtime.errors import SettingError, unknown_name

# Where each number stands among the uniform numbers of one view. Changing this table changes every draw of every run.
CROP = slice(0, 2 * image_ops.ATTEMPTS + 2)  # areas, ratios, top, left
FLIP = 22
JITTER = 23
JITTER_DRAWS = slice(24, 32)  # strength of the four colour operations, then their order
GRAYSCALE = 32
BLUR = 33
SIGMA = 34
SOLARIZE = 35
DRAWS = 36


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Settings of the two views; hashable, so that it can be a static argument of `jax.jit`.

    Args:
      crop_scale, crop_ratio: smallest and largest area (share of the image) and aspect ratio (width / height) of
        the crop.
      interpolation: of the crop, "bicubic" or "bilinear", both antialiased.
      flip, jitter, grayscale: probabilities, equal in both views.
      brightness, contrast, saturation: strength `b`; the factor is drawn from U[max(0, 1 - b), 1 + b].
      hue: strength `h`; the shift is drawn from U[-h, h], in turns of the colour circle.
      blur, solarize: probabilities in view 1 and in view 2.
      blur_sigma: smallest and largest standard deviation of the blur, in pixels.
      mean, std: per channel, of the normalisation.

    An operation whose probability or strength is 0 is not traced at all. Sequences become tuples of floats.

    Raises:
      SettingError: a value out of its range; the message names `augment.<field>`.

    Source: section 4 of the paper; the two-view protocol of BYOL (Grill et al., 2020) and Barlow Twins (Zbontar et
    al., 2021).
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

    def __post_init__(self) -> None:
        if self.interpolation not in image_ops.KERNELS:
            raise unknown_name("augment.interpolation", self.interpolation, image_ops.KERNELS)
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
        raise SettingError(f"augment.{name}: found {value!r}, expected {right}")


# Views of a batch.


def two_views(
    images: UInt8[Array, "n s s 3"] | UInt8[Array, "n 2 size size 3"],
    seed_key: PRNGKeyArray,
    positions: Integer[Array, "n"],
    *,
    size: int,
    settings: Augmentation,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "n size size 3"], Float[Array, "n size size 3"]]:
    """Two augmented, normalised views of every image.

    Args:
      images: `[n, s, s, 3]` uint8, cropped here, or `[n, 2, size, size, 3]` uint8, one crop per view made on the
        host.
      seed_key: the key of the run.
      positions: `[n]`, each example's position in the global stream.
      size: side of the views in pixels.
      settings: the augmentation.
      mesh: the mesh over whose axis the images are sharded, if they are. The result is the same without it; devices
        of a CPU then wait for each other.

    Returns:
      `(x, x_prime)`, each `[n, size, size, 3]` float32. Crop, flip, colour jitter, grayscale, blur, solarize and
      normalisation are applied in this order, with the draws of `view_draws(seed_key, position, view)`.

    Raises:
      ValueError: images or positions of another dtype or shape.
      SettingError: a blur too wide for the size.

    Source: section 4 of the paper.
    """
    cropped = images.ndim == 5
    _check(images, positions, size if cropped else None, views=2 if cropped else None)
    radius = _radius(settings)
    if max(settings.blur) > 0 and radius >= size:
        right = f"at most {(size - 1) // 3}: the blur reaches {radius} pixels, and that must stay below the size {size}"
        raise SettingError(f"augment.blur_sigma: found {settings.blur_sigma}, expected {right}")
    options: Any = dict(size=size, settings=settings, cropped=cropped, colour=True, mesh=mesh)
    x, x_prime = (
        _views(images[:, view] if cropped else images, seed_key, positions, view=view, **options) for view in (0, 1)
    )
    return x, x_prime


def one_view(
    images: UInt8[Array, "n s s 3"],
    seed_key: PRNGKeyArray,
    positions: Integer[Array, "n"],
    *,
    size: int,
    settings: Augmentation,
    cropped: bool,
    mesh: Mesh | None = None,
) -> Float[Array, "n size size 3"]:
    """One view for the linear probe: random resized crop, flip and normalisation, without any change of colour.

    Args:
      images: `[n, s, s, 3]` uint8; with `cropped`, `[n, size, size, 3]` crops that the host made.
      seed_key: the key of the run.
      positions: `[n]`, each example's position in the global stream.
      size: side of the view in pixels.
      settings: the augmentation; only crop, interpolation, flip, mean and std are used.
      cropped: whether the host has cropped already.
      mesh: as in `two_views`.

    Returns:
      `[n, size, size, 3]` float32.

    Raises:
      ValueError: images of another dtype or shape.
    """
    _check(images, positions, size if cropped else None)
    options: Any = dict(size=size, settings=settings, cropped=cropped, colour=False, mesh=mesh)
    return _views(images, seed_key, positions, view=0, **options)


def normalize(
    images: UInt8[Array, "n s s 3"],
    *,
    size: int,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Float[Array, "n size size 3"]:
    """Images for evaluation: resized if they must be, then normalised.

    Args:
      images: `[n, s, s, 3]` uint8.
      size: side of the result in pixels; images of another side are resized.
      interpolation: of that resize, a key of `image_ops.KERNELS`.
      mean, std: per channel.

    Returns:
      `[n, size, size, 3]` float32.

    Raises:
      ValueError: images of another dtype or shape.
    """
    _check(images, None, None)

    def one(image: Array) -> Array:
        x = _planar(image)
        if x.shape[1:] != (size, size):
            whole = jnp.asarray((0, 0, *x.shape[1:]), jnp.int32)
            x = image_ops.resized_crop(x, whole, size=size, interpolation=interpolation)
        return _standardize(x, mean, std)

    return jax.vmap(one)(images)


def view_draws(seed_key: PRNGKeyArray, position: Integer[Array, ""] | int, view: int) -> Float[Array, "draws"]:
    """All uniform numbers of one view of one example, `[DRAWS]` in [0, 1).

    The key is `fold_in(fold_in(seed_key, position), view)`: nothing else, such as the place in the batch, enters. One
    call for all numbers costs a single hash per example, and an operation that is switched off does not move
    another's draws.
    """
    key = jax.random.fold_in(jax.random.fold_in(seed_key, position), view)
    return jax.random.uniform(key, (DRAWS,), jnp.float32)


def _views(
    images: Array,
    seed_key: Array,
    positions: Array,
    *,
    view: int,
    size: int,
    settings: Augmentation,
    cropped: bool,
    colour: bool,
    mesh: Mesh | None,
) -> Array:
    draws = jax.vmap(lambda position: view_draws(seed_key, position, view))(positions)

    def one(image: Array, u: Array) -> Array:
        x = _planar(image)
        if not cropped:
            scale, ratio = settings.crop_scale, settings.crop_ratio
            box = image_ops.crop_box(u[CROP], height=x.shape[1], width=x.shape[2], scale=scale, ratio=ratio)
            x = image_ops.resized_crop(x, box, size=size, interpolation=settings.interpolation)
        x = _sometimes(u[FLIP], settings.flip, image_ops.flip, x)
        if colour:
            x = _recolour(x, u, view, settings)
        return _standardize(x, settings.mean, settings.std)

    # One image after another stays in a CPU's cache, and only what its draws ask for is computed: a tenth of the time
    # of whole batches. An accelerator wants the batch.
    def in_turn(images: Array, draws: Array) -> Array:
        return jax.lax.map(lambda row: one(*row), (images, draws))

    if mesh is not None and mesh.size > 1:
        rows = PartitionSpec(mesh.axis_names)
        in_turn = jax.shard_map(in_turn, mesh=mesh, in_specs=(rows, rows), out_specs=rows)
    return jax.lax.platform_dependent(images, draws, cpu=in_turn, default=jax.vmap(one))


def _planar(image: Array) -> Array:
    """uint8 `[h, w, 3]` to float32 `[3, h, w]` in [0, 1]."""
    return jnp.moveaxis(image, -1, 0).astype(jnp.float32) / 255


def _sometimes(u: Array, probability: float, operation: Callable[[Array], Array], x: Array) -> Array:
    if probability <= 0:
        return x
    if probability >= 1:
        return operation(x)
    return jax.lax.cond(u < probability, operation, lambda x: x, x)


def _recolour(x: Array, u: Array, view: int, settings: Augmentation) -> Array:
    s = settings
    strengths = dict(brightness=s.brightness, contrast=s.contrast, saturation=s.saturation, hue=s.hue)

    def jitter(x: Array) -> Array:
        return image_ops.color_jitter(x, u[JITTER_DRAWS], **strengths)

    def blur(x: Array) -> Array:
        low, high = s.blur_sigma
        return image_ops.gaussian_blur(x, low + (high - low) * u[SIGMA], radius=_radius(s))

    x = _sometimes(u[JITTER], s.jitter if max(strengths.values()) > 0 else 0.0, jitter, x)
    x = _sometimes(u[GRAYSCALE], s.grayscale, image_ops.grayscale, x)
    x = _sometimes(u[BLUR], s.blur[view], blur, x)
    return _sometimes(u[SOLARIZE], s.solarize[view], image_ops.solarize, x)


def _radius(settings: Augmentation) -> int:
    # Three standard deviations hold 99.7 % of the kernel. The number of taps has to be static, so it is that of the
    # largest sigma; for a smaller one the outer taps vanish by themselves.
    return math.ceil(3 * settings.blur_sigma[1])


def _standardize(image: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """`[3, h, w]` to `[h, w, 3]`."""
    centre, spread = (jnp.asarray(values, jnp.float32).reshape(3, 1, 1) for values in (mean, std))
    return jnp.moveaxis((image - centre) / spread, 0, -1)


def _check(images: Array, positions: Array | None, size: int | None, views: int | None = None) -> None:
    """Before anything is compiled: `[n, s, s, 3]` for any s, or the given size and number of views."""
    side = images.shape[-2:-1] if size is None else (size,)
    wanted = (*images.shape[:1], *((views,) if views else ()), *side, *side, 3)
    if images.dtype != jnp.uint8 or images.shape != wanted:
        shape = ", ".join(["n", *([str(views)] if views else []), *([str(size)] * 2 if size else ["s", "s"]), "3"])
        raise ValueError(f"images: found {images.dtype} {list(images.shape)}, expected uint8 [{shape}]")
    if positions is not None and positions.shape != images.shape[:1]:
        raise ValueError(f"positions: found shape {list(positions.shape)}, expected [{images.shape[0]}], one per image")
