"""Images: their sources, and the batches that training and evaluation read."""

from dcjax.data.damage import TolerantSource
from dcjax.data.decode import DamagedImageError
from dcjax.data.fixed_size import FixedSizeImages
from dcjax.data.loader import TrainLoader, eval_batches, train_loader
from dcjax.data.recipe import Augmentation
from dcjax.data.sources import SOURCES, Source, Subset, open_source

__all__ = [
    "SOURCES",
    "Augmentation",
    "DamagedImageError",
    "FixedSizeImages",
    "Source",
    "Subset",
    "TolerantSource",
    "TrainLoader",
    "eval_batches",
    "open_source",
    "train_loader",
]
