"""Augmentation on the device: the two asymmetric views of the paper, as pure functions of (images, key, position).

All random numbers of an example's view come from one call, with a key that depends on the seed, the example's position
in the global stream and the view. So they are the same bits on any number of devices and processes. Call the functions
under `jax.jit`, with `size`, `settings` and `mesh` static.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Integer, PRNGKeyArray, UInt8

from dcjax.data import image_ops
from dcjax.data.recipe import Augmentation

# The place of each number among the uniform numbers of one view. Changing this table changes every draw of every run.
CROP = slice(0, 2 * image_ops.ATTEMPTS + 2)  # areas, ratios, top, left
FLIP = 22
JITTER = 23
JITTER_DRAWS = slice(24, 32)  # strength of the four colour operations, then their order
GRAYSCALE = 32
BLUR = 33
SIGMA = 34
SOLARIZE = 35
DRAWS = 36
# A TPU augments as many images at a time as have so many bytes in float32, 16 at 224 px. By the program compiled for a
# v5e, whose scratch memory has 128 MiB, 16 and 32 images stay inside of it.
TPU_BYTES = 10_000_000


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
      images: `[n, s, s, 3]` uint8, to be cropped here, or `[n, 2, size, size, 3]` uint8, the host's crops of each view.
      seed_key: the key of the run.
      positions: `[n]`, each example's position in the global stream.
      size: side of the views in pixels.
      settings: the augmentation.
      mesh: the mesh over whose axis the images are sharded, if they are. Without it the result is the same, but the
        devices of a CPU wait for each other.

    Returns:
      `(x, x_prime)`, each `[n, size, size, 3]` float32. Crop, flip, colour jitter, grayscale, blur, solarize and
      normalisation are applied in this order, with the draws of `view_draws(seed_key, position, view)`.

    Raises:
      ValueError: images or positions have another dtype or shape, or the blur is too wide for the size.

    References:
      Section 4 of the paper.
    """
    cropped = images.ndim == 5
    _check(images, positions, size if cropped else None, views=2 if cropped else None)
    settings.check_size(size)
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
      images: `[n, s, s, 3]` uint8; with `cropped`, the host's crops `[n, size, size, 3]`.
      seed_key: the key of the run.
      positions: `[n]`, each example's position in the global stream.
      size: side of the view in pixels.
      settings: the augmentation, of which crop, interpolation, flip, mean and std are used.
      cropped: whether the host has cropped the images already.
      mesh: as in `two_views`.

    Returns:
      `[n, size, size, 3]` float32.

    Raises:
      ValueError: the images have another dtype or shape.
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
    """Normalises images for evaluation, after a resize where their side is not `size`.

    Args:
      images: `[n, s, s, 3]` uint8.
      size: side of the result in pixels.
      interpolation: the interpolation of the resize, a key of `image_ops.KERNELS`.
      mean, std: mean and standard deviation of each channel.

    Returns:
      `[n, size, size, 3]` float32.

    Raises:
      ValueError: the images have another dtype or shape.
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

    The key is `fold_in(fold_in(seed_key, position), view)`; the place in the batch does not enter. A single call costs
    one hash per example, and switching an operation off does not move another's draws.
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

    # Image by image on a CPU: it stays in the cache, which takes a tenth of the time of a whole batch, and operations
    # that its draws leave out are not computed. A TPU takes as many at a time as its scratch memory holds with all that
    # lies between two operations: an eighth of the traffic. A GPU needs the whole batch to be busy.
    def in_turn(images: Array, draws: Array, *, at_once: int | None) -> Array:
        return jax.lax.map(lambda row: one(*row), (images, draws), batch_size=at_once)

    tpu_images = max(TPU_BYTES // (4 * 3 * size**2), 1)
    rules = {"cpu": functools.partial(in_turn, at_once=None), "tpu": functools.partial(in_turn, at_once=tpu_images)}
    if mesh is not None and mesh.size > 1:
        rows = PartitionSpec(mesh.axis_names)
        rules = {name: jax.shard_map(r, mesh=mesh, in_specs=(rows, rows), out_specs=rows) for name, r in rules.items()}
    return jax.lax.platform_dependent(images, draws, **rules, default=jax.vmap(one))


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
        return image_ops.gaussian_blur(x, low + (high - low) * u[SIGMA], radius=s.blur_radius)

    x = _sometimes(u[JITTER], s.jitter if max(strengths.values()) > 0 else 0.0, jitter, x)
    x = _sometimes(u[GRAYSCALE], s.grayscale, image_ops.grayscale, x)
    x = _sometimes(u[BLUR], s.blur[view], blur, x)
    return _sometimes(u[SOLARIZE], s.solarize[view], image_ops.solarize, x)


def _standardize(image: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """`[3, h, w]` to `[h, w, 3]`."""
    centre, spread = (jnp.asarray(values, jnp.float32).reshape(3, 1, 1) for values in (mean, std))
    return jnp.moveaxis((image - centre) / spread, 0, -1)


def _check(images: Array, positions: Array | None, size: int | None, views: int | None = None) -> None:
    """Raises `ValueError`, before anything is compiled, unless the images have the size and number of views."""
    side = images.shape[-2:-1] if size is None else (size,)
    wanted = (*images.shape[:1], *((views,) if views else ()), *side, *side, 3)
    if images.dtype != jnp.uint8 or images.shape != wanted:
        shape = ", ".join(["n", *([str(views)] if views else []), *([str(size)] * 2 if size else ["s", "s"]), "3"])
        raise ValueError(f"images: found {images.dtype} {list(images.shape)}, expected uint8 [{shape}]")
    if positions is not None and positions.shape != images.shape[:1]:
        raise ValueError(f"positions: found shape {list(positions.shape)}, expected [{images.shape[0]}], one per image")
