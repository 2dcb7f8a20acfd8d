"""The bytes of main memory that the algorithm itself needs in one step, whatever compiles it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dcjax.aot import parts
from dcjax.models import Network

WRITTEN_AND_READ = 5  # an activation is written once and read twice, its gradient written and read once


def least_bytes(network: Network, *, image_size: int, pairs: int, whole_side: int = 0) -> dict[str, int]:
    """Bytes of one step on a device, by part; parts that need nearly nothing are left out.

    An activation is what a convolution or a max pool gives, or a residual sum: normalisation and ReLU need no pass of
    their own. Each is written once and read twice (by the next layer, and by the weight gradient), and its gradient is
    written once and read once. The images are read once as bytes, and each view is written once and read twice.
    Parameters count in float32: read in both passes and their gradient written; the optimiser reads gradient,
    parameters and momentum and writes the last two. Statistics of a batch and the loss of some hundred rows are less
    than a thousandth of this and are left out.

    Args:
      network: the network, whose encoder gives the dtype of activations.
      image_size: side of the views in pixels.
      pairs: images of this device, of each of which there are two views.
      whole_side: side of the stored images where they are cropped on the device, else 0.

    Returns:
      Bytes by names of `dcjax.aot.parts`; forward holds the first two passes of each activation and the gradients the
      other three.
    """
    images = jnp.zeros((1, image_size, image_size, 3))
    variables: Any = jax.eval_shape(lambda: network.init(jax.random.key(0), images, train=False))
    convolutions, sums, pools = _activations(network, variables, images)
    width = jnp.dtype(getattr(network.encoder, "dtype", jnp.float32)).itemsize
    numbers = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in variables["params"].items()}
    encoder, everything = 4 * numbers["encoder"], 4 * sum(numbers.values())
    pixels = 3 * image_size**2
    source = 3 * whole_side**2 if whole_side else 2 * pixels
    views = 2 * pairs
    activation, view = views * width * convolutions, views * width * pixels
    return {
        parts.AUGMENTATION: pairs * source + view,
        parts.FORWARD: 2 * activation + view + encoder,
        parts.INPUT_GRADIENT: 2 * activation + encoder,
        parts.WEIGHT_GRADIENT: activation + view + encoder,
        parts.RESIDUAL: WRITTEN_AND_READ * views * width * sums,
        parts.MAX_POOL: WRITTEN_AND_READ * views * width * pools,
        parts.HEADS: 3 * (everything - encoder),
        parts.OPTIMIZER: WRITTEN_AND_READ * everything,
    }


def _activations(network: Network, variables: Any, images: jax.Array) -> tuple[int, int, int]:
    """Numbers in the outputs of the encoder's convolutions, of its blocks and of its pools, for one image."""

    def wanted(module: nn.Module, method: str) -> bool:
        return method == "__call__" and not isinstance(module, nn.BatchNorm) and "encoder" in module.path

    def outputs(variables: Any) -> Any:
        _, found = network.apply(variables, images, train=False, capture_intermediates=wanted, mutable="intermediates")
        return found["intermediates"].get("encoder", {})

    convolutions = sums = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.eval_shape(outputs, variables)):
        names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))[:-1]  # without `__call__`
        if not names or len(leaf.shape) != 4:
            continue  # the encoder's own output
        tree: Any = variables["params"]["encoder"]
        for name in names:
            tree = tree.get(name, {})
        if "kernel" in tree:
            convolutions += leaf.size
        else:
            sums += leaf.size
    forward = jax.make_jaxpr(lambda variables: network.apply(variables, images, train=False))(variables)
    pools = sum(
        equation.outvars[0].aval.size for equation in forward.eqns if equation.primitive.name == "reduce_window_max"
    )
    return convolutions, sums, pools
