"""The singular values of a checkpoint's matrices, and the alignment of layers that follow each other."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from dcjax.collapse.ranks import TOLERANCE, effective_rank

EQUAL = 1 + 1e-3  # singular values within this factor of each other have no directions of their own
DOMINANT = 10.0  # an aligned direction is asked for only where s^2 exceeds this many times |C|


@dataclasses.dataclass(frozen=True)
class MatrixReport:
    """A weight matrix.

    Attributes:
      name: its name in the checkpoint.
      shape: as stored.
      singular_values: `[k]`, descending; a convolution's of its kernel as `[inputs, outputs]`.
      effective_rank, stable_rank: of these values.
      collapsed: how many are at or below the tolerance of the largest.
    """

    name: str
    shape: tuple[int, ...]
    singular_values: Float[np.ndarray, " k"]
    effective_rank: float
    stable_rank: float
    collapsed: int


@dataclasses.dataclass(frozen=True)
class Alignment:
    """How the input directions of a layer fit the output directions of the layer before it.

    Attributes:
      names: of the two matrices W1, W2, in the order of the layers.
      mean, least: of the diagonal of |V2^T U1|; 1 is aligned.
      dominant: the mean over directions whose s^2 exceeds 10 |C|, C = W1 W1^T - W2^T W2, the only ones that are forced
        to align; None where there are none.
    """

    names: tuple[str, str]
    mean: float
    least: float
    dominant: float | None


def matrix_reports(arrays: Mapping[str, np.ndarray], *, tolerance: float = TOLERANCE**0.5) -> list[MatrixReport]:
    """Reports of the matrices and kernels with two or more inputs and outputs, in their order.

    Args:
      arrays: name to `[inputs, outputs]`, a convolution `[height, width, inputs, outputs]`; or, in PyTorch's layout,
        recognised by a name that ends in `weight`, `[outputs, inputs, ...]`.
      tolerance: a share of the largest singular value; the default is the root of that for eigenvalues.

    Raises:
      ValueError: an array is not finite.
    """
    reports = []
    for name, array in arrays.items():
        matrix = as_matrix(name, array)
        if matrix is None:
            continue
        if not np.isfinite(matrix).all():
            raise ValueError(f"{name} must be finite, found NaN or inf")
        s = np.linalg.svd(matrix, compute_uv=False)
        stable = float((s**2).sum() / s[0] ** 2) if s[0] else 0.0
        collapsed = int((s <= tolerance * s[0]).sum())
        reports.append(MatrixReport(name, np.shape(array), s, effective_rank(s), stable, collapsed))
    return reports


def alignments(arrays: Mapping[str, np.ndarray]) -> list[Alignment]:
    """The alignment of each linear layer with the next one, where the outputs of the first are as many as the inputs.

    The shapes alone are looked at: whether a nonlinearity lies between the two, the caller knows.

    References:
      Jing et al., ICLR 2022, Theorem 2: A = V2^T U1 for W1 = U1 S1 V1^T, W2 = U2 S2 V2^T.
    """
    layers = [(name, as_matrix(name, array)) for name, array in arrays.items() if np.ndim(array) == 2]
    layers = [(name, matrix.T) for name, matrix in layers if matrix is not None]  # [outputs, inputs], as in the paper
    found = []
    for (first, w1), (second, w2) in itertools.pairwise(layers):
        if w1.shape[0] != w2.shape[1]:
            continue
        u1, s1, _ = np.linalg.svd(w1, full_matrices=False)
        _, s2, v2 = np.linalg.svd(w2, full_matrices=False)
        count = min(len(s1), len(s2))
        diagonal = np.abs(np.einsum("ki,ik->k", v2[:count], u1[:, :count]))
        gap = np.linalg.norm(w1 @ w1.T - w2.T @ w2, 2)
        dominant = np.minimum(s1[:count], s2[:count]) ** 2 > DOMINANT * gap
        strong = float(diagonal[dominant].mean()) if dominant.any() else None
        found.append(Alignment((first, second), float(diagonal.mean()), float(diagonal.min()), strong))
    return found


def projector_alignment(kernel: np.ndarray, matrix: np.ndarray) -> dict[str, float]:
    """How the directions that a linear projector reads fit those that the layer before it writes.

    A normalisation, a shortcut and a ReLU lie between the last convolution and r, so Theorem 2 need not hold there.

    Args:
      kernel: `[inputs, d]`, the last convolution's, its pixels and input channels as one axis; W1 of the theorem is its
        transpose.
      matrix: `[d, e]`, the projector's; W2 is its transpose.

    Returns:
      `alignment`, the mean of the diagonal of |V2^T U1|, which is 1 if the layers are aligned and about sqrt(2 / (pi
      d)) for random ones; and `overlap`, |V2_k^T U1_k|_F^2 / k of the k strongest directions of both, an eighth of
      those that the matrix has (or one): 1 if they span the same space, and about k / d for random ones. Nothing for a
      projector whose singular values are all equal, whose directions are not defined.

    References:
      Jing et al., ICLR 2022, Theorem 2.
    """
    left, _, _ = np.linalg.svd(np.asarray(kernel, np.float64).T, full_matrices=False)
    _, values, right = np.linalg.svd(np.asarray(matrix, np.float64).T, full_matrices=False)
    count = min(left.shape[1], int((values > TOLERANCE * values[0]).sum()))
    if not count or values[0] <= EQUAL * values[count - 1]:
        return {}
    a = np.abs(right[:count] @ left[:, :count])
    strongest = max(count // 8, 1)
    overlap = (a[:strongest, :strongest] ** 2).sum() / strongest
    return {"alignment": float(np.diag(a).mean()), "overlap": float(overlap)}


def as_matrix(name: str, array: np.ndarray) -> Float[np.ndarray, "i o"] | None:
    """A weight as `[inputs, outputs]` in float64; None for what has another rank, or a single input or output."""
    array = np.asarray(array)
    if array.ndim not in (2, 4):
        return None
    if name.endswith("weight"):
        array = np.moveaxis(array, 0, -1)
    matrix = np.asarray(array, np.float64).reshape(-1, array.shape[-1])
    return matrix if min(matrix.shape) > 1 else None
