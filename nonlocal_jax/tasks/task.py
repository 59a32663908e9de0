"""What training and evaluation need to know about a task."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from nonlocal_jax.config import Leaf

Batch = Mapping[str, jax.Array]
Example = Mapping[str, Any]
Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """One kind of problem, such as semantic segmentation.

    The train step, the loop, the commands and the ahead-of-time compilation read everything that is
    particular to a task from this record. They treat a batch as a pytree of arrays whose first axis
    is the batch axis. ``nonlocal_jax/tasks/segmentation.py`` is an example.

    Functions that run on the host (``prepare``, ``open_source``, ``evaluator``, ``report``) import
    heavy packages inside, so that the train step needs jax, flax, optax and ml_collections only.

    Attributes:
      headline: Name of the metric that describes a network in one number, such as "miou". A key of
        the evaluator's summary.
      leaves: Checks of the config's leaves that only this task has, see ``nonlocal_jax.config``.
      batch: ``config -> {name: jax.ShapeDtypeStruct}``. Shapes and types of a global batch.
      inputs: ``(batch, config) -> inputs``. What the model is called with. Runs inside the compiled
        train step.
      loss: ``(outputs, batch, config) -> (loss, parts)``. The outputs are those of the model called
        with ``train=True``. ``parts`` is a dict of scalars to log. Runs inside the compiled step.
      prepare: ``(example, config, rng) -> {name: numpy array}``. Checks and augments one example of
        a source. The batch stacks the results.
      open_source: ``(config, split, data_dir) -> source`` with ``len(source)`` and
        ``source[index]``, for the splits "train" and "val".
      evaluator: ``(config, source, *, multi_scale=False, shardings=None) -> run``, where
        ``run(variables)`` returns the summary: a dict whose floats are logged.
      report: ``(summary, config) -> (text, values)``. The summary as a Markdown table, and as plain
        values for JSON.
    """

    headline: str
    leaves: Mapping[str, Leaf]
    batch: Callable[[ConfigDict], dict[str, jax.ShapeDtypeStruct]]
    inputs: Callable[[Batch, ConfigDict], Any]
    loss: Callable[[Any, Batch, ConfigDict], tuple[jax.Array, dict[str, jax.Array]]]
    prepare: Callable[[Example, ConfigDict, np.random.Generator], dict[str, np.ndarray]]
    open_source: Callable[[ConfigDict, str, Any], Sequence[Example]]
    evaluator: Callable[..., Callable[[Variables], dict[str, Any]]]
    report: Callable[[Mapping[str, Any], ConfigDict], tuple[str, dict[str, Any]]]
