"""What an encoder is worth: frozen features, linear probes, nearest neighbours."""

from dcjax.evaluation.features import Batch, Features, extract, settle_batch_stats
from dcjax.evaluation.knn import knn_accuracy
from dcjax.evaluation.linear import draw_labelled, fit_logistic, standardize, top_k_accuracy
from dcjax.evaluation.sgd import sgd_probe

__all__ = [
    "Batch",
    "Features",
    "draw_labelled",
    "extract",
    "fit_logistic",
    "knn_accuracy",
    "settle_batch_stats",
    "sgd_probe",
    "standardize",
    "top_k_accuracy",
]
