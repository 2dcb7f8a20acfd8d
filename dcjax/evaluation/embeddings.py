"""The embeddings of a trained run: r and z of its test images, and of two augmented views of them."""

import contextlib
import dataclasses
import os
from typing import Any

import jax
import numpy as np

from dcjax.components import Components, load_run
from dcjax.data import Source, Subset
from dcjax.runtime.errors import SettingError
from dcjax.runtime.mesh import make_mesh, replicated, to_devices
from dcjax.training.checkpoint import open_run
from dcjax.training.manifest import run_and_step

MAX_IMAGES = 25_600  # as RankMe's authors; evenly spaced, where there are more


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Rows of one kind, r or z.

    Attributes:
      rows: `[n, d]` float32, of the images without augmentation.
      views: two arrays `[m, d]`, of two augmented views of the same m <= n images, in a random order.
      labels: `[n]`, or None for images without classes.
    """

    rows: np.ndarray
    views: tuple[np.ndarray, np.ndarray]
    labels: np.ndarray | None


def embeddings_of_run(
    run_or_checkpoint: str | os.PathLike[str], *, data_dir: str | None = None, devices: int = 0
) -> dict[str, Embeddings]:
    """The embeddings of a checkpoint on the run's test images; in a single process.

    Without a test split, training images stand in.

    Args:
      run_or_checkpoint: the run's folder, for its last whole checkpoint, or one of the folders in its `checkpoints/`.
      data_dir: the folder of the data, if it is not the one in the run's config.
      devices: how many devices to use; 0 for all.

    Returns:
      Embeddings by name, "r" and "z", or only "r" where no projector makes them differ.

    Raises:
      SettingError: the run has no whole checkpoint, or its config or data cannot be used.
      InterruptedRunError: a file cannot be read at this moment.
    """
    components, variables, _ = load_run(run_or_checkpoint, data_dir=data_dir, devices=devices)
    source = components.test_source or components.train_source
    if len(source) > MAX_IMAGES:
        source = Subset(source, np.linspace(0, len(source) - 1, MAX_IMAGES).astype(np.int64))
    features = components.features(variables, source, keep=("r", "z"))
    assert features.z is not None
    labels = features.labels if len(source.classes) > 1 else None
    views = view_embeddings(components, variables, source)
    rows = {"r": features.r[: features.own], "z": features.z[: features.own]}
    if np.array_equal(rows["r"], rows["z"]):
        del rows["z"]
    return {name: Embeddings(rows[name], (views[name], views[f"{name}_prime"]), labels) for name in rows}


def weights_of_run(run_or_checkpoint: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The kernels and matrices of a checkpoint, by their path, those of the encoder first.

    Args:
      run_or_checkpoint: as `embeddings_of_run` takes it.

    Raises:
      SettingError: the run has no whole checkpoint, or it cannot be read.
      InterruptedRunError: a file cannot be read at this moment.
    """
    checkpointer, step = open_run(*run_and_step(run_or_checkpoint))
    with contextlib.closing(checkpointer):
        variables = checkpointer.restore_variables(step, replicated(make_mesh(1)))
    leaves = jax.tree_util.tree_flatten_with_path(variables["params"])[0]
    named = {"/".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in leaves}
    return {name: array for name, array in named.items() if array.ndim in (2, 4)}


def view_embeddings(components: Components, variables: Any, source: Source) -> dict[str, np.ndarray]:
    """r, z, r_prime and z_prime of two augmented views, `[m, d]` each, with the same draws at every call.

    Args:
      components: the run's parts.
      variables: as `load_run` returns them.
      source: the images, of which as many whole batches of `eval_batch_size` are taken as they fill, or one.

    Raises:
      SettingError: the devices are more than the images.
    """
    mesh = components.mesh
    size = min(components.eval_batch_size, len(source) // mesh.size * mesh.size)
    if not size:
        raise SettingError(f"the {mesh.size} devices need as many images, found {len(source)}; use fewer (--devices)")
    parts = [
        jax.device_get(components.encode_views(variables, to_devices(batch, mesh)))
        for batch in components.view_batches(source, batch_size=size, batches=len(source) // size)
    ]
    return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
