"""The convolution of the encoders, with an exact and fast weight gradient on CPU.

XLA's CPU backend derives the weight gradient of a convolution as a convolution whose window is the whole image, which
runs far below the speed of its matrix products. The rules below write the same sum as matrix products instead, over
chunks of images so that the copied columns stay in cache. GPU and TPU keep XLA's gradient: the choice is made when the
program is lowered for a platform, so one trace serves all of them.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Strides = tuple[int, int]
Padding = tuple[tuple[int, int], tuple[int, int]]

# Copied column elements per chunk of images: large enough to keep all cores busy, small enough for the cache.
CHUNK_ELEMENTS = 500_000
# Output positions per image up to which XLA's own weight gradient is as fast on CPU as the products.
XLA_POSITIONS = 16


def conv2d(x: jax.Array, kernel: jax.Array, *, strides: Strides, padding: Padding) -> jax.Array:
    """2-D convolution (cross-correlation), channels last, with a fast weight gradient on CPU.

    Differentiable once, in reverse mode. Products of half-precision inputs accumulate in float32.

    Args:
      x: images `[n, h, w, c]`.
      kernel: `[kh, kw, c, d]`, of the dtype of `x`.
      strides: strides of height and width.
      padding: zeros before and after, for height and for width.

    Returns:
      `[n, h', w', d]` in the dtype of `x`.

    Raises:
      ValueError: ranks, channels or dtypes of `x` and `kernel` that do not fit.
    """
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2] or x.dtype != kernel.dtype:
        raise ValueError(
            "conv2d: expected x [n, h, w, c] and kernel [kh, kw, c, d] of one dtype, found "
            f"{x.dtype}{list(x.shape)} and {kernel.dtype}{list(kernel.shape)}"
        )
    return _conv2d(x, kernel, strides, padding)


def xla_conv2d(x: jax.Array, kernel: jax.Array, *, strides: Strides, padding: Padding) -> jax.Array:
    """The same convolution with the gradients that XLA derives (see `conv2d`)."""
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d(x: jax.Array, kernel: jax.Array, strides: Strides, padding: Padding) -> jax.Array:
    return xla_conv2d(x, kernel, strides=strides, padding=padding)


def _forward(x, kernel, strides, padding):
    return _conv2d(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, residuals, g):
    x, kernel = residuals
    (dx,) = jax.linear_transpose(lambda x: xla_conv2d(x, kernel, strides=strides, padding=padding), x)(g)
    rule = functools.partial(_xla_rule, kernel=kernel, strides=strides, padding=padding)
    if g.shape[1] * g.shape[2] > XLA_POSITIONS:
        on_cpu = functools.partial(_cpu_rule, size=kernel.shape[:2], strides=strides, padding=padding)
        dkernel = lax.platform_dependent(x, g, cpu=on_cpu, default=rule)
    else:
        dkernel = rule(x, g)
    return dx, dkernel.astype(kernel.dtype)


_conv2d.defvjp(_forward, _backward)


def _xla_rule(x: jax.Array, g: jax.Array, *, kernel: jax.Array, strides: Strides, padding: Padding) -> jax.Array:
    """`[n, h, w, c]`, `[n, h', w', d]` -> `[kh, kw, c, d]`, in the kernel's dtype."""
    return jax.linear_transpose(lambda k: xla_conv2d(x, k, strides=strides, padding=padding), kernel)(g)[0]


def _cpu_rule(x: jax.Array, g: jax.Array, *, size: tuple[int, int], strides: Strides, padding: Padding) -> jax.Array:
    """The weight gradient as matrix products, `[kh, kw, c, d]`, in the kernel's dtype."""
    (kh, kw), c, d = size, x.shape[3], g.shape[3]
    rows, columns = g.shape[1], g.shape[2]
    if strides == (1, 1) and kh > 1 and min(c, d) > 3:
        product, copied = _shared_rows, (rows + kh - 1) * columns * (kw * c + kh * d)
    else:
        product, copied = _image_columns, rows * columns * kh * kw * c
    accumulate = jnp.float64 if x.dtype == jnp.float64 else jnp.float32

    def chunk_gradient(x, g):
        # Negative padding (cropping) is legal for `lax.pad`, as it is for the convolution.
        x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0)))
        return product(x, g, size, strides, accumulate)

    n = x.shape[0]
    per_chunk = 2 ** (max(1, CHUNK_ELEMENTS // copied).bit_length() - 1)  # a power of two mostly divides the batch
    chunks = -(-n // per_chunk)
    if chunks == 1:
        return chunk_gradient(x, g).astype(x.dtype)
    per_chunk = -(-n // chunks)
    missing = per_chunk * chunks - n
    if missing:  # images of zeros add nothing to the sum
        x, g = (jnp.pad(a, ((0, missing), (0, 0), (0, 0), (0, 0))) for a in (x, g))
    # Image i goes to chunk i % chunks: where the batch is sharded over devices, every chunk then takes its share from
    # every shard, and no device has to gather the batch.
    x, g = (a.reshape(per_chunk, chunks, *a.shape[1:]) for a in (x, g))

    def add(i, total):
        return total + chunk_gradient(*(lax.dynamic_index_in_dim(a, i, axis=1, keepdims=False) for a in (x, g)))

    return lax.fori_loop(0, chunks, add, jnp.zeros((kh, kw, c, d), accumulate)).astype(x.dtype)


def _image_columns(x: jax.Array, g: jax.Array, size: tuple[int, int], strides: Strides, dtype: Any) -> jax.Array:
    """All kh kw shifts of the images side by side, times the output's gradient: any stride, any kernel."""
    (kh, kw), (n, rows, columns, d), c = size, g.shape, x.shape[3]
    (sh, sw) = strides
    shifts = [
        lax.slice(x, (0, i, j, 0), (n, i + sh * (rows - 1) + 1, j + sw * (columns - 1) + 1, c), (1, sh, sw, 1))
        for i in range(kh)
        for j in range(kw)
    ]
    patches = jnp.concatenate(shifts, axis=-1).reshape(-1, kh * kw * c)
    # The barrier keeps the transpose out of the product: XLA's fast product on CPU takes row-major operands only.
    g_t = lax.optimization_barrier(g.reshape(-1, d).T)
    product = lax.dot(g_t, patches, preferred_element_type=dtype)  # [d, kh kw c]
    return product.T.reshape(kh, kw, c, d)


def _shared_rows(x: jax.Array, g: jax.Array, size: tuple[int, int], strides: Strides, dtype: Any) -> jax.Array:
    """Stride 1: the kw horizontal shifts of the images times the kh vertical shifts of the output's gradient.

    Row r of the images meets row r - i of the gradient in the kernel's row i. One product of kw c with kh d columns
    thus holds all taps: it copies kw c + kh d columns where `_image_columns` copies kh kw c, and it is less narrow.
    """
    del strides
    (kh, kw), (_, rows, columns, d), c = size, g.shape, x.shape[3]
    x_shifts = [x[:, : rows + kh - 1, j : j + columns] for j in range(kw)]
    padded = jnp.pad(g, ((0, 0), (kh - 1, kh - 1), (0, 0), (0, 0)))
    g_shifts = [padded[:, kh - 1 - i : 2 * (kh - 1) - i + rows] for i in range(kh)]
    left = jnp.concatenate(g_shifts, axis=-1).reshape(-1, kh * d)
    right = jnp.concatenate(x_shifts, axis=-1).reshape(-1, kw * c)
    product = lax.dot_general(left, right, (((0,), (0,)), ((), ())), preferred_element_type=dtype)  # [kh d, kw c]
    return product.reshape(kh, d, kw, c).transpose(0, 2, 3, 1)


class Conv(nn.Module):
    """Bias-free convolution with explicit padding and He-normal (fan-out, not truncated) kernels.

    Attributes:
      features: number of output channels.
      kernel_size: side of the square kernel.
      strides: stride of both axes.
      padding: zeros added on every side of the image (PyTorch's convention).
      dtype: compute dtype; the kernel is stored in float32.
    """

    features: int
    kernel_size: int
    strides: int = 1
    padding: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[n, h, w, c]` -> `[n, h', w', features]`."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.variance_scaling(2.0, "fan_out", "normal"), shape, jnp.float32)
        strides = (self.strides, self.strides)
        side = (self.padding, self.padding)
        return conv2d(x.astype(self.dtype), kernel.astype(self.dtype), strides=strides, padding=(side, side))
