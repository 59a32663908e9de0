"""Images of attention, predictions and training runs."""

from etils import epy

# Imported on first use: Matplotlib and Pillow are slow to import.
with epy.lazy_api_imports(globals()):
    from nonlocal_jax.visualize.attention import attention_map
    from nonlocal_jax.visualize.curves import curves_png
    from nonlocal_jax.visualize.overlays import add_legend, attention_overlay, color_overlay

__all__ = ["add_legend", "attention_map", "attention_overlay", "color_overlay", "curves_png"]
