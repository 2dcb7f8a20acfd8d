"""Images: where they come from, and the batches that training and evaluation read."""

from dcjax.data.loader import TrainLoader, eval_batches, train_loader
from dcjax.data.sources import SOURCES, Source, Subset, open_source

__all__ = ["SOURCES", "Source", "Subset", "TrainLoader", "eval_batches", "open_source", "train_loader"]
