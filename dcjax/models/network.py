"""Encoder, projector and online classifier as one module, so that the train state is one tree per collection."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Network(nn.Module):
    """Images to (r, z, logits).

    Attributes:
      encoder: images `[n, h, w, 3]` to the representation r `[n, d]`.
      projector: r to the embedding z `[n, e]`.
      classes: classes of the online linear classifier; 0 for none (data without labels).
    """

    encoder: nn.Module
    projector: nn.Module
    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Applies the three parts.

        Args:
          images: `[n, h, w, 3]`, normalised.
          train: batch statistics of the batch (and their running averages updated) or the running ones.

        Returns:
          r `[n, d]` and z `[n, e]` in float32 (float64 where the encoder computes in it), and the logits `[n, classes]`
          of the online classifier, or None. The classifier sees r behind a stopped gradient: it measures the encoder
          and does not train it.
        """
        r = self.encoder(images, train=train)
        z = self.projector(r, train=train)
        r, z = (rows.astype(jnp.promote_types(rows.dtype, jnp.float32)) for rows in (r, z))
        if not self.classes:
            return r, z, None
        classifier = nn.Dense(self.classes, kernel_init=nn.initializers.normal(0.01), name="classifier")
        return r, z, classifier(jax.lax.stop_gradient(r))
