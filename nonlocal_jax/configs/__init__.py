"""Configs of the experiments, as ``ml_collections.ConfigDict``, without JAX."""

from nonlocal_jax.configs import segmentation, video

__all__ = ["segmentation", "video"]
