"""Slow NumPy references for the metrics of representation collapse, in float64, from the definitions in the papers.

Rows are samples: z is [n, d]. Pair metrics take (z, z_prime), label metrics (z, labels). Written without sight of
`dcjax.collapse`. Conventions: 0/0 is 0; a row of zeros stays zero when rows are scaled to unit norm; a population
variance (divisor n) unless a source says n - 1; a singular value or eigenvalue counts as zero below
max(n, d) * 2.2e-16 times the largest where the definition asks for the non-zero ones.
"""

from collections.abc import Callable

from slow_pairs import (
    alignment,
    barlow_diagonal,
    barlow_off_diagonal,
    cdnv,
    cka,
    cka_debiased,
    lidar,
    nc1,
    nc2_angles,
    nc2_norms,
    whitening_mse,
    within_class_rank,
)
from slow_rows import (
    alpha_req,
    anisotropy,
    cev_auc,
    coding_rate,
    coherence,
    collapsed_dimensions,
    effective_rank,
    eigenvalue_rank,
    epps_pulley,
    feature_rank,
    hubness,
    iso_score,
    iso_score_corrected,
    matrix_entropy,
    mean_cosine,
    nesum,
    norm_spread,
    normality,
    participation_ratio,
    participation_ratio_corrected,
    pseudo_condition_number,
    rankme,
    rankme_centered,
    self_cluster,
    srank,
    stable_rank,
    two_nn,
    two_nn_mle,
    uniformity,
    unit_std,
    vicreg_covariance,
    vicreg_variance,
    w2_uniformity,
)

_OF_ROWS = (effective_rank, rankme, rankme_centered, eigenvalue_rank, matrix_entropy, stable_rank, nesum)
_OF_ROWS += (participation_ratio, participation_ratio_corrected, iso_score, iso_score_corrected, alpha_req, srank)
_OF_ROWS += (feature_rank, cev_auc, pseudo_condition_number, coherence, self_cluster, anisotropy, mean_cosine)
_OF_ROWS += (uniformity, w2_uniformity, unit_std, vicreg_variance, vicreg_covariance, coding_rate, epps_pulley)
_OF_ROWS += (two_nn, two_nn_mle, hubness, norm_spread, normality, collapsed_dimensions)
_OF_PAIRS = (alignment, barlow_off_diagonal, barlow_diagonal, lidar, cka, cka_debiased, whitening_mse)
_OF_LABELS = (within_class_rank, nc1, nc2_norms, nc2_angles, cdnv)
REFERENCES: dict[str, Callable] = {function.__name__: function for function in _OF_ROWS + _OF_PAIRS + _OF_LABELS}
