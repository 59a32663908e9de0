"""Pictures of attention, predictions and training curves."""

from nonlocal_jax.visualize.attention import attention_map
from nonlocal_jax.visualize.overlays import add_legend, attention_overlay, color_overlay

__all__ = ["add_legend", "attention_map", "attention_overlay", "color_overlay"]
