"""Encoders, projectors, and the network that joins them."""

from dcjax.models.network import Network
from dcjax.models.projectors import PROJECTORS, SUBVECTOR_PROJECTORS, make_projector
from dcjax.models.resnet import ENCODERS, SMALLEST_IMAGE, ResNet18, ResNet50, make_encoder

__all__ = [
    "ENCODERS",
    "PROJECTORS",
    "SMALLEST_IMAGE",
    "SUBVECTOR_PROJECTORS",
    "Network",
    "ResNet18",
    "ResNet50",
    "make_encoder",
    "make_projector",
]
