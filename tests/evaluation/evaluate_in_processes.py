"""One of two processes: evaluate_in_processes.py ADDRESS INDEX."""

import sys

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import PartitionSpec

from configs import segmentation
from nonlocal_jax.configs._video import classification_config
from nonlocal_jax.data.videos import FrameArray
from nonlocal_jax.evaluation import classification, evaluator, videos
from nonlocal_jax.evaluation.metrics import gather_shares, sum_over_processes
from nonlocal_jax.sharding import Shardings, make_mesh
from tests.helpers import random_variables

index = int(sys.argv[2])
jax.distributed.initialize(sys.argv[1], 2, index)

total = sum_over_processes(np.array([[index, 2**40], [7, 10 * index]]))
np.testing.assert_array_equal(total, [[1, 2**41], [14, 10]])

config = segmentation.get_config("demo_nonlocal")
config.model.update(width=4, head_channels=8, auxiliary_channels=8)
variables = random_variables(config.model)
rng = np.random.default_rng(0)
source = [
    {
        "image": rng.integers(0, 256, (64, 64, 3), np.uint8),
        "label": rng.integers(0, 3, (64, 64), np.uint8),
        "id": i,
    }
    for i in range(3)
]
each_its_share = evaluator(config, source)(variables)
rules = ((r"layer.*conv\d/kernel$", PartitionSpec(None, None, None, "data")),)
shardings = Shardings(make_mesh(), rules)
sharded = shardings.place(variables)
together = evaluator(config, source, shardings=shardings)(sharded)
np.testing.assert_allclose(together["iou"], each_its_share["iou"], rtol=1e-3)

rows = np.random.default_rng(1).standard_normal((5, 3))
np.testing.assert_array_equal(gather_shares(rows[index::2], 5), rows)


class Net(nn.Module):
    """The mean color, and a classifier."""

    @nn.compact
    def __call__(self, clips):
        return nn.Dense(3, name="classifier")(clips.mean((1, 2, 3)))


videos.create_model = lambda _: Net()
config = classification_config(
    "tiny",
    dataset="own",
    num_classes=3,
    block="none",
    steps=1,
    learning_rate=0.1,
    weight_decay=0.0,
)
config.data.update(frames=2, interval=1)
config.evaluation.update(clips=3, crops=1, short_side=8, crop=8)
variables = jax.device_get(Net().init(jax.random.key(0), np.zeros((1, 2, 8, 8, 3), np.float32)))
for kind, key in (("softmax", "accuracy"), ("sigmoid", "average_precision")):
    config.loss.kind = kind
    examples = [
        {
            "video": FrameArray(rng.integers(0, 256, (4, 8, 8, 3), np.uint8)),
            "label": i % 3 if kind == "softmax" else (i % 3,),
            "id": str(i),
        }
        for i in range(5)
    ]
    # The last one leaves a process without a video.
    for source in (examples, examples[:1]):
        shares = classification.evaluator(config, source)(variables)
        shardings = Shardings(make_mesh())
        together = classification.evaluator(config, source, shardings=shardings)
        together = together(shardings.place(variables))
        assert shares["videos"] == together["videos"] == len(source)
        np.testing.assert_allclose(together[key], shares[key], rtol=1e-6)
        one = Shardings(make_mesh(jax.local_devices()))
        views = [classification.read_views(example["video"], config) for example in source]
        scores = np.array(list(videos.VideoPredictor(config, shardings=one)(variables)(views)))
        labels = np.array([i % 3 for i in range(len(source))])
        if kind == "sigmoid":
            expected = classification.average_precision(scores, np.eye(3)[labels])
            np.testing.assert_allclose(shares[key], expected, rtol=1e-6)
        else:
            np.testing.assert_allclose(shares["top1"], np.mean(scores.argmax(1) == labels))
