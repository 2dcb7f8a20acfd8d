"""Projectors of Tables 1 and 2 and of section 6: modules from the representation r to the embedding z.

All take the same settings, so that `projector.name` alone switches between them; each uses those that it needs. Fixed
matrices live in the `constants` collection: drawn from the seed at initialisation, saved with the state, never trained.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dcjax.models.resnet import BN_MOMENTUM
from dcjax.runtime.errors import SettingError, unknown_name

# The fixed and the orthogonal matrices are small beside the encoder, and their singular values are the point of them.
EXACT = jax.lax.Precision.HIGHEST


class Projector(nn.Module):
    """Base of the projectors: `apply(variables, r, train=...)` maps `[n, d]` to the embedding `[n, e]`.

    Attributes:
      d0: dimensions that are kept, for the projectors in `WITH_D0`.
      hidden: width of the hidden layer of `mlp`.
      features: width of the embedding, for `linear` and `mlp`.
      dtype: compute dtype of the trained layers; parameters and batch statistics are float32.
    """

    d0: int
    hidden: int
    features: int
    dtype: Any = jnp.float32


class Identity(Projector):
    """No projector: z = r."""

    @nn.compact
    def __call__(self, r: jax.Array, *, train: bool) -> jax.Array:
        return r


class Linear(Projector):
    """One linear layer without a bias."""

    @nn.compact
    def __call__(self, r: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(self.features, use_bias=False, dtype=self.dtype, kernel_init=_torch_linear, name="linear")(r)


class MLP(Projector):
    """SimCLR's head in the paper's recipe: linear, BN, ReLU, linear, BN, without biases.

    The widths are 2048 and 128 in the paper, on a representation of 2048. Both BNs have a scale and an offset.
    """

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


class Direct(Projector):
    """DirectCLR: z is the first d0 entries of r; no parameters (Jing et al., section 6)."""

    @nn.compact
    def __call__(self, r: jax.Array, *, train: bool) -> jax.Array:
        return r[:, : self.d0]


class RandomSubset(Projector):
    """d0 entries of r, drawn anew for every training step: the control of DirectCLR's fixed subvector.

    The draw follows from the random stream `projector`, the same for both views of a step. In evaluation mode z is the
    first d0 entries, which are as good as any. The authors' code has another form of this control: a permutation of
    every step makes eight groups of 256 entries, whose losses are added.

    References:
      Jing et al., section 6.2: with a random subvector the linear accuracy falls from 62.7 % to 43.0 %.
    """

    @nn.compact
    def __call__(self, r: jax.Array, *, train: bool) -> jax.Array:
        if not train:
            return r[:, : self.d0]
        chosen = jax.random.permutation(self.make_rng("projector"), r.shape[-1])[: self.d0]
        return jnp.take(r, chosen, axis=1, unique_indices=True)


class Orthogonal(Projector):
    """A trainable orthogonal matrix: z = r expm(A - A^T), so that all singular values stay 1 (Table 2).

    A starts from N(0, 1/d), a random rotation. With A = 0 the trust ratio of LARS, which scales the step by |A|, would
    be switched off at the start.
    """

    @nn.compact
    def __call__(self, r: jax.Array, *, train: bool) -> jax.Array:
        d = r.shape[-1]
        generator = self.param("generator", nn.initializers.normal(d**-0.5), (d, d), jnp.float32)
        with jax.default_matmul_precision("float32"):
            rotation = jax.scipy.linalg.expm(generator - generator.T)
        return jnp.matmul(r.astype(jnp.float32), rotation, precision=EXACT)


class Diagonal(Projector):
    """A trainable diagonal matrix, from the identity: z_k = s_k r_k."""

    @nn.compact
    def __call__(self, r: jax.Array, *, train: bool) -> jax.Array:
        return r * self.param("scale", nn.initializers.ones, (r.shape[-1],), jnp.float32).astype(r.dtype)


class LowRank(Projector):
    """A fixed matrix U diag(1, .., 1, 0, .., 0) V^T of rank d0 between random orthogonal matrices.

    Held as its two factors U[:, :d0] and V[:, :d0]^T, which is the same matrix at 2 d d0 numbers instead of d^2.
    """

    @nn.compact
    def __call__(self, r: jax.Array, *, train: bool) -> jax.Array:
        d = r.shape[-1]

        def frame() -> jax.Array:  # d0 orthonormal columns of a Haar-random orthogonal matrix
            return jax.random.orthogonal(self.make_rng("params"), d)[:, : self.d0]

        left = self.variable("constants", "left", frame).value  # [d, d0]
        right = self.variable("constants", "right", lambda: frame().T).value  # [d0, d]
        return jnp.matmul(jnp.matmul(r.astype(jnp.float32), left, precision=EXACT), right, precision=EXACT)


class LowRankDiagonal(Projector):
    """The fixed matrix diag(1, .., 1, 0, .., 0) of rank d0: the same loss and gradient as `direct`."""

    @nn.compact
    def __call__(self, r: jax.Array, *, train: bool) -> jax.Array:
        d = r.shape[-1]
        diagonal = self.variable("constants", "diagonal", lambda: (jnp.arange(d) < self.d0).astype(jnp.float32))
        return r * diagonal.value.astype(r.dtype)


PROJECTORS: dict[str, type[Projector]] = {
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

# Those that keep d0 dimensions.
WITH_D0 = ("direct", "random_subset", "low_rank", "low_rank_diagonal")
# Those whose embedding is the first d0 entries of r: for them r[:d0] and r[d0:] are worth a probe each.
SUBVECTOR_PROJECTORS = ("direct", "low_rank_diagonal")


def make_projector(
    name: str, *, width: int, d0: int, hidden: int, features: int, dtype: Any = jnp.float32
) -> Projector:
    """Builds a projector by its name.

    Args:
      name: a key of `PROJECTORS`.
      width: entries of the representation r that it will be applied to.
      d0: dimensions kept by the projectors in `WITH_D0`; 1 to `width`.
      hidden: hidden width of `mlp`.
      features: embedding width of `linear` and `mlp`.
      dtype: compute dtype of the trained layers.

    Returns:
      The module.

    Raises:
      ValueError: an unknown name, a d0 outside 1..width, or a layer width below 1.
    """
    if name not in PROJECTORS:
        raise unknown_name("projector.name", name, PROJECTORS)
    if name in WITH_D0 and not 1 <= d0 <= width:
        raise SettingError(f"projector.d0 must be from 1 to the width of the representation ({width}), found {d0}")
    if name in ("linear", "mlp") and min(hidden, features) < 1:
        raise SettingError(f"projector.hidden and projector.features must be at least 1, found {hidden} and {features}")
    return PROJECTORS[name](d0=d0, hidden=hidden, features=features, dtype=dtype)


# PyTorch's default for a linear layer, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), which the recipe was tuned with.
_torch_linear = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
