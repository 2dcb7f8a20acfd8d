"""The paper's theory in code: exact quantities, closed forms of the flows, and the toy models of the figures.

`dcjax toy --theorem 1` tests a statement of the paper; experiments/theory.md lists all of them.
"""

from dcjax.toy.alignment import (
    aligned_rates,
    alignment_matrix,
    alignment_velocity,
    conserved_quantity,
    singular_value_velocity,
)
from dcjax.toy.flows import (
    blow_up_time,
    integrate,
    linear_flow,
    linear_flow_spectral,
    singular_value_flow,
    two_layer_flow,
    two_layer_velocity,
)
from dcjax.toy.info_nce import covariance_split, embedding_gradients, info_nce, interaction_matrix, softmax_weights
from dcjax.toy.simulate import GRADIENTS, INITS, Setting, Trajectory, collapsed, embed, simulate

__all__ = [
    "GRADIENTS",
    "INITS",
    "Setting",
    "Trajectory",
    "aligned_rates",
    "alignment_matrix",
    "alignment_velocity",
    "blow_up_time",
    "collapsed",
    "conserved_quantity",
    "covariance_split",
    "embed",
    "embedding_gradients",
    "info_nce",
    "integrate",
    "interaction_matrix",
    "linear_flow",
    "linear_flow_spectral",
    "simulate",
    "singular_value_flow",
    "singular_value_velocity",
    "softmax_weights",
    "two_layer_flow",
    "two_layer_velocity",
]
