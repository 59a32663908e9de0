"""Functional ResNets that return the output of every stage."""

from nonlocal_jax.backbones.resnet import ResNet

__all__ = ["ResNet"]
