"""Figure 10: how DirectCLR trains the part of r that its loss does not see.

Claim:     the loss's gradient at r is zero outside of the first d0 channels; through the convolutions of the last
           residual block it reaches all channels of that block's input, which its shortcut copies into r.
Command:   python -m experiments.mechanism                (trains on scikit-learn's digits first)
           python -m experiments.mechanism --run=DIR      (a run of dcjax.main with projector.name=direct)
Cost:      two minutes on two cores; with --run seconds.
Look for:  exact zeros from channel d0 on in the left panel, and none in the right one.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dcjax.components import Components, load_run
from dcjax.data.augment import two_views
from dcjax.losses import info_nce
from dcjax.models.resnet import ResNet
from dcjax.pretrain import pretrain
from dcjax.runtime import cli
from dcjax.runtime.errors import SettingError
from dcjax.runtime.files import replace_text
from dcjax.runtime.randomness import Stream, device_key
from dcjax.toy.statements.plot import Curve, Panel, draw_curves
from experiments.records import RESULTS, commit, rounded
from experiments.run import WORK
from experiments.scales import make_config

BATCH = 256


def last_block(encoder: ResNet) -> str:
    """The name of the last residual block."""
    return f"layer{len(encoder.stage_sizes)}_{encoder.stage_sizes[-1] - 1}"


def channel_gradients(
    encoder: ResNet, variables: Any, x: jax.Array, x_prime: jax.Array, *, d0: int, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Root mean square gradients of DirectCLR's loss, by channel.

    Args:
      encoder: the network.
      variables: its `params` and `batch_stats`.
      x, x_prime: normalised views `[n, h, w, 3]`.
      d0: channels of r that the loss sees.
      temperature: of the loss.

    Returns:
      The gradients at r `[d]`, the average of the last block's output, and at that block's input `[c]`; both are those
      of the first view.
    """
    name, shapes = last_block(encoder), []

    def encode(images: jax.Array, at_input: jax.Array | float, at_output: jax.Array | float) -> jax.Array:
        """r, with something added to the input of the last block and to r itself."""

        def add(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.module.name != name or context.method_name != "__call__":
                return call(*args, **kwargs)
            shapes.append(args[0].shape)
            return call(args[0] + at_input, *args[1:], **kwargs)

        with nn.intercept_methods(add):
            out: Any = encoder.apply(variables, images, train=True, mutable=["batch_stats"])
        return out[0] + at_output

    r = jax.eval_shape(lambda: encode(x, 0.0, 0.0))
    zeros = (jnp.zeros(shapes[-1]), jnp.zeros(r.shape))

    def loss(at_input: jax.Array, at_output: jax.Array) -> jax.Array:
        z, z_prime = encode(x, at_input, at_output)[:, :d0], encode(x_prime, 0.0, 0.0)[:, :d0]
        return info_nce(z, z_prime, temperature=temperature)

    at_input, at_output = jax.jit(jax.grad(loss, argnums=(0, 1)))(*zeros)
    return jnp.sqrt(jnp.mean(at_output**2, axis=0)), jnp.sqrt(jnp.mean(at_input**2, axis=(0, 1, 2)))


def views(components: Components) -> tuple[jax.Array, jax.Array]:
    """Two views of a batch of training images."""
    config, source = components.config, components.train_source
    batch_size = min(BATCH, len(source))
    crops = {"views": 2, "interpolation": components.augmentation.interpolation}
    loader = components.train_batches(source, batch_size=batch_size, stream=Stream.ORDER, **crops)
    batch = next(loader)
    loader.close()
    return two_views(
        batch["image"],
        device_key(config.seed, Stream.AUGMENTATION),
        batch["position"],
        size=config.data.image_size,
        settings=components.augmentation,
        mesh=components.mesh,
    )


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser(prog="python -m experiments.mechanism", description=__doc__ or "")
    parser.add_argument(
        "--run", type=pathlib.Path, help="the folder of a run (default: one on the digits, trained here)"
    )
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="where the figure goes")
    flags = parser.parse_args(argv)
    run = flags.run
    if run is None:
        run = WORK.absolute() / "mechanism"
        pretrain(make_config("digits", "direct", seed=0), run)
    components, variables, step = load_run(run.absolute(), devices=1)
    projector = components.config.projector
    if projector.name != "direct":
        raise SettingError(f"--run {run} has the projector '{projector.name}'; this figure is about 'direct'")
    encoder: Any = components.exact_network.encoder
    own = {kind: variables[kind]["encoder"] for kind in ("params", "batch_stats")}
    settings = {"d0": projector.d0, "temperature": components.config.loss.temperature}
    output, block_input = (np.asarray(g) for g in channel_gradients(encoder, own, *views(components), **settings))

    zero = {"r": int((output == 0).sum()), "input": int((block_input == 0).sum())}
    record = {
        "commit": commit(), "step": step, "d0": projector.d0, "width": len(output), "exact zeros": zero,
        "gradient at r": output.tolist(), "gradient at the last block's input": block_input.tolist(),
    }  # fmt: skip
    replace_text(flags.results / "mechanism.json", json.dumps(rounded(record)) + "\n")
    axes = {"x_label": "channel", "y_label": "rms gradient of the loss", "log_y": False}
    draw_curves(
        flags.results / "mechanism.png",
        [
            Panel(
                [Curve(output, dots=True)], title=f"at r: exactly 0 in {zero['r']} of {len(output)} channels", **axes
            ),
            Panel(
                [Curve(block_input, dots=True, colour=1)],
                title=f"at the last block's input: 0 in {zero['input']} of {len(block_input)}",
                **axes,
            ),
        ],
    )
    print(f"r: {zero['r']} of {len(output)} channels without gradient (d0 = {projector.d0})")
    print(f"input of the last block: {zero['input']} of {len(block_input)} channels without gradient")
    print(flags.results / "mechanism.png")


if __name__ == "__main__":
    cli.run(main)
