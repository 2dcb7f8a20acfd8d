"""The paper's linear probe: a linear classifier trained by SGD on augmented images behind the frozen encoder."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from dcjax.evaluation.features import Features
from dcjax.evaluation.linear import top_k_accuracy
from dcjax.mesh import batch_sharding, replicated, to_devices


def sgd_probe(
    represent: Callable[[Any, dict[str, jax.Array]], jax.Array],
    variables: Any,
    batches: Iterator[dict[str, np.ndarray]],
    test: Features,
    mesh: Mesh,
    *,
    columns: Mapping[str, slice],
    classes: int,
    images: int,
    batch_size: int,
    epochs: int,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Trains linear classifiers on parts of the representation, all in one pass over the images.

    SGD with momentum; the learning rate follows a cosine that is stepped once per epoch; kernels start from
    N(0, 0.01^2), biases from 0. The test features do not depend on the classifiers, so they are computed once by the
    caller.

    Args:
      represent: pure function of `(variables, batch)` to r `[b, d]`, augmentation and frozen encoder in one.
      variables: of the frozen encoder; read, never written.
      batches: training batches in a stream without end, with `image`, `label` and `position`.
      test: features of the test split.
      mesh: the devices.
      columns: name to the part of r that a classifier sees, e.g. `{"all": slice(None), "selected": slice(0, 360)}`.
      classes: number of classes.
      images: number of training images, which is an epoch.
      batch_size, epochs, learning_rate, momentum, weight_decay: of SGD.
      seed: the kernels are drawn from it.

    Returns:
      name to `top1` and `top5` after the last epoch, and `best_top1`, the best after any epoch.

    References:
      Jing et al., ICLR 2022, section 6 (linear probe); the recipe of its published runs.
    """

    def epoch_cosine(step: Any) -> Any:
        epoch = jnp.floor(step * (batch_size / images))
        return learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(epoch / epochs, 1.0)))

    optimizer = optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(epoch_cosine, momentum=momentum))
    width = test.r.shape[1]
    classifiers = {}
    for i, (name, part) in enumerate(columns.items()):
        key = jax.random.fold_in(jax.random.key(seed), i)
        size = len(range(width)[part])
        classifiers[name] = (0.01 * jax.random.normal(key, (size, classes)), jnp.zeros(classes))

    def step(variables: Any, classifiers: Any, opt_state: Any, batch: dict[str, jax.Array]) -> tuple[Any, Any]:
        r = jax.lax.stop_gradient(represent(variables, batch))

        def loss(classifiers: Any) -> jax.Array:
            # The classifiers share no parameter: the sum trains each as if it were alone.
            total = jnp.zeros(())
            for name, (w, b) in classifiers.items():
                logits = jnp.matmul(r[:, columns[name]], w, precision=jax.lax.Precision.HIGHEST) + b
                total += jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))
            return total

        updates, opt_state = optimizer.update(jax.grad(loss)(classifiers), opt_state, classifiers)
        return optax.apply_updates(classifiers, updates), opt_state

    everywhere, split = replicated(mesh), batch_sharding(mesh)
    step = jax.jit(
        step, donate_argnums=(1, 2), in_shardings=(everywhere, everywhere, everywhere, split), out_shardings=everywhere
    )
    test_r, test_labels = jax.device_put((test.r, test.labels), everywhere)
    classifiers = jax.device_put(classifiers, everywhere)
    opt_state = jax.device_put(optimizer.init(classifiers), everywhere)
    results: dict[str, dict[str, float]] = {name: {"best_top1": 0.0} for name in columns}
    done = 0
    bar = tqdm(range(1, epochs + 1), unit="epoch", disable=jax.process_index() != 0)
    for epoch in bar:
        while done < math.ceil(epoch * images / batch_size):
            classifiers, opt_state = step(variables, classifiers, opt_state, to_devices(next(batches), mesh))
            done += 1
        for name, part in columns.items():
            top1, top5 = (float(top_k_accuracy(classifiers[name], test_r[:, part], test_labels, k=k)) for k in (1, 5))
            results[name] |= {"top1": top1, "top5": top5, "best_top1": max(top1, results[name]["best_top1"])}
        bar.set_postfix({name: f"{result['top1']:.3f}" for name, result in results.items()})
    return results
