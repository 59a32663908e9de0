"""The demo of video classification: six small networks on ``digits_odd``."""

from ml_collections import ConfigDict

from nonlocal_jax.configs._video import classification_config

# The block of each network, and the axes along which its positions attend.
_BLOCKS = {
    "demo_video_none": ("none", None),
    "demo_video_space": ("nonlocal", "space"),
    "demo_video_time": ("nonlocal", "time"),
    "demo_video_nonlocal": ("nonlocal", "spacetime"),
    "demo_video_dnl": ("disentangled_nonlocal", "spacetime"),
    "demo_video_gc": ("global_context", "spacetime"),
}
NAMES = tuple(_BLOCKS)


def get_config(name: str) -> ConfigDict:
    """Returns the config of a small network on ``digits_odd``, without augmentation.

    Two of the three digits in a clip have the same color. The class is the color of the other one.
    The network processes the frames one by one and averages its features. Only the block, which is
    after the first stage, relates frames. Its feature map has 8 frames of 8x8 positions.
    """
    block, axes = _BLOCKS[name]
    config = classification_config(
        name,
        dataset="digits_odd",
        num_classes=4,
        block=block,
        steps=350,
        learning_rate=0.4,
        weight_decay=1e-4,
    )
    config.recipe = "this project"
    config.model.update(stage_sizes=(1, 1), strides=(1, 2), width=16, dropout=0.0)
    if block != "none":
        config.model.update(block_at=("layer1.0",), block_axes=axes)
    if "block_sub_sample" in config.model and axes != "time":
        config.model.block_sub_sample = "after"
    if "block_temperature" in config.model:
        # With 0.05, the attention of an untrained block is too sharp to be trained in so few steps.
        config.model.block_temperature = 0.25
    # A block starts as the identity. In so few steps it learns only with a high rate, and only with
    # clipped gradients does it learn all four colors with every seed.
    config.optimizer.clip_global_norm = 0.3
    config.schedule.warmup_steps = 50
    config.data.update(batch_size=32, frames=8, interval=1, short_side=(32, 32), crop=32, flip=0.0)
    config.evaluation.update(clips=1, crops=1, short_side=32, crop=32)
    config.train.update(log_every=10, checkpoint_every=50, evaluate_every=50)
    return config
