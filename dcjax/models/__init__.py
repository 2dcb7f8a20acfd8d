"""Encoders, projectors, and the network that joins them."""

from dcjax.models.network import Network, NetworkOutput
from dcjax.models.projectors import PROJECTORS, make_projector
from dcjax.models.resnet import ENCODERS, ResNet18, ResNet50, make_encoder, smallest_image

__all__ = [
    "ENCODERS",
    "PROJECTORS",
    "Network",
    "NetworkOutput",
    "ResNet18",
    "ResNet50",
    "make_encoder",
    "make_projector",
    "smallest_image",
]
