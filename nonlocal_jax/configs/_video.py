"""The config fields and defaults that experiments on videos share."""

from ml_collections import ConfigDict, config_dict

from nonlocal_jax.configs.common import IMAGENET_MEAN, IMAGENET_STD, base_config, block_options


def classification_config(
    name: str,
    *,
    dataset: str,
    num_classes: int,
    block: str,
    steps: int,
    learning_rate: float,
    weight_decay: float,
) -> ConfigDict:
    """Returns a config of the task "classification" with every field.

    The network is a ResNet-50 that processes clips frame by frame and averages its features. All
    fields that the experiments set have neutral values: no field is taken from a publication.
    """
    config = base_config(
        name,
        task="classification",
        steps=steps,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
    )
    config.model = {
        "network": "video",
        "num_classes": num_classes,
        "block": block,
        **block_options(block),
        "block_at": (),
        # Norm of the blocks: "batch_norm", "frozen_batch_norm" or "none".
        "block_norm": "batch_norm",
        "stage_sizes": (3, 4, 6, 3),
        "strides": (1, 2, 2, 2),
        "width": 64,
        # The fields of backbones.Temporal.
        "conv1_frames": 1,
        "conv1_stride": 1,
        "pool1_frames": 1,
        "pool1_stride": 1,
        "pool1_padding": 1,
        "pool2_frames": 1,
        "inflate": "3x1x1",
        "inflate_at": (),
        "shift": "both",
        "shift_at": (),
        "group_frames": config_dict.placeholder(int),
        "group_at": (),
        "norm": "batch_norm",
        # Number of clips that are normalized together, or None for the global batch.
        "norm_group_size": config_dict.placeholder(int),
        "dropout": 0.5,
        # Whether dropout acts on the features of each frame instead of those of the clip.
        "dropout_per_frame": False,
        # Standard deviation of the initial weights of the classifier.
        "head_std": 0.01,
        "dtype": "float32",
    }
    if block != "none":
        config.model.block_axes = "spacetime"
    config.data.update(
        name=dataset,
        batch_size=64,
        frames=32,
        # "clip": frames that are `interval` apart, from a random start. "segments": a random frame
        # of each of `frames` equal segments.
        sampling="clip",
        interval=2,
        # The short side of the frames is drawn uniformly from these two sizes, both inclusive.
        short_side=(256, 256),
        # Whether the size of the long side is rounded down ("floor") or to the nearest ("round").
        long_side="floor",
        # Training clips are random crops of this size. With crop_scales, they are crops whose sides
        # are these fractions of the short side, at most crop_scale_gap apart in the list, at one of
        # crop_positions fixed places. With crop_area, they are crops that cover a part of the
        # frame between these two fractions. Both are resized to the size of a crop.
        crop=224,
        crop_scales=(),
        crop_positions=5,
        crop_scale_gap=0,
        crop_area=(),
        flip=0.5,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    # "softmax": cross entropy of one class. "sigmoid": binary cross entropy of every class.
    config.loss = {"kind": "softmax"}
    config.evaluation = {
        # A video has clips * crops views.
        "clips": 10,
        "crops": 3,
        # Starts of the clips: "wrap", "even" or "segments".
        "starts": "wrap",
        "short_side": 256,
        "crop": 256,
        # Frames, height and width of the sliding mean over the features, 0 for a whole axis. () is
        # the mean over all features.
        "window": (),
        # What is averaged over views and windows: "probabilities" or "logits".
        "average": "probabilities",
    }
    # Number of training batches whose statistics replace the running ones of batch norm before an
    # evaluation and in the last checkpoint. 0 keeps the running statistics.
    config.train.precise_batch_norm = 0
    return config
