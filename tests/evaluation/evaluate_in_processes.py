"""One of two processes: evaluate_in_processes.py ADDRESS INDEX."""

import sys

import jax
import numpy as np
from jax.sharding import PartitionSpec

from configs import segmentation
from nonlocal_jax.evaluation import evaluator
from nonlocal_jax.evaluation.metrics import sum_over_processes
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
