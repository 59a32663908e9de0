"""ResNets for images and clips that return the feature map of every stage."""

from nonlocal_jax.backbones.resnet import ResNet

__all__ = ["ResNet"]
