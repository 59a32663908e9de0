"""The interface between a task and training and evaluation."""

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

    The train step, the loop, the commands and the ahead-of-time compilation take everything that is
    specific to a task from this dataclass. They treat a batch as a pytree of arrays whose first
    axis is the batch axis. ``nonlocal_jax/tasks/segmentation.py`` is an example.

    In functions that run on the host (``prepare``, ``open_source``, ``evaluator``, ``report``),
    import large packages inside the function, so that the train step needs only jax, flax, optax
    and ml_collections.

    Attributes:
      headline: Name of the metric that describes a network in one number, such as "miou", or a
        function ``config -> name``. It is a key of the summary of the evaluation during training.
      leaves: The config fields of this task, in addition to the common ones, with the values
        allowed for each. See ``nonlocal_jax.config``.
      check: Function ``config -> None`` that checks the fields that depend on each other. It raises
        an ``InputError``. Default: None, for no such check.
      batch: Returns the shapes and types of a global batch:
        ``config -> {name: jax.ShapeDtypeStruct}``.
      inputs: Computes the inputs of the model from a batch: ``(batch, config) -> inputs``. It runs
        inside the compiled train step.
      loss: Computes the loss from the outputs of the model called with ``train=True``:
        ``(outputs, batch, config) -> (loss, parts)``. ``parts`` is a dict of scalars to log. It
        runs inside the compiled train step.
      loss_weight: Returns what the loss of a part of a batch counts in the loss of the batch, such
        as its number of labels: ``(batch, config) -> scalar``. ``train.accumulate`` needs it.
        Default: None, for a loss that is the mean over the examples.
      prepare: Checks and augments one example of a source:
        ``(example, config, rng) -> {name: NumPy array}``. The results are stacked into a batch.
      open_source: Opens the split "train" or "val" of the dataset:
        ``(config, split, data_dir) -> source``, with ``len(source)`` and ``source[index]``.
      evaluator: Makes a function that evaluates variables on a source:
        ``(config, source, *, quick=False, multi_scale=False, shardings=None) -> run``.
        ``run(variables)`` returns the summary, a dict of metrics. Metrics of type float are logged.
        ``quick=True`` is for the evaluations during training: if the published protocol takes too
        long for them, the task uses a shorter one and names its metrics after it.
      report: Formats a summary as a Markdown table and as plain values for JSON:
        ``(summary, config) -> (text, values)``.
      predictor: Makes the ``tasks.predict.FilePredictor`` of ``experiments.predict``:
        ``(config, *, multi_scale=False, position=None) -> predictor``. ``max_megapixels`` is
        passed too if its flag is set. Default: None.
    """

    headline: str | Callable[[ConfigDict], str]
    leaves: Mapping[str, Leaf]
    batch: Callable[[ConfigDict], dict[str, jax.ShapeDtypeStruct]]
    inputs: Callable[[Batch, ConfigDict], Any]
    loss: Callable[[Any, Batch, ConfigDict], tuple[jax.Array, dict[str, jax.Array]]]
    prepare: Callable[[Example, ConfigDict, np.random.Generator], dict[str, np.ndarray]]
    open_source: Callable[[ConfigDict, str, Any], Sequence[Example]]
    evaluator: Callable[..., Callable[[Variables], dict[str, Any]]]
    report: Callable[[Mapping[str, Any], ConfigDict], tuple[str, dict[str, Any]]]
    predictor: Callable[..., Any] | None = None
    check: Callable[[ConfigDict], None] | None = None
    loss_weight: Callable[[Batch, ConfigDict], jax.Array | float] | None = None
