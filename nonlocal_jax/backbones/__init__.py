"""ResNets for images and clips that return the feature map of every stage."""

from nonlocal_jax.backbones.resnet import ResNet
from nonlocal_jax.backbones.temporal import Temporal

__all__ = ["ResNet", "Temporal"]
