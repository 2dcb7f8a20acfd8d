"""What the functions of this package refuse. Values are looked at only where they are concrete, never under `jit`."""

import jax
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from dcjax.runtime.errors import SettingError

# How far from its transpose a symmetric matrix may be, relative to its largest entry.
SYMMETRY = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-10}


def concrete(*values: object) -> bool:
    """Whether all of these have values to look at, which a traced array has not."""
    return not any(isinstance(value, Tracer) for value in values)


def check_finite(**arrays: ArrayLike) -> None:
    """Refuses NaN and inf."""
    for name, value in arrays.items():
        if concrete(value) and not np.isfinite(np.asarray(value)).all():
            raise SettingError(f"{name} must be finite, found NaN or inf")


def check_views(x: jax.Array | np.ndarray, x_prime: jax.Array | np.ndarray, *, names: tuple[str, str]) -> None:
    """Refuses two views that are not finite arrays of one shape [n, d] with n >= 2."""
    if x.ndim != 2 or x.shape != x_prime.shape or x.shape[0] < 2 or x.shape[1] < 1:
        raise SettingError(
            f"{names[0]} and {names[1]} must be two arrays of one shape [n, d] with n >= 2 and d >= 1, found "
            f"{x.shape} and {x_prime.shape}"
        )
    check_finite(**dict(zip(names, (x, x_prime), strict=True)))


def check_weights(n: int, alpha: jax.Array | np.ndarray) -> None:
    """Refuses softmax weights that are not a finite [n, n]."""
    if alpha.shape != (n, n):
        raise SettingError(f"alpha must have the shape ({n}, {n}) for n = {n} samples, found {alpha.shape}")
    check_finite(alpha=alpha)


def check_symmetric(x_matrix: jax.Array | np.ndarray, *, size: int) -> None:
    """Refuses a matrix that is not a finite, symmetric [size, size]."""
    if x_matrix.shape != (size, size) or size < 1:
        raise SettingError(f"x_matrix must have the shape ({size}, {size}), found {x_matrix.shape}")
    check_finite(x_matrix=x_matrix)
    if concrete(x_matrix):
        values = np.asarray(x_matrix)
        error = np.abs(values - values.T).max()
        # The dtype that will compute: without x64 a float64 copy of a float32 matrix is float32 again.
        allowed = SYMMETRY.get(jax.dtypes.canonicalize_dtype(values.dtype), 1e-6) * np.abs(values).max()
        if error > allowed:
            raise SettingError(
                f"x_matrix must be symmetric, found entries that differ by {error:.3g} from their mirror images "
                f"(at most {allowed:.3g} is rounding)"
            )


def check_time(t: ArrayLike) -> None:
    """Refuses times that are negative or not finite."""
    check_finite(t=t)
    if concrete(t) and (np.asarray(t) < 0).any():
        raise SettingError(f"t must not be negative, found {np.asarray(t).min():g}")


def check_layers(w1: jax.Array | np.ndarray, w2: jax.Array | np.ndarray) -> None:
    """Refuses two layers that are not finite matrices [h, d] and [m, h]."""
    if w1.ndim != 2 or w2.ndim != 2 or w1.shape[0] != w2.shape[1]:
        raise SettingError(f"w1 and w2 must have the shapes [h, d] and [m, h], found {w1.shape} and {w2.shape}")
    check_finite(w1=w1, w2=w2)
