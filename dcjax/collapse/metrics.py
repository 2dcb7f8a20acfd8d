"""Measures of the number of dimensions that an embedding uses."""

import numpy as np
from jaxtyping import Float


def effective_rank(singular_values: Float[np.ndarray, " d"]) -> float:
    """The exponential of the entropy of the normalised singular values, from 1 (one direction) to d (all equal).

    Args:
      singular_values: `[d]`, not negative, in any order. Those of the centred embeddings are, up to a factor, the
        square roots of the values that `spectrum` returns.

    Returns:
      exp(-sum p ln p) with p = s / sum s and 0 ln 0 = 0; 0 where every value is zero.

    References:
      Roy & Vetterli, "The effective rank", EUSIPCO 2007.
    """
    s = np.asarray(singular_values, np.float64)
    if not s.any():
        return 0.0
    p = s[s > 0] / s.sum()
    return float(np.exp(-np.sum(p * np.log(p))))
