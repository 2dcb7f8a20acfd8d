"""What an encoder is worth: frozen features, linear probes, nearest neighbours."""

from dcjax.evaluation.features import Batch, Encode, Features, extract, make_encode, settle_batch_stats
from dcjax.evaluation.knn import knn_accuracy
from dcjax.evaluation.linear import TOLERANCE, Classifier, draw_labelled, fit_logistic, standardize, top_k_accuracy
from dcjax.evaluation.sgd import SCHEDULES, sgd_probe

__all__ = [
    "SCHEDULES",
    "TOLERANCE",
    "Batch",
    "Classifier",
    "Encode",
    "Features",
    "draw_labelled",
    "extract",
    "fit_logistic",
    "knn_accuracy",
    "make_encode",
    "settle_batch_stats",
    "sgd_probe",
    "standardize",
    "top_k_accuracy",
]
