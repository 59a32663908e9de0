"""The names in torchvision's ResNets, whose weights for images start a video network."""

import functools

from nonlocal_jax.convert.source import BATCH_NORM, CONV, Row, Source, video_options

_NOTHING = r"(?!)"


def residual_rows(path: str, name: str) -> tuple[Row, ...]:
    """Returns the table of a residual block at a path in Flax, with this name in PyTorch."""
    return (
        (rf"{path}/(?P<conv>conv[123])", rf"{name}.\g<conv>", CONV),
        (rf"{path}/(?P<bn>bn[123])", rf"{name}.\g<bn>", BATCH_NORM),
        (rf"{path}/downsample_conv", rf"{name}.downsample.0", CONV),
        (rf"{path}/downsample_bn", rf"{name}.downsample.1", BATCH_NORM),
    )


SOURCE = Source(
    rows=lambda config: (
        (r"backbone/conv1", "conv1", CONV),
        (r"backbone/bn1", "bn1", BATCH_NORM),
        *residual_rows(r"backbone/layer(\d+)_(\d+)", r"layer\1.\2"),
    ),
    options=functools.partial(
        video_options,
        conv=r"layer(\d+)\.(\d+)\.(conv[12])\.weight",
        block=_NOTHING,
        norm=_NOTHING,
    ),
    backbone=r"(conv1|bn1|layer\d+)\.",
    # The classes of images are not those of videos.
    head=_NOTHING,
    classifier=_NOTHING,
    block=_NOTHING,
)
