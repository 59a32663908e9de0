"""The leaves that semantic segmentation adds to a config."""

from collections.abc import Mapping

from nonlocal_jax.config import Leaf, boolean, choice, integer, number, sequence, text

SEGMENTATION_LEAVES: Mapping[str, Leaf] = {
    "data.name": text(),
    "data.base_size": sequence(integer(1), 2),
    "data.crop": sequence(integer(1), 2),
    "data.scale_range": sequence(number(above=0), 2, ascending=True),
    "data.category_max_ratio": number(above=0, high=1),
    "data.flip": number(0, 1),
    "data.photometric": boolean(),
    "data.mean": sequence(number(), 3),
    "data.std": sequence(number(above=0), 3),
    "loss.auxiliary_weight": number(0),
    "loss.avg_non_ignore": boolean(),
    "loss.align_corners": boolean(),
    "evaluation.mode": choice("whole", "slide"),
    "evaluation.base_size": sequence(integer(1), 2),
    "evaluation.crop": sequence(integer(1), 2),
    "evaluation.stride": sequence(integer(1), 2),
    "evaluation.ratios": sequence(number(above=0), empty=False),
    "evaluation.flip": boolean(),
}
