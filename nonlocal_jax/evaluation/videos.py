"""The scores of videos: the mean over the views of each video, with the protocol of a config."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nonlocal_jax.data import normalize, num_views
from nonlocal_jax.evaluation._devices import shardings_or_local
from nonlocal_jax.models import create_model
from nonlocal_jax.ops._numerics import at_least_float32
from nonlocal_jax.sharding import (
    Shardings,
    process_rows,
    split_positions,
    to_global,
    use_mesh,
)

Variables = Mapping[str, Any]

# Number of views that a device (or a group of devices that share a clip) gets at once.
_VIEWS_PER_DEVICE = 4


def quick_config(config: ConfigDict) -> ConfigDict:
    """Returns a config whose protocol is one clip and one crop, both in the center ("1clip")."""
    config = config.copy_and_resolve_references()
    config.evaluation.update(clips=1, crops=1)
    if config.evaluation.starts == "wrap":  # its only clip would be the first one
        config.evaluation.starts = "even"
    return config


def protocol(config: ConfigDict) -> dict[str, Any]:
    """Describes how the scores of a video are computed, as plain values for JSON.

    The ``name`` is "1clip" for one view, "10crop" for one clip of 10 crops, and otherwise the
    number of clips times that of crops, such as "10x3". The ``description`` is a sentence for
    tables. The other values are config fields.
    """
    options, data = config.evaluation, config.data
    if options.clips > 1:
        name = f"{options.clips}x{options.crops}"
    else:
        name = "1clip" if options.crops == 1 else f"{options.crops}crop"
    clips = "1 clip" if options.clips == 1 else f"{options.clips} clips"
    crops = "1 crop" if options.crops == 1 else f"{options.crops} crops"
    frames = f"{data.frames} frames"
    if options.starts != "segments":
        frames += f", every {data.interval}" if data.interval > 1 else " in a row"
    positions = "all positions"
    if options.window:
        sizes = " x ".join(str(n) if n else "all" for n in options.window)
        positions = f"windows of {sizes} (frames x rows x columns)"
    return {
        "name": name,
        "description": (
            f"{clips} ({frames}, starts: {options.starts}) x {crops} of {options.crop}x"
            f"{options.crop} pixels at short side {options.short_side}; features averaged over "
            f"{positions}; mean of the {options.average}"
        ),
        **options.to_dict(),
        "frames": data.frames,
        "interval": data.interval,
        "mean": tuple(data.mean),
        "std": tuple(data.std),
    }


class VideoPredictor:
    """Computes the scores of videos with the protocol of an experiment's config::

        predictor = VideoPredictor(config)
        views = (nlj.data.read_views(video, config) for video in videos)
        for scores in predictor(variables)(views):  # [classes], one array for each video

    The score of a class is the mean of its probabilities, or of its logits, over all views of the
    video and all windows of each view: for V views of W windows with logits z_vw ::

        scores = 1 / (V W) sum_vw softmax(z_vw)        evaluation.average="probabilities"
        scores = 1 / (V W) sum_vw z_vw                 evaluation.average="logits"

    For ``loss.kind="sigmoid"``, the logistic function replaces the softmax. The softmax before the
    mean over windows is the fully convolutional test of the NL paper's code.

    All batches have the same size, so the network is compiled once. The views of several videos
    share a batch. The last batch is padded with copies.

    Args:
      config: Config of the experiment.
      shardings: Where the variables and the views are placed. Default: on all devices of this
        process. Groups of ``mesh.context`` devices share each clip. If the mesh spans several
        processes, all of them must pass the same views.

    Attributes:
      protocol: See the function ``protocol``.

    Raises:
      InputError: ``shardings`` is something else.
    """

    def __init__(self, config: ConfigDict, *, shardings: Shardings | None = None):
        self.protocol = protocol(config)
        self._num_views = num_views(config)
        self._shardings = shardings_or_local(shardings, config.mesh.context)
        self._batch_size = self._shardings.batch_parts * _VIEWS_PER_DEVICE
        model, options, data = create_model(config.model), config.evaluation, config.data
        call = {"window": tuple(n or None for n in options.window)} if options.window else {}
        activation = jax.nn.softmax if config.loss.kind == "softmax" else jax.nn.sigmoid

        @functools.partial(jax.jit, out_shardings=self._shardings.replicated)
        def score(variables, clips):
            with use_mesh(self._shardings.mesh):
                clips = split_positions(normalize(clips, data.mean, data.std, dtype=float))
                logits = model.apply(self._shardings.gather(variables), clips, **call)
            scores = at_least_float32(logits)
            if options.average == "probabilities":
                scores = activation(scores)
            return jnp.mean(scores, axis=tuple(range(1, scores.ndim - 1)))  # over the windows

        self._score = score

    def __call__(
        self, variables: Variables
    ) -> Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]:
        """Returns a function that maps the views of each video to its scores.

        Views are those of ``data.read_views``, uint8 ``[V, T, H, W, 3]``. Scores are float64
        ``[classes]``, in the order of the videos.
        """
        variables = self._shardings.place(variables)
        rows = process_rows(self._shardings, self._batch_size)

        def score_batch(views: list[np.ndarray]) -> tuple[jax.Array, int]:
            padded = views + views[-1:] * (self._batch_size - len(views))
            clips = np.stack([padded[row] for row in rows])
            batch = to_global({"clips": clips}, self._shardings)
            return self._score(variables, batch["clips"]), len(views)

        def scores_of(videos: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
            batches = _groups(itertools.chain.from_iterable(videos), self._batch_size)
            # The devices compute a batch while the scores of the one before it are read.
            ahead = itertools.pairwise(itertools.chain(map(score_batch, batches), [None]))
            scores = itertools.chain.from_iterable(
                np.asarray(batch.addressable_data(0), np.float64)[:number]
                for (batch, number), _ in ahead
            )
            for of_video in _groups(scores, self._num_views):
                yield np.mean(of_video, axis=0)

        return scores_of


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yields lists of ``size`` consecutive items. The last one may be shorter."""
    items = iter(items)
    return iter(lambda: list(itertools.islice(items, size)), [])
