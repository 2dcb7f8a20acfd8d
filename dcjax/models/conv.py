"""The convolution of the encoders, with an exact and fast weight gradient on CPU.

XLA's CPU backend derives the weight gradient of a convolution as a convolution whose window is the whole image, which
runs far below the speed of its matrix products. `_cpu_rule` writes the same sum as matrix products instead, over
chunks of images so that the copied columns stay in cache. GPU and TPU keep XLA's convolution: the choice is made when
the program is lowered for a platform, so one trace serves all of them.

The convolution and its weight gradient are two JAX primitives. Both are bilinear and each is a transpose of the other,
so forward mode, reverse mode and every mixture of them stay within the two and XLA's gradient of the input. (A
`custom_vjp` would have no forward mode, and a `custom_jvp` would lose the rule in the transpose.)
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Strides = tuple[int, int]
Padding = tuple[tuple[int, int], tuple[int, int]]

# Copied column elements per chunk of images: large enough to keep all cores busy, small enough for the cache.
CHUNK_ELEMENTS = 500_000
# Output positions per image up to which XLA's own weight gradient is as fast on CPU as the products.
XLA_POSITIONS = 16


def conv2d(x: jax.Array, kernel: jax.Array, *, strides: Strides, padding: Padding) -> jax.Array:
    """2-D convolution (cross-correlation), channels last, with a fast weight gradient on CPU.

    Differentiable to any order, in forward and reverse mode. A float32 kernel meets half-precision images in their
    dtype. Its gradient is float32, and summed in float32 over images, positions and devices; on a GPU each device's sum
    is rounded to half precision before it crosses devices (see `_weight_gradient`).

    Args:
      x: images `[n, h, w, c]`.
      kernel: `[kh, kw, c, d]`, of the dtype of `x`, or float32 where `x` is of half precision.
      strides: strides of height and width.
      padding: zeros before and after, for height and for width.

    Returns:
      `[n, h', w', d]` in the dtype of `x`.

    Raises:
      ValueError: the ranks, channels or dtypes of `x` and `kernel` do not fit.
    """
    fits = x.ndim == 4 and kernel.ndim == 4 and x.shape[3] == kernel.shape[2]
    if not fits or kernel.dtype not in (x.dtype, _accumulation_dtype(x.dtype)):
        raise ValueError(
            "conv2d: expected x [n, h, w, c] and kernel [kh, kw, c, d] of one dtype, or x of half precision with a "
            f"float32 kernel, found {x.dtype}{list(x.shape)} and {kernel.dtype}{list(kernel.shape)}"
        )
    kernel, x = _varying_like(kernel, x), _varying_like(x, kernel)
    # The rules are traced when the program is lowered, outside of a `with jax.default_matmul_precision(...)` around
    # this call, so the setting travels with the primitive.
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    (top, bottom), (left, right) = padding
    settings = {"strides": tuple(strides), "padding": ((top, bottom), (left, right))}  # lists cannot be hashed
    return _conv2d_p.bind(x, kernel, batch_dims=0, precision=precision, **settings)


def xla_conv2d(
    x: jax.Array, kernel: jax.Array, *, strides: Strides, padding: Padding, precision: Any = None
) -> jax.Array:
    """The same convolution with the gradients that XLA derives."""
    numbers = ("NHWC", "HWIO", "NHWC")
    kernel = kernel.astype(x.dtype)
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers, precision=precision)


def _accumulation_dtype(dtype: Any) -> Any:
    """The dtype in which products of `dtype` are summed: float32 for half precision, else `dtype` itself."""
    return jnp.dtype(jnp.float32 if dtype in (jnp.bfloat16, jnp.float16) else dtype)


def _varying_like(a: jax.Array, b: jax.Array) -> jax.Array:
    """Inside `shard_map`, marks `a` as varying over the mesh axes of `b`: a primitive needs operands of one type.

    The transpose of the mark sums over these axes. Outside of `shard_map` nothing varies, and `a` is returned.
    """
    axes = tuple(sorted(_varying_axes(b) - _varying_axes(a)))
    if not axes:
        return a
    if hasattr(lax, "pcast"):
        return lax.pcast(a, axes, to="varying")
    return lax.pvary(a, axes)  # pyright: ignore[reportAttributeAccessIssue]  # its name in JAX 0.7


def _varying_axes(a: jax.Array) -> frozenset[str]:
    aval: Any = jax.typeof(a)
    return aval.vma if hasattr(aval, "vma") else aval.mat.varying  # `vma` until JAX 0.9


# The operands of a primitive share `batch_dims` leading axes, one for each `vmap` over both operands. The functions
# below compute one member of such a batch.


def _input_gradient(
    g: jax.Array, kernel: jax.Array, *, side: tuple[int, int], strides: Strides, padding: Padding, precision: Any
) -> jax.Array:
    """`[n, h', w', d]`, `[kh, kw, c, d]` -> the transpose of the convolution at images of height and width `side`."""
    pads = []
    for size, out, image, stride, (before, _) in zip(
        kernel.shape[:2], g.shape[1:3], side, strides, padding, strict=True
    ):
        first = size - 1 - before
        pads.append((first, image + size - 1 - (stride * (out - 1) + 1) - first))
    with jax.named_scope("input_gradient"):
        # XLA's GPU compiler knows this as an input gradient only where the reversal meets the convolution directly.
        taps = lax.rev(kernel.astype(g.dtype), (0, 1))
        return lax.conv_general_dilated(
            g,
            taps,
            (1, 1),
            pads,
            lhs_dilation=strides,
            dimension_numbers=("NHWC", "HWOI", "NHWC"),
            precision=precision,
        )


def _weight_gradient(
    x: jax.Array,
    g: jax.Array,
    *,
    size: tuple[int, int],
    strides: Strides,
    padding: Padding,
    precision: Any,
    dtype: Any,
) -> jax.Array:
    """`[n, h, w, c]`, `[n, h', w', d]` -> `[kh, kw, c, d]` in `dtype`, by the rule of the platform."""
    xla_rule = functools.partial(_xla_rule, size=size, strides=strides, padding=padding, precision=precision)
    sum_dtype = _accumulation_dtype(x.dtype)
    rules = {}
    if g.shape[1] * g.shape[2] > XLA_POSITIONS:
        rules["cpu"] = functools.partial(_cpu_rule, size=size, strides=strides, padding=padding)
    if sum_dtype != x.dtype:
        # XLA's GPU compiler has no convolution from half precision to float32: it would convert both operands to
        # float32 first and convolve at the lower speed of that type. Here each convolution sums in float32 and rounds
        # its result once; the sum over devices is float32 again, as compiled for eight H100.
        rules["cuda"] = rules["rocm"] = lambda x, g: xla_rule(x, g, out_dtype=x.dtype).astype(sum_dtype)
    default = functools.partial(xla_rule, out_dtype=sum_dtype)
    with jax.named_scope("weight_gradient"):
        gradient = lax.platform_dependent(x, g, **rules, default=default) if rules else default(x, g)
        return gradient.astype(dtype)


def _xla_rule(
    x: jax.Array,
    g: jax.Array,
    *,
    size: tuple[int, int],
    strides: Strides,
    padding: Padding,
    precision: Any,
    out_dtype: Any,
) -> jax.Array:
    """The weight gradient as the convolution that XLA derives, `[kh, kw, c, d]` in `out_dtype`."""
    # The images are the contracted axis and the output's gradient is the window, dilated by the strides.
    pads = [
        (before, taps + stride * (out - 1) - image - before)
        for taps, out, image, stride, (before, _) in zip(
            size, g.shape[1:3], x.shape[1:3], strides, padding, strict=True
        )
    ]
    return lax.conv_general_dilated(
        x,
        g,
        (1, 1),
        pads,
        rhs_dilation=strides,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        precision=precision,
        preferred_element_type=out_dtype,
    )


def _cpu_rule(x: jax.Array, g: jax.Array, *, size: tuple[int, int], strides: Strides, padding: Padding) -> jax.Array:
    """The weight gradient as matrix products, `[kh, kw, c, d]`, in the dtype of accumulation."""
    (kh, kw), c, d = size, x.shape[3], g.shape[3]
    rows, columns = g.shape[1], g.shape[2]
    if strides == (1, 1) and kh > 1 and min(c, d) > 3:
        product, copied = _shared_rows, (rows + kh - 1) * columns * (kw * c + kh * d)
    else:
        product, copied = _image_columns, rows * columns * kh * kw * c
    accumulate = _accumulation_dtype(x.dtype)

    def chunk_gradient(x, g):
        # Negative padding (cropping) is legal for `lax.pad`, as it is for the convolution.
        x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0)))
        return product(x, g, size, strides, accumulate)

    n = x.shape[0]
    per_chunk = 2 ** (max(1, CHUNK_ELEMENTS // copied).bit_length() - 1)  # a power of two mostly divides the batch
    chunks = -(-n // per_chunk)
    if chunks <= 1:
        return chunk_gradient(x, g)
    per_chunk = -(-n // chunks)
    missing = per_chunk * chunks - n
    if missing:  # images of zeros add nothing to the sum
        x, g = (jnp.pad(a, ((0, missing), (0, 0), (0, 0), (0, 0))) for a in (x, g))
    # Image i goes to chunk i % chunks: where the batch is sharded over devices, every chunk then takes its share from
    # every shard, and no device has to gather the batch.
    x, g = (a.reshape(per_chunk, chunks, *a.shape[1:]) for a in (x, g))

    def add(i, total):
        return total + chunk_gradient(*(lax.dynamic_index_in_dim(a, i, axis=1, keepdims=False) for a in (x, g)))

    return lax.fori_loop(0, chunks, add, _varying_like(jnp.zeros((kh, kw, c, d), accumulate), x))


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


def _mapped(function: Callable[..., jax.Array], batch_dims: int, **settings: Any) -> Callable[..., jax.Array]:
    """`function` with its settings, mapped over leading axes of both operands."""
    function = functools.partial(function, **settings)
    for _ in range(batch_dims):
        function = jax.vmap(function)
    return function


def _primitive(name: str, function: Callable[..., jax.Array], settings: tuple[str, ...]) -> Primitive:
    """A primitive of two arrays that computes `function` wherever it is run."""
    primitive = Primitive(name)

    def compute(x, y, *, batch_dims, **settings):
        return _mapped(function, batch_dims, **settings)(x, y)

    primitive.def_impl(jax.jit(compute, static_argnames=("batch_dims", "strides", "padding", "precision", *settings)))
    mlir.register_lowering(primitive, mlir.lower_fun(compute, multiple_results=False))
    return primitive


_conv2d_p = _primitive("conv2d", xla_conv2d, ())
_weight_gradient_p = _primitive("conv2d_weight_gradient", _weight_gradient, ("size", "dtype"))


@_conv2d_p.def_abstract_eval
def _conv2d_aval(x, kernel, *, batch_dims, strides, padding, precision):
    del precision
    sides = zip(x.shape[-3:-1], kernel.shape[-4:-2], strides, padding, strict=True)
    out = [max(0, (image + sum(pads) - taps) // stride + 1) for image, taps, stride, pads in sides]
    return x.update(shape=(*x.shape[: batch_dims + 1], *out, kernel.shape[-1]), weak_type=False)


@_weight_gradient_p.def_abstract_eval
def _weight_gradient_aval(x, g, *, batch_dims, size, dtype, **settings):
    del settings
    return x.update(shape=(*x.shape[:batch_dims], *size, x.shape[-1], g.shape[-1]), dtype=dtype, weak_type=False)


def _conv2d_transpose_x(g, x, kernel, *, batch_dims, **settings):
    return _mapped(_input_gradient, batch_dims, side=x.aval.shape[-3:-1], **settings)(g, kernel)


def _conv2d_transpose_kernel(g, x, kernel, **settings):
    shape, dtype = kernel.aval.shape, kernel.aval.dtype
    return _weight_gradient_p.bind(x, g, size=shape[-4:-2], dtype=dtype, **settings)


def _weight_gradient_transpose_x(kernel, x, g, *, batch_dims, size, dtype, **settings):
    del size, dtype
    return _mapped(_input_gradient, batch_dims, side=x.aval.shape[-3:-1], **settings)(g, kernel)


def _weight_gradient_transpose_g(kernel, x, g, *, size, dtype, **settings):
    del g, size, dtype
    return _conv2d_p.bind(x, kernel, **settings)


ad.defbilinear(_conv2d_p, _conv2d_transpose_x, _conv2d_transpose_kernel)
ad.defbilinear(_weight_gradient_p, _weight_gradient_transpose_x, _weight_gradient_transpose_g)


def _batching_rule(primitive: Primitive, merged: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """Registers `vmap` of a primitive.

    Mapped over one operand, the primitive is one larger call. Mapped over both, it has one more batch axis.

    Args:
      primitive: of two arrays of four axes.
      merged: for each operand, the axis that absorbs the mapped axis, and that axis of the output.
    """

    def rule(operands, dims, *, batch_dims, **settings):
        if None not in dims:
            x, y = (jnp.moveaxis(a, dim, 0) for a, dim in zip(operands, dims, strict=True))
            return primitive.bind(x, y, batch_dims=batch_dims + 1, **settings), 0
        which = 0 if dims[1] is None else 1
        axis, out_axis = (batch_dims + axis for axis in merged[which])
        # The mapped axis becomes the minor one: where the images are sharded over devices, they stay where they are.
        a = jnp.moveaxis(operands[which], dims[which], axis + 1)
        size = a.shape[axis + 1]
        a = a.reshape(*a.shape[:axis], a.shape[axis] * size, *a.shape[axis + 2 :])
        out = primitive.bind(*((a, operands[1]) if which == 0 else (operands[0], a)), batch_dims=batch_dims, **settings)
        return out.reshape(*out.shape[:out_axis], -1, size, *out.shape[out_axis + 1 :]), out_axis + 1

    batching.primitive_batchers[primitive] = rule


_batching_rule(_conv2d_p, ((0, 0), (3, 3)))  # images to n, kernels to d
_batching_rule(_weight_gradient_p, ((3, 2), (3, 3)))  # images to c, gradients of the output to d


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
        # A half-precision convolution takes the float32 kernel itself, so that its gradient is float32.
        kernel = kernel.astype(_accumulation_dtype(self.dtype))
        return conv2d(x.astype(self.dtype), kernel, strides=strides, padding=(side, side))
