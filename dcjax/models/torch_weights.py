"""Encoder weights to and from state dicts with torchvision's names; NumPy only, PyTorch is not needed."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from dcjax.runtime.errors import SettingError

# The last name of a variable: here -> there.
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_SHOWN = 4  # entries that an error names


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The encoder's variables as a state dict.

    Args:
      variables: `{"params": ..., "batch_stats": ...}` of a `ResNet`.

    Returns:
      Arrays by torchvision's names, convolutions `[out, in, h, w]`. Wrapped in `torch.from_numpy`, they load into
      torchvision's model with `fc` removed.

    Raises:
      SettingError: a variable that a `ResNet` does not have.
    """
    return {name: np.array(_transposed(leaf, to_torch=True)) for name, leaf in _named(variables)}


def from_torch(state_dict: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder's variables, filled from a state dict.

    Args:
      state_dict: arrays (or tensors on the CPU) by torchvision's names; `fc.*` and `num_batches_tracked` are ignored.
      variables: `{"params": ..., "batch_stats": ...}` of the encoder, as arrays or as shapes (`jax.eval_shape`).

    Returns:
      A tree like `variables`, of NumPy arrays with its shapes and dtypes.

    Raises:
      SettingError: entries that are missing, that have another shape, or that the encoder has no place for.
    """
    names = [name for name, _ in _named(variables)]
    leaves, structure = jax.tree.flatten({key: variables[key] for key in sorted(variables)})
    missing = [name for name in names if name not in state_dict]
    unused = [n for n in state_dict if n not in names and not n.startswith("fc.") and "num_batches_tracked" not in n]
    if missing or unused:
        kind, found = ("lacks", missing) if missing else ("has no place in the encoder for", unused)
        raise SettingError(f"state_dict: {kind} {_listed(found)}; expected the names of torchvision's encoder")
    filled, misshapen = [], []
    for name, leaf in zip(names, leaves, strict=True):
        value = _transposed(np.asarray(state_dict[name]), to_torch=False)
        if value.shape != tuple(leaf.shape):
            misshapen.append(f"{name} {list(value.shape)} (expected {list(leaf.shape)})")
        filled.append(np.array(value, dtype=leaf.dtype))
    if misshapen:
        raise SettingError(f"state_dict: wrong shapes (convolutions as [h, w, in, out]): {_listed(misshapen)}")
    return jax.tree.unflatten(structure, filled)


def _named(variables: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Torchvision's name and the leaf, in the order of the flattened tree."""
    leaves, _ = jax.tree.flatten_with_path({key: variables[key] for key in sorted(variables)})
    for path, leaf in leaves:
        keys = [getattr(entry, "key", str(entry)) for entry in path]
        if keys[0] not in ("params", "batch_stats") or keys[-1] not in _LEAVES or len(keys) < 3:
            raise SettingError(f"variables: {'/'.join(map(str, keys))} is no variable of an encoder of this package")
        yield ".".join([_module_name(key) for key in keys[1:-1]] + [_LEAVES[keys[-1]]]), leaf


def _module_name(name: str) -> str:
    """`layer1_0` -> `layer1.0`, `downsample_conv` -> `downsample.0`, `downsample_bn` -> `downsample.1`."""
    return {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}.get(name, name.replace("_", "."))


def _transposed(array: Any, *, to_torch: bool) -> np.ndarray:
    """Convolution kernels between `[h, w, in, out]` and `[out, in, h, w]`; anything else as it is."""
    array = np.asarray(array)
    if array.ndim != 4:
        return array
    return array.transpose(3, 2, 0, 1) if to_torch else array.transpose(2, 3, 1, 0)


def _listed(entries: list[str]) -> str:
    more = len(entries) - _SHOWN
    return ", ".join(entries[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
