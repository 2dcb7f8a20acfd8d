"""The toy models of the paper's figures: ensembles of linear or ReLU chains trained by SGD on fresh Gaussian batches.

A cell is one model: a depth, an augmentation amplitude and a seed. The grid of all cells is one compiled program: steps
in a loop, cells in blocks by `vmap`, shallower chains padded with identities, blocks spread over the devices by
`shard_map` (cells never talk to each other). One seed gives the same data, noise and initial layers at every amplitude
and depth, and in float32 and float64, so that cells differ by nothing but their setting.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from dcjax.collapse import spectrum
from dcjax.runtime.errors import SettingError, unknown_name
from dcjax.toy.info_nce import embedding_gradients

NOISES = ("block", "isotropic")

# Cells that a CPU core steps through together: their [n, n] weights stay in its cache.
CPU_BLOCK = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What all cells of an ensemble have in common.

    Attributes:
      dim: width of the input and of every layer.
      samples: batch size n; every step draws new samples.
      data_variance: variance of each input coordinate; 1/2 is the paper's convention, in which pairs differ by the
        identity.
      noise: where the augmentation's noise goes: `block`, the last dim // 2 coordinates (Fig. 3), or `isotropic`.
      two_sided: both views are noisy (the released code); False: x' = x + noise (the paper). With noise on both sides X
        has no negative eigenvalue at small weights, so that strong augmentation suppresses but does not collapse.
      init: a name of `INITS`.
      loss: a name of `GRADIENTS`; the mean over the samples.
      temperature: of the loss `dot`; None for `info_nce`, which has none.
      learning_rate: of plain SGD.
      relu: ReLU between the layers.
      frozen: layers, counted from 0 at the input, that stay as they were initialised.

    Raises:
      ValueError: a name that is not known, sizes or rates that are not positive, a temperature without use.
    """

    dim: int
    samples: int
    data_variance: float
    noise: str
    two_sided: bool
    init: str
    loss: str
    learning_rate: float
    temperature: float | None = None
    relu: bool = False
    frozen: tuple[int, ...] = ()

    def __post_init__(self):
        for name, known in (("noise", NOISES), ("init", INITS), ("loss", GRADIENTS)):
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        sizes = (self.dim, self.samples)
        if not all(isinstance(size, int) for size in sizes) or self.dim < 1 or self.samples < 2:
            raise SettingError(
                f"dim and samples must be whole numbers of at least 1 and 2, found {sizes[0]} and {sizes[1]}"
            )
        if self.noise == "block" and self.dim < 2:
            raise SettingError(f"dim must be at least 2 for noise on half of the coordinates, found {self.dim}")
        object.__setattr__(self, "frozen", tuple(self.frozen))
        for name in ("data_variance", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise SettingError(f"{name} must be positive and finite, found {getattr(self, name)}")
        if (self.loss == "dot") != (self.temperature is not None):
            raise SettingError(
                f"temperature belongs to the loss dot, found {self.temperature} with the loss {self.loss}"
            )
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise SettingError(f"temperature must be positive and finite, found {self.temperature}")


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """The layers of an ensemble at the recorded steps.

    Attributes:
      setting: what the cells have in common.
      depths: `[depths]`.
      amplitudes: `[amplitudes]`, variances of the augmentation's noise.
      seeds: `[seeds]`.
      steps: `[records]`, the steps at which the layers were recorded.
      weights: `[depths, amplitudes, seeds, records, layers, dim, dim]`; layers beyond a cell's depth are identities.
        NaN where a cell diverged.
    """

    setting: Setting
    depths: tuple[int, ...]
    amplitudes: tuple[float, ...]
    seeds: tuple[int, ...]
    steps: np.ndarray
    weights: np.ndarray

    def singular_values(self) -> np.ndarray:
        """Singular values of every layer, `[depths, amplitudes, seeds, records, layers, dim]`, descending."""
        return np.linalg.svd(self._finite(), compute_uv=False)

    def alignment(self) -> np.ndarray:
        """|V2^T U1| of the first two layers, `[depths, amplitudes, seeds, records, dim, dim]`."""
        if max(self.depths) < 2:
            raise SettingError(f"an alignment needs two layers, found the depths {list(self.depths)}")
        weights = self._finite()
        return np.abs(np.linalg.svd(weights[..., 1, :, :])[2] @ np.linalg.svd(weights[..., 0, :, :])[0])

    def embedding_spectra(self, inputs: int = 1000) -> np.ndarray:
        """Singular values of the embeddings' covariance, `[depths, amplitudes, seeds, records, dim]`, descending.

        Args:
          inputs: how many inputs, new and without noise, the same for all cells of a seed.
        """
        weights = self._finite()
        found = np.empty((*weights.shape[:4], self.setting.dim))
        for index in np.ndindex(*found.shape[:4]):
            rng = np.random.default_rng([self.seeds[index[2]], 1])
            x = rng.normal(0, np.sqrt(self.setting.data_variance), (inputs, self.setting.dim))
            z = embed(weights[index], x, self.depths[index[0]], relu=self.setting.relu)
            found[index] = spectrum(z, normalize=False)
        return found

    def finite(self) -> np.ndarray:
        """Which cells did not diverge, `[depths, amplitudes, seeds]`."""
        return np.asarray(np.isfinite(self.weights).all(axis=(3, 4, 5, 6)))

    def _finite(self) -> np.ndarray:
        if not self.finite().all():
            raise SettingError("a cell of the trajectory diverged: leave it out first (Trajectory.finite tells which)")
        return self.weights


def simulate(
    setting: Setting,
    *,
    depths: Sequence[int],
    amplitudes: Sequence[float],
    seeds: Sequence[int],
    steps: Sequence[int],
    progress: Callable[[int], object] | None = None,
) -> Trajectory:
    """Trains the whole grid of cells, in JAX's default floating dtype.

    Args:
      setting: what the cells have in common.
      depths: numbers of layers.
      amplitudes: variances of the augmentation's noise.
      seeds: of the data, the noise and the initial layers.
      steps: when to record the layers, ascending; the last is the length of the run, 0 the initial layers.
      progress: called with the step about fifty times on the way, for a progress bar.

    Returns:
      The layers at those steps.

    Raises:
      ValueError: an empty or invalid axis of the grid, or a frozen layer that the shallowest cell lacks.

    References:
      Jing et al., ICLR 2022, Figs. 3-6.
    """
    _check_grid(setting, depths, amplitudes, seeds, steps)
    shape = (len(depths), len(amplitudes), len(seeds))
    layers = max(depths)
    grid = np.meshgrid(np.asarray(depths), np.asarray(amplitudes, float), np.asarray(seeds), indexing="ij")
    depth, amplitude, seed = (axis.ravel() for axis in grid)
    cells = len(seed)
    # Pad to whole blocks on every device with copies of the first cell.
    devices = jax.local_devices()
    block = _block(-(-cells // len(devices)))
    size = -(-cells // (len(devices) * block)) * len(devices) * block
    pad = np.r_[np.arange(cells), np.zeros(size - cells, int)]
    mesh = jax.make_mesh((len(devices),), ("cells",), devices=devices, axis_types=(AxisType.Auto,))
    dtype = jnp.zeros(()).dtype
    axes = (jnp.asarray(depth[pad]), jnp.asarray(amplitude[pad], dtype), jnp.asarray(seed[pad], jnp.uint32))
    weights = _initial(setting, layers, *axes)
    advance = _advance(setting, mesh, block)
    records, step = [], 0
    stretch = max(steps[-1] // 50, 1) if progress else steps[-1]
    for wanted in steps:
        while step < wanted:
            stop = min(step + stretch, wanted)
            weights = advance(weights, *axes, step, stop)
            step = stop
            if progress:
                jax.block_until_ready(weights)  # keeps the bar honest
                progress(step)
        # Copied, because the next call overwrites the buffer.
        records.append(np.array(weights[:cells]))
    stacked = np.stack(records, axis=1)
    return Trajectory(
        setting,
        tuple(depths),
        tuple(amplitudes),
        tuple(seeds),
        np.asarray(steps),
        stacked.reshape(*shape, *stacked.shape[1:]),
    )


def embed(layers: Sequence[jax.Array] | np.ndarray, x, depth, *, relu: bool):
    """The embeddings W_L ... W_1 x of the rows of x, with ReLU between the model's layers where asked for.

    Args:
      layers: the matrices from the input on; identities beyond the depth.
      x: `[n, d]`, inputs; of jax.numpy or numpy, like the layers.
      depth: how many of the layers are the model's; may be traced.
      relu: ReLU after each of its layers but the last.

    Returns:
      `[n, d]`.
    """
    if not relu:
        product = layers[0]
        for w in layers[1:]:
            product = w @ product
        return x @ product.T
    for i, w in enumerate(layers):
        x = x @ w.T
        if i + 1 < len(layers):
            # A padded layer leaves x as it is. The operator, not jnp.where, serves NumPy as well.
            x = x * ((x > 0) | (i + 1 >= depth)).astype(x.dtype)
    return x


def collapsed(values: np.ndarray, *, below: float) -> np.ndarray:
    """How many of the values along the last axis are smaller than `below` times the largest of them."""
    values = np.asarray(values)
    return np.sum(values < below * values.max(axis=-1, keepdims=True), axis=-1)


@functools.cache
def _advance(setting: Setting, mesh: Mesh, block: int):
    """The compiled program for all cells: (weights, depth, amplitude, seed, start, stop) -> weights."""

    def one_cell(start, stop, weights, depth, amplitude, seed):
        layers = weights.shape[0]
        trained = np.isin(np.arange(layers), setting.frozen, invert=True)
        active = (jnp.arange(layers) < depth) & trained
        key = jax.random.key(seed)
        bases = _bases(setting, amplitude)

        def step(i, weights):
            drawn = _draw(setting, jax.random.fold_in(key, i), amplitude.dtype)

            def embeddings(weights):
                # The views are basis @ drawn. Folding the basis into the first layer spares forming them, and leaves
                # the expensive draws to products alone: XLA would fuse them into every elementwise reader, once each.
                first = [weights[0] @ basis for basis in bases]
                return tuple(embed([w, *weights[1:]], drawn, depth, relu=setting.relu) for w in first)

            z, pull_back = jax.vjp(embeddings, weights)
            (gradient,) = pull_back(GRADIENTS[setting.loss](*z, setting.temperature))
            rate = setting.learning_rate / setting.samples
            return weights - rate * jnp.where(active[:, None, None], gradient, 0)

        # Traced bounds: one compilation serves runs of any length, which a scan's static length would not.
        return jax.lax.fori_loop(start, stop, step, weights)

    def one_device(weights, depth, amplitude, seed, start, stop):
        cell = functools.partial(one_cell, start, stop)
        blocks = jax.tree.map(lambda a: a.reshape(-1, block, *a.shape[1:]), (weights, depth, amplitude, seed))
        return jax.lax.map(lambda cells: jax.vmap(cell)(*cells), blocks).reshape(weights.shape)

    split, whole = PartitionSpec("cells"), PartitionSpec()
    spread = jax.shard_map(one_device, mesh=mesh, in_specs=(split, split, split, split, whole, whole), out_specs=split)

    def advance(*operands):
        with jax.default_matmul_precision("highest"):
            return spread(*operands)

    return jax.jit(advance, donate_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _initial(setting: Setting, layers: int, depth: jax.Array, amplitude: jax.Array, seed: jax.Array) -> jax.Array:
    def one_cell(depth, amplitude, seed):
        key = jax.random.fold_in(jax.random.key(seed), jnp.uint32(2**32 - 1))  # no step comes this far
        weights = INITS[setting.init](key, layers, setting.dim, amplitude.dtype)
        return jnp.where(
            (jnp.arange(layers) < depth)[:, None, None], weights, jnp.eye(setting.dim, dtype=weights.dtype)
        )

    with jax.default_matmul_precision("highest"):
        # One after the other: batched SVDs side by side can wait for each other's threads for good.
        return jax.lax.map(lambda cell: one_cell(*cell), (depth, amplitude, seed))


def _draw(setting: Setting, key: jax.Array, dtype) -> jax.Array:
    """The standard normals of one batch, `[n, d + noise]`.

    Drawn in float32 whatever the dtype: both precisions then see the same data, and float64 draws cost three times as
    much.
    """
    width = setting.dim + _noisy(setting) * (1 + setting.two_sided)
    # Drawn flat: rows of an odd length would leave the vector units idle.
    return jax.random.normal(key, (setting.samples * width,), jnp.float32).reshape(-1, width).astype(dtype)


def _bases(setting: Setting, amplitude: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What turns the draws of a sample into its two views x and x', both `[d, d + noise]`."""
    eye = jnp.eye(setting.dim, dtype=amplitude.dtype)
    data = setting.data_variance**0.5 * eye
    noise = jnp.sqrt(amplitude) * eye[:, setting.dim - _noisy(setting) :]
    none = jnp.zeros_like(noise)
    if setting.two_sided:
        return jnp.concatenate([data, none, noise], axis=1), jnp.concatenate([data, noise, none], axis=1)
    return jnp.concatenate([data, none], axis=1), jnp.concatenate([data, noise], axis=1)


def _noisy(setting: Setting) -> int:
    """How many coordinates, the last ones, carry noise."""
    return setting.dim if setting.noise == "isotropic" else setting.dim // 2


def _dot_gradients(z: jax.Array, z_prime: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """Gradients of the released toy loss: sum over i of the cross-entropy of z_i . z'_j / temperature, label i."""
    logits = z @ z_prime.T / temperature
    residual = (jax.nn.softmax(logits, axis=1) - jnp.eye(z.shape[0], dtype=z.dtype)) / temperature
    return residual @ z_prime, residual.T @ z


def _uniform_layers(key: jax.Array, layers: int, dim: int, dtype) -> jax.Array:
    """PyTorch's default for linear layers: U(-1/sqrt(d), 1/sqrt(d))."""
    bound = dim**-0.5
    return jnp.stack(
        [jax.random.uniform(_layer_key(key, i), (dim, dim), jnp.float32, -bound, bound) for i in range(layers)]
    ).astype(dtype)


def _decaying_layers(key: jax.Array, layers: int, dim: int, dtype) -> jax.Array:
    """Each layer U diag(exp(-0.35 i)) V^T, with the singular vectors of a matrix uniform in [0, 1)."""

    def layer(key):
        u, _, v_transposed = jnp.linalg.svd(jax.random.uniform(key, (dim, dim), jnp.float32).astype(dtype))
        return (u * _decay(dim, dtype)[None, :]) @ v_transposed

    return jnp.stack([layer(_layer_key(key, i)) for i in range(layers)])


def _balanced_layers(key: jax.Array, layers: int, dim: int, dtype) -> jax.Array:
    """The decaying spectrum with every layer's right singular vectors the left ones of the layer below: C = 0."""
    bases = jax.random.orthogonal(key, dim, (layers + 1,), jnp.float32).astype(dtype)
    bases = jnp.linalg.qr(bases)[0]  # orthogonal to the rounding of the wider dtype
    return (bases[1:] * _decay(dim, dtype)[None, None, :]) @ jnp.swapaxes(bases[:-1], 1, 2)


def _layer_key(key: jax.Array, layer: int) -> jax.Array:
    return jax.random.fold_in(key, layer)


def _decay(dim: int, dtype) -> jax.Array:
    return jnp.exp(-0.35 * jnp.arange(dim, dtype=dtype))


def _block(cells: int) -> int:
    """Cells in a block on a device that has so many: as few padded ones as possible."""
    if jax.default_backend() != "cpu":
        return cells
    return -(-cells // -(-cells // CPU_BLOCK))


def _check_grid(setting, depths, amplitudes, seeds, steps) -> None:
    for name, axis in (("depths", depths), ("amplitudes", amplitudes), ("seeds", seeds), ("steps", steps)):
        if len(axis) == 0:
            raise SettingError(f"{name} must not be empty")
    if min(depths) < 1:
        raise SettingError(f"depths must be at least 1, found {min(depths)}")
    if not all(0 <= amplitude < float("inf") for amplitude in amplitudes):
        raise SettingError(f"amplitudes must be finite and not negative, found {list(amplitudes)}")
    if not all(0 <= seed < 2**32 for seed in seeds):
        raise SettingError(f"seeds must be from 0 to 2^32 - 1, found {list(seeds)}")
    if steps[0] < 0 or any(a >= b for a, b in itertools.pairwise(steps)):
        raise SettingError(f"steps must ascend from 0 or more, found {list(steps)[:5]}")
    if not all(0 <= layer < min(depths) for layer in setting.frozen):
        raise SettingError(f"frozen must name layers from 0 to {min(depths) - 1}, found {setting.frozen}")


INITS: dict[str, Callable[..., jax.Array]] = {
    "default": _uniform_layers,
    "decaying": _decaying_layers,
    "balanced": _balanced_layers,
}
GRADIENTS: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {
    "info_nce": lambda z, z_prime, temperature: embedding_gradients(z, z_prime),
    "dot": _dot_gradients,
}
