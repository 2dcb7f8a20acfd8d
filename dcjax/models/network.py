"""Encoder, projector and online classifier as one module, so that the train state is one tree per collection."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class NetworkOutput(NamedTuple):
    """Of a batch of n images.

    Attributes:
      r: representations `[n, d]`.
      z: embeddings `[n, e]`.
      logits: `[n, classes]` of the online classifier; None where it has no classes.
    """

    r: jax.Array
    z: jax.Array
    logits: jax.Array | None


class Network(nn.Module):
    """Images to representations, embeddings and the logits of an online classifier.

    Attributes:
      encoder: images `[n, h, w, 3]` to the representation r `[n, d]`.
      projector: r to the embedding z `[n, e]`.
      classes: classes of the online linear classifier; 0 for none (data without labels).
    """

    encoder: nn.Module
    projector: nn.Module
    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> NetworkOutput:
        """Applies the three parts.

        Args:
          images: `[n, h, w, 3]`, normalised.
          train: whether BatchNorm uses the statistics of the batch (and averages them) or the running averages.

        Returns:
          The three as a named tuple, r and z in float32 (float64 where the encoder computes in it). The classifier sees
          r behind a stopped gradient: it measures the encoder and does not train it.
        """
        r = self.encoder(images, train=train)
        z = self.projector(r, train=train)
        r, z = (rows.astype(jnp.promote_types(rows.dtype, jnp.float32)) for rows in (r, z))
        if not self.classes:
            return NetworkOutput(r, z, None)
        classifier = nn.Dense(self.classes, kernel_init=nn.initializers.normal(0.01), name="classifier")
        return NetworkOutput(r, z, classifier(jax.lax.stop_gradient(r)))
