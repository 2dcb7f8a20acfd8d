"""Evaluation of an encoder by its frozen features: linear probes, nearest neighbours, spectra."""

from dcjax.evaluation.device_rows import Rows, place_rows, take_rows
from dcjax.evaluation.distributed_spectrum import spectrum_of_processes
from dcjax.evaluation.features import (
    Batch,
    Encode,
    Features,
    extract,
    gather_rows,
    make_encode,
    rows_per_process,
    settle_batch_stats,
)
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
    "Rows",
    "draw_labelled",
    "extract",
    "fit_logistic",
    "gather_rows",
    "knn_accuracy",
    "make_encode",
    "place_rows",
    "rows_per_process",
    "settle_batch_stats",
    "sgd_probe",
    "spectrum_of_processes",
    "standardize",
    "take_rows",
    "top_k_accuracy",
]
