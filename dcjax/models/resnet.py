"""ResNet-18 and ResNet-50 encoders without their classifier: images to representations.

He et al., "Deep residual learning for image recognition" (CVPR 2016), in the variants that contrastive learning uses:
the stride of a bottleneck sits in its 3x3 convolution ("v1.5"), and the last BatchNorm of a residual block starts at
scale zero, so that every block starts as the identity (Goyal et al., 2017).

Under a global `jax.jit` a batch sharded over a mesh is one array, so the statistics below already are those of the
global batch (SyncBatchNorm) and no axis name is needed.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dcjax.models.conv import Conv
from dcjax.runtime.errors import not_known
from dcjax.runtime.tables import accepted

STEMS = ("imagenet", "small")
BASE_CHANNELS = 64
BN_MOMENTUM = 0.9  # weight of the old value in a running average; PyTorch calls the other weight momentum, 0.1


def _batch_norm(train: bool, dtype: Any, name: str, zero_scale: bool = False) -> nn.BatchNorm:
    """BatchNorm with float32 statistics and parameters, whatever the compute dtype.

    The running variance averages the biased batch variance (divided by m), where PyTorch averages the unbiased one
    (divided by m - 1): outputs in training mode agree, running variances differ by the factor m / (m - 1).
    Flax's momentum 0.9 weighs the old value, PyTorch's 0.1 the new one: the same average.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=BN_MOMENTUM,
        epsilon=1e-5,
        dtype=dtype,
        param_dtype=jnp.float32,
        scale_init=nn.initializers.zeros if zero_scale else nn.initializers.ones,
        name=name,
    )


def _shortcut(x: jax.Array, channels: int, strides: int, train: bool, dtype: Any) -> jax.Array:
    """The skip connection: `x`, or where the shape changes its 1x1 projection, whose layers join the calling block."""
    if strides == 1 and x.shape[-1] == channels:
        return x
    x = Conv(channels, 1, strides=strides, dtype=dtype, name="downsample_conv")(x)
    return _batch_norm(train, dtype, "downsample_bn")(x)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip connection (ResNet-18).

    Attributes:
      filters: output channels.
      strides: stride of the first convolution.
      dtype: compute dtype.
    """

    filters: int
    strides: int = 1
    dtype: Any = jnp.float32

    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[n, h, w, c]` -> `[n, ceil(h / strides), ceil(w / strides), filters]`; `train` uses batch statistics."""
        y = Conv(self.filters, 3, strides=self.strides, padding=1, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(_batch_norm(train, self.dtype, "bn1")(y))
        y = Conv(self.filters, 3, padding=1, dtype=self.dtype, name="conv2")(y)
        y = _batch_norm(train, self.dtype, "bn2", zero_scale=True)(y)
        return nn.relu(y + _shortcut(x, self.filters, self.strides, train, self.dtype))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a skip connection (ResNet-50).

    Attributes:
      filters: inner channels; the output has four times as many.
      strides: stride of the 3x3 convolution.
      dtype: compute dtype.
    """

    filters: int
    strides: int = 1
    dtype: Any = jnp.float32

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[n, h, w, c]` -> `[n, ceil(h / strides), ceil(w / strides), 4 filters]`; `train` uses batch statistics."""
        channels = self.expansion * self.filters
        y = Conv(self.filters, 1, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(_batch_norm(train, self.dtype, "bn1")(y))
        y = Conv(self.filters, 3, strides=self.strides, padding=1, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(_batch_norm(train, self.dtype, "bn2")(y))
        y = Conv(channels, 1, dtype=self.dtype, name="conv3")(y)
        y = _batch_norm(train, self.dtype, "bn3", zero_scale=True)(y)
        return nn.relu(y + _shortcut(x, channels, self.strides, train, self.dtype))


class ResNet(nn.Module):
    """A residual encoder; modules bear torchvision's names (`layer1.0.conv1` is `layer1_0/conv1`).

    Attributes:
      stage_sizes: number of residual blocks of each stage.
      block: `BasicBlock` or `Bottleneck`.
      width: the factor of all channel counts; 64 * width must be a positive integer.
      stem: "imagenet" (7x7 convolution of stride 2, then a max pool of stride 2) or "small" (3x3, stride 1, no pool).
      dtype: compute dtype; parameters and statistics stay float32.
      remat: recompute the inside of each residual block in the backward pass instead of storing it.

    Raises:
      ValueError: the stem is unknown, or the width gives no whole number of channels.
    """

    stage_sizes: tuple[int, ...]
    block: Any
    width: float = 1.0
    stem: str = "imagenet"
    dtype: Any = jnp.float32
    remat: bool = False

    def __post_init__(self):
        if self.stem not in STEMS:
            raise ValueError(not_known("stem", self.stem, STEMS))
        channels = BASE_CHANNELS * self.width
        if channels < 1 or channels != int(channels):
            raise ValueError(
                f"width must make {BASE_CHANNELS} * width a whole number of at least 1, found {self.width!r}, "
                f"which gives {channels}"
            )
        super().__post_init__()

    @property
    def features(self) -> int:
        """Size `d` of the representation."""
        return int(BASE_CHANNELS * self.width) * 2 ** (len(self.stage_sizes) - 1) * self.block.expansion

    @property
    def smallest_image(self) -> int:
        """Side of the image that leaves the last of four stages one pixel."""
        return 32 if self.stem == "imagenet" else 8

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Encode a batch.

        Args:
          images: normalised images `[n, h, w, 3]`.
          train: whether to normalise with the statistics of this batch and update the running ones (the collection
            `batch_stats`, to be named in `mutable`), or with the running ones.

        Returns:
          Representations `[n, d]`, float32 (float64 where `dtype` is): the global average pool after the last ReLU.
        """
        channels = int(BASE_CHANNELS * self.width)
        # `train` decides what is traced, so the rematerialised block takes it as a static argument (self is 0).
        block = nn.remat(self.block, static_argnums=(2,)) if self.remat else self.block
        if self.stem == "imagenet":
            h = Conv(channels, 7, strides=2, padding=3, dtype=self.dtype, name="conv1")(images)
        else:
            h = Conv(channels, 3, padding=1, dtype=self.dtype, name="conv1")(images)
        h = nn.relu(_batch_norm(train, self.dtype, "bn1")(h))
        if self.stem == "imagenet":
            # Flax annotates `padding` as str and documents explicit pairs.
            h = nn.max_pool(h, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        for stage, size in enumerate(self.stage_sizes):
            for index in range(size):
                strides = 2 if stage > 0 and index == 0 else 1
                name = f"layer{stage + 1}_{index}"
                h = block(filters=channels * 2**stage, strides=strides, dtype=self.dtype, name=name)(h, train)
        return jnp.mean(h, axis=(1, 2), dtype=jnp.promote_types(h.dtype, jnp.float32))  # [n, d]


ResNet18 = functools.partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
ResNet50 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck)
# A wide representation at a small cost, for experiments on a laptop. The second block of the last stage is there for
# DirectCLR: only a block whose shortcut is the identity copies its input into r.
ResNet17 = functools.partial(ResNet, stage_sizes=(1, 1, 1, 2), block=Bottleneck)

# Each entry is a class or function that makes a Linen module, and has those of the settings of `make_encoder` that it
# needs. The module has `__call__(images, train)`, from `[n, h, w, 3]` to `[n, d]`, the property `features`, which is d,
# and optionally `smallest_image`. Its BatchNorm uses `BN_MOMENTUM`: the probe of an untrained encoder relies on it.
ENCODERS: dict[str, Callable[..., Any]] = {"resnet17": ResNet17, "resnet18": ResNet18, "resnet50": ResNet50}


def make_encoder(
    name: str, *, width: float = 1.0, stem: str = "imagenet", dtype: Any = jnp.float32, remat: bool = False
) -> nn.Module:
    """Builds an encoder by its name.

    Args:
      name: a key of `ENCODERS`.
      width, stem, dtype, remat: see `ResNet`; an encoder gets those that it accepts.

    Returns:
      The module; `features` is the size of its representation.

    Raises:
      ValueError: the name or stem is unknown, the width gives no whole number of channels, or a setting differs from
        its default though the encoder does not accept it.
    """
    if name not in ENCODERS:
        raise ValueError(not_known("name", name, ENCODERS))
    settings = {"width": width, "stem": stem, "dtype": dtype, "remat": remat}
    used = accepted(ENCODERS[name], settings)
    for setting, found in settings.items():
        default = inspect.signature(make_encoder).parameters[setting].default
        if setting not in used and found != default:
            found, default = (getattr(value, "__name__", value) for value in (found, default))  # of a dtype
            raise ValueError(f"{setting} has no meaning for the encoder '{name}', found {found}; leave it at {default}")
    return ENCODERS[name](**used)


def smallest_image(encoder: nn.Module) -> int:
    """Side of the smallest image that the encoder takes, in pixels; 1 where it has no property of this name."""
    return getattr(encoder, "smallest_image", 1)
