"""Images of attention, predictions and training runs."""

from typing import TYPE_CHECKING

from nonlocal_jax._lazy import import_on_use
from nonlocal_jax.visualize.attention import attention_map

if TYPE_CHECKING:
    from nonlocal_jax.visualize.curves import curves_png
    from nonlocal_jax.visualize.overlays import add_legend, attention_overlay, color_overlay
    from nonlocal_jax.visualize.sheet import clip_sheet, example_sheet
    from nonlocal_jax.visualize.strip import attention_strip, strongest_position

__all__ = [
    "add_legend",
    "attention_map",
    "attention_overlay",
    "attention_strip",
    "clip_sheet",
    "color_overlay",
    "curves_png",
    "example_sheet",
    "strongest_position",
]

# Matplotlib and Pillow are slow to import.
import_on_use(
    globals(),
    {
        "add_legend": "overlays",
        "attention_overlay": "overlays",
        "clip_sheet": "sheet",
        "color_overlay": "overlays",
        "curves_png": "curves",
        "attention_strip": "strip",
        "example_sheet": "sheet",
        "strongest_position": "strip",
    },
)
