"""Projectors of Tables 1 and 2 and of section 6: modules from the representation r to the embedding z.

`make_projector` gives each those of the common settings that it accepts, so that the name alone switches between them.
Fixed matrices live in the `constants` collection: drawn from the seed at initialisation, saved with the state, never
trained.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dcjax.models.resnet import BN_MOMENTUM
from dcjax.runtime.errors import not_known
from dcjax.runtime.tables import accepted

# The fixed and the orthogonal matrices cost little beside the encoder, and their singular values must be exact.
EXACT = jax.lax.Precision.HIGHEST


class Identity(nn.Module):
    """No projector: z = r."""

    is_linear = True

    @nn.compact
    def __call__(self, r: jax.Array, *, train: bool) -> jax.Array:
        return r


class Linear(nn.Module):
    """One linear layer without a bias."""

    features: int
    dtype: Any = jnp.float32

    is_linear = True

    @nn.compact
    def __call__(self, r: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(self.features, use_bias=False, dtype=self.dtype, kernel_init=_torch_linear, name="linear")(r)


class MLP(nn.Module):
    """SimCLR's head in the paper's recipe: linear, BN, ReLU, linear, BN, without biases.

    The widths are 2048 and 128 in the paper, on a representation of 2048. Both BNs have a scale and an offset.
    """

    hidden: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, r: jax.Array, *, train: bool) -> jax.Array:
        z = nn.relu(self._layer(r, self.hidden, 1, train))
        return self._layer(z, self.features, 2, train)

    def _layer(self, x: jax.Array, width: int, number: int, train: bool) -> jax.Array:
        linear = nn.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=_torch_linear, name=f"linear{number}")
        batch_norm = nn.BatchNorm(
            use_running_average=not train, momentum=BN_MOMENTUM, epsilon=1e-5, dtype=self.dtype, name=f"bn{number}"
        )
        return batch_norm(linear(x))


class Direct(nn.Module):
    """DirectCLR: z is the first d0 entries of r; no parameters (Jing et al., section 6)."""

    d0: int

    is_linear = is_subvector = True

    @nn.compact
    def __call__(self, r: jax.Array, *, train: bool) -> jax.Array:
        return r[:, : self.d0]


class RandomSubset(nn.Module):
    """d0 entries of r, drawn anew for every training step: the control of DirectCLR's fixed subvector.

    The draw comes from the random stream `projector` and is the same for both views of a step. In evaluation mode z is
    the first d0 entries, which are as good as any. The authors' code has another form of this control: at every step a
    permutation makes eight groups of 256 entries, whose losses are added.

    References:
      Jing et al., section 6.2: with a random subvector the linear accuracy falls from 62.7 % to 43.0 %.
    """

    d0: int

    @nn.compact
    def __call__(self, r: jax.Array, *, train: bool) -> jax.Array:
        if not train:
            return r[:, : self.d0]
        chosen = jax.random.permutation(self.make_rng("projector"), r.shape[-1])[: self.d0]
        return jnp.take(r, chosen, axis=1, unique_indices=True)


class Orthogonal(nn.Module):
    """A trainable orthogonal matrix: z = r expm(A - A^T), so that all singular values stay 1 (Table 2).

    A starts from N(0, 1/d), which gives a random rotation. From A = 0, LARS would take its first step without the trust
    ratio, which is proportional to |A|.
    """

    is_linear = True

    @nn.compact
    def __call__(self, r: jax.Array, *, train: bool) -> jax.Array:
        d = r.shape[-1]
        generator = self.param("generator", nn.initializers.normal(d**-0.5), (d, d), jnp.float32)
        with jax.default_matmul_precision("float32"):
            rotation = jax.scipy.linalg.expm(generator - generator.T)
        return jnp.matmul(r.astype(jnp.float32), rotation, precision=EXACT)


class Diagonal(nn.Module):
    """A trainable diagonal matrix that starts as the identity: z_k = s_k r_k."""

    is_linear = True

    @nn.compact
    def __call__(self, r: jax.Array, *, train: bool) -> jax.Array:
        return r * self.param("scale", nn.initializers.ones, (r.shape[-1],), jnp.float32).astype(r.dtype)


class LowRank(nn.Module):
    """A fixed matrix U diag(1, .., 1, 0, .., 0) V^T of rank d0 between random orthogonal matrices.

    Its two factors U[:, :d0] and V[:, :d0]^T are stored: 2 d d0 numbers instead of d^2.
    """

    d0: int

    is_linear = True

    @nn.compact
    def __call__(self, r: jax.Array, *, train: bool) -> jax.Array:
        d = r.shape[-1]

        def frame() -> jax.Array:  # d0 orthonormal columns of a Haar-random orthogonal matrix
            return jax.random.orthogonal(self.make_rng("params"), d)[:, : self.d0]

        left = self.variable("constants", "left", frame).value  # [d, d0]
        right = self.variable("constants", "right", lambda: frame().T).value  # [d0, d]
        return jnp.matmul(jnp.matmul(r.astype(jnp.float32), left, precision=EXACT), right, precision=EXACT)


class LowRankDiagonal(nn.Module):
    """The fixed matrix diag(1, .., 1, 0, .., 0) of rank d0: the same loss and gradient as `direct`."""

    d0: int

    is_linear = is_subvector = True

    @nn.compact
    def __call__(self, r: jax.Array, *, train: bool) -> jax.Array:
        d = r.shape[-1]
        diagonal = self.variable("constants", "diagonal", lambda: (jnp.arange(d) < self.d0).astype(jnp.float32))
        return r * diagonal.value.astype(r.dtype)


# Each entry is a class or function that makes a Linen module with `__call__(r, *, train)`, from `[n, d]` to the
# embedding `[n, e]`, and has those of the settings of `make_projector` that it needs. A module whose z is the first d0
# entries of r has the attribute `is_subvector = True`: r[:d0] and r[d0:] are then worth a probe each. One that is a
# linear map, the same in every step, has `is_linear = True`: it then has a matrix, and Lemma 2 applies to it.
PROJECTORS: dict[str, Callable[..., Any]] = {
    "none": Identity,
    "linear": Linear,
    "mlp": MLP,
    "direct": Direct,
    "random_subset": RandomSubset,
    "orthogonal": Orthogonal,
    "diagonal": Diagonal,
    "low_rank": LowRank,
    "low_rank_diagonal": LowRankDiagonal,
}


def make_projector(
    name: str, *, width: int, d0: int, hidden: int, features: int, dtype: Any = jnp.float32
) -> nn.Module:
    """Builds a projector by its name.

    Args:
      name: a key of `PROJECTORS`.
      width: entries of the representation r that it will be applied to.
      d0: dimensions kept, 1 to `width`; for the projectors that accept it, as with the other settings.
      hidden: width of the hidden layer.
      features: width of the embedding.
      dtype: compute dtype of the trained layers; parameters and batch statistics are float32.

    Returns:
      The module.

    Raises:
      ValueError: the name is unknown, d0 is not in 1..width, or the width of a layer is below 1.
    """
    if name not in PROJECTORS:
        raise ValueError(not_known("name", name, PROJECTORS))
    used = accepted(PROJECTORS[name], {"d0": d0, "hidden": hidden, "features": features, "dtype": dtype})
    if "d0" in used and not 1 <= d0 <= width:
        raise ValueError(f"d0 must be from 1 to the width of the representation ({width}), found {d0}")
    for setting in ("hidden", "features"):
        if used.get(setting, 1) < 1:
            raise ValueError(f"{setting} must be at least 1, found {used[setting]}")
    return PROJECTORS[name](**used)


# PyTorch's default for a linear layer, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), which the recipe was tuned with.
_torch_linear = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
