"""The packages and formulas with one change each, which explains a difference; None where the change does not apply."""

from typing import Any
from unittest import mock

import numpy as np
from scipy.spatial import distance

from experiments.metrics_elsewhere.formulas import entropy_rank, google_coherence, lidar_values
from experiments.metrics_elsewhere.matrices import Pairs, Rows
from experiments.metrics_elsewhere.peers import fitted, reptrix_alpha, reptrix_lidar


def cut_alpha(rows: Rows) -> float | None:
    """reptrix's alpha, fitted to the eigenvalues above the rounding."""
    return reptrix_alpha(rows, np.arange(10, min(100, rows.rank))) if rows.rank > 12 else None


def fitted_alpha(rows: Rows) -> float | None:
    """google-research's fit, of ln lam_j on ln j in place of ln s_j on an even index, weights 1/j, j = 11..100."""
    j = np.arange(11, min(100, rows.rank) + 1)
    y = np.log(rows.quantities.eigenvalues[j - 1])
    return -float(np.polyfit(np.log(j), y, 1, w=j**-0.5)[0]) if len(j) > 2 else None


def cut_coherence(rows: Rows) -> float:
    """google-research's coherence of the left singular vectors up to the rank."""
    return google_coherence(rows.svd[0][:, : rows.rank])


def distinct_two_nn(rows: Rows) -> float:
    """scikit-dimension's TwoNN of the distinct rows."""
    return fitted("TwoNN", rows.distinct.z)


def exact_two_nn(rows: Rows) -> float:
    """scikit-dimension's TwoNN with distances from differences of rows, so that duplicates are exactly 0 apart."""
    with mock.patch("skdim.id._TwoNN.pairwise_distances_chunked", lambda z: [distance.cdist(z, z)]):
        return fitted("TwoNN", rows.z)


def low_two_nn(rows: Rows) -> float | None:
    """scikit-dimension's TwoNN of the same points in fewer columns."""
    return None if rows.low is None else fitted("TwoNN", rows.low)


def uncensored(rows: Rows) -> float:
    """scikit-dimension's TwoNN by maximum likelihood, of all ratios of the distinct rows and with its bias."""
    n = len(rows.distinct.z)
    return fitted("TwoNN", rows.distinct.z, method="mle", discard_fraction=0) * n / (n - 1)


def lidar_of_eigenvalues(pairs: Pairs, **settings: Any) -> float:
    """reptrix's LiDAR with the eigenvalues of its matrix in place of a PCA of the matrix's rows."""

    def eigenvalues(activations_np: np.ndarray, **_: Any) -> np.ndarray:
        return np.linalg.eigvals(activations_np).real

    with mock.patch("reptrix.utils.get_eigenspectrum", eigenvalues):
        return reptrix_lidar(pairs, **settings)


def lidar_of_equal_delta(pairs: Pairs) -> float:
    """As `lidar_of_eigenvalues`, with the delta that is 1e-4 once S_w is divided by q - 1."""
    return lidar_of_eigenvalues(pairs, del_sigma_augs=1e-4 * (pairs.z.shape[1] - 1))


def lidar_of_small_delta(pairs: Pairs) -> float:
    """The paper's LiDAR with the delta that is reptrix's 1e-6 once S_w is multiplied by q - 1."""
    return entropy_rank(lidar_values(*pairs.by_image, delta=1e-6 / (pairs.z.shape[1] - 1)), 1e-7)
