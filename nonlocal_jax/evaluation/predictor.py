"""Segmentation with the protocol of an experiment, on many devices and in few programs."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nonlocal_jax.data import IGNORE_INDEX
from nonlocal_jax.errors import InputError
from nonlocal_jax.evaluation._devices import shardings_or_local
from nonlocal_jax.evaluation._layout import Grid, Layout, lay_out
from nonlocal_jax.evaluation._programs import Logits, Programs
from nonlocal_jax.evaluation._windows import Tile
from nonlocal_jax.sharding import CONTEXT, Shardings

Variables = Mapping[str, Any]

# A tile has at most so many rows, and so many pixels times classes.
_TILE = 256
_PART = 2**22


class Predictor:
    """Segments images with the protocol of an experiment's config::

        predictor = Predictor(config)
        probabilities = predictor(variables)(image)      # [H, W, classes]
        labels = predictor.label_maps(variables)(image)  # [H, W]

    ``image`` is RGB, uint8 ``[H, W, 3]``. The network is compiled for a few sizes, and smaller
    inputs are padded at the bottom and right. The padding is zero in every feature map and masked
    in blocks, so it does not change the result. The memory of the devices does not depend on the
    size of the image times the number of classes: the result is computed tile by tile.

    Args:
      config: Config of the experiment. ``evaluation``, ``model``, ``data`` and ``mesh`` are used.
      multi_scale: Whether to use all scales of the config and its flip. Default: one scale and no
        flip.
      shardings: Where the variables and images are placed. The devices along "context" share the
        rows of an image, of its logits and of its probabilities. Default: ``mesh.context`` devices
        of this process. If the process has fewer, all of them are used, without a warning. If the
        mesh spans several processes, all of them must pass the same images.

    Attributes:
      protocol: The keyword arguments of ``multi_scale_inference``.

    Raises:
      InputError: ``evaluation.mode``, ``mesh.context`` or ``shardings`` is invalid.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        multi_scale: bool = False,
        shardings: Shardings | None = None,
    ):
        self.protocol = _protocol(config, multi_scale)
        self._shardings = shardings_or_local(shardings, config["mesh"]["context"], groups=1)
        self._programs = Programs(config, self._shardings)
        self._num_classes = config["model"]["num_classes"]
        context = self._shardings.mesh.shape.get(CONTEXT, 1)
        pixels = max(_PART // self._num_classes, 1)
        tile = min(_TILE, math.isqrt(pixels), max(self.protocol["base_size"]))
        tile = math.ceil(tile / context) * context
        self._grid = Grid(self._programs.stride, context, tile)

    def __call__(self, variables: Variables) -> Callable[[np.ndarray], np.ndarray]:
        """Returns a function that maps an image to probabilities ``[H, W, classes]``."""
        return self._of_image(variables, self._programs.probabilities)

    def label_maps(self, variables: Variables) -> Callable[[np.ndarray], np.ndarray]:
        """Returns a function that maps an image to the most probable class of every pixel.

        Its result is ``[H, W]``, of the smallest unsigned integer type for the number of classes.
        """
        dtype = np.min_scalar_type(self._num_classes - 1)
        return self._of_image(variables, self._programs.labels, dtype)

    def confusion_matrices(
        self, variables: Variables
    ) -> Callable[[Iterable[tuple[np.ndarray, np.ndarray]]], Iterator[np.ndarray]]:
        """Returns a function that maps images and their labels to confusion matrices.

        Images of similar sizes share a batch, one for each group of devices along "context". So
        there are fewer matrices, int64 ``[classes, classes]``, than images. Labels are uint8
        ``[H, W]``.
        """
        variables = self._shardings.place(variables)

        def start(batch: Sequence[tuple[Layout, np.ndarray]]) -> list[jax.Array]:
            layouts, labels = zip(*batch, strict=True)
            logits = self._logits(variables, layouts)
            return [
                self._programs.confusion(logits, *matrices, self._tile_of_labels(labels, y, x))
                for y, x, matrices in self._tiles(layouts)
            ]

        def confusions(
            examples: Iterable[tuple[np.ndarray, np.ndarray]],
        ) -> Iterator[np.ndarray]:
            laid_out = ((self._lay_out(image), label) for image, label in examples)
            started = map(start, _batches(laid_out, self._shardings.batch_parts))
            # The devices compute a batch while the host prepares the next one.
            for of_tiles, _ in itertools.pairwise(itertools.chain(started, [None])):
                yield np.sum(jax.device_get(of_tiles), axis=0, dtype=np.int64)

        return confusions

    def trace(self, size: tuple[int, int]) -> jax.stages.Traced:
        """Traces the program of the network for images of a (height, width), without any arrays.

        ``trace(size).lower().compile()`` has the memory and the cost of inference, also on devices
        that this machine does not have. There is one image for each group of devices along
        "context". With several scales, it is the program of the first one.
        """
        shape = self._lay_out(np.zeros((*size, 3), np.uint8)).shapes[0]
        return self._programs.trace_network(shape.padded, shape.canvas)

    def _lay_out(self, image: np.ndarray) -> Layout:
        return lay_out(image, self.protocol, self._grid)

    def _of_image(
        self, variables: Variables, program: Callable[..., jax.Array], dtype: Any = None
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Returns a function that maps an image to the results of a program at every pixel."""
        variables = self._shardings.place(variables)

        def of_image(image: np.ndarray) -> np.ndarray:
            laid_out, result = self._lay_out(image), None
            logits = self._logits(variables, [laid_out])
            for y, x, matrices in self._tiles([laid_out]):
                part = np.asarray(program(logits, *matrices).addressable_data(0))[0]
                if result is None:
                    result = np.empty((*laid_out.size, *part.shape[2:]), dtype or part.dtype)
                place = result[y : y + len(part), x : x + len(part)]
                place[...] = part[: place.shape[0], : place.shape[1]]
            return result

        return of_image

    def _logits(self, variables: Variables, layouts: Sequence[Layout]) -> Logits:
        """Computes the logits of all windows of images of the same shapes."""
        layouts, logits, programs = self._full_batch(layouts), [], self._programs
        for index, shape in enumerate(layouts[0].shapes):
            passes = [layout.passes[index] for layout in layouts]
            sizes = _place(np.array([p.window for p in passes], np.int32), programs.by_image)
            windows = {}
            for y, x in itertools.product(*map(range, shape.windows)):
                images = np.stack([p.padded_window(y, x, shape.padded) for p in passes])
                images = _place(images, programs.by_row)
                windows[y, x] = programs.network(variables, images, sizes, shape.canvas)
            logits.append(windows)
        return logits

    def _tiles(self, layouts: Sequence[Layout]) -> Iterator[tuple[int, int, tuple[Tile, Tile]]]:
        """Yields the first row and column of every tile, and its matrices."""
        layouts, side = self._full_batch(layouts), self._grid.tile
        dtype = jax.dtypes.canonicalize_dtype(float)

        def matrices(axis: int, index: int) -> Tile:
            """Returns the arrays of each pass for the tiles with this index."""
            sharding = self._programs.by_image if axis else self._programs.by_tile_row
            firsts, weights = [], []
            for of_images in zip(*(layout.tiles for layout in layouts), strict=True):
                # An image with fewer tiles repeats its last one, which then has no labels.
                tiles = [of_axes[axis].tile(index) for of_axes in of_images]
                firsts.append(_place(np.stack([t.firsts for t in tiles]), self._programs.by_image))
                stacked = np.stack([t.weights for t in tiles]).astype(dtype)
                weights.append(_place(stacked, sharding))
            return Tile(firsts, weights)

        numbers = [
            math.ceil(max(sizes) / side)
            for sizes in zip(*(layout.size for layout in layouts), strict=True)
        ]
        columns = [matrices(1, index) for index in range(numbers[1])]
        for y in range(numbers[0]):
            rows = matrices(0, y)
            for x in range(numbers[1]):
                yield y * side, x * side, (rows, columns[x])

    def _tile_of_labels(self, labels: Sequence[np.ndarray], y: int, x: int) -> jax.Array:
        """Returns the tiles that start at a row and a column. Pixels outside are ignored."""
        side = self._grid.tile
        shape = self._shardings.batch_parts, side, side
        tiles = np.full(shape, IGNORE_INDEX, np.uint8)
        for tile, label in zip(tiles, labels, strict=False):
            part = label[y : y + side, x : x + side]
            tile[: part.shape[0], : part.shape[1]] = part
        return _place(tiles, self._programs.by_row)

    def _full_batch(self, layouts: Sequence[Layout]) -> Sequence[Layout]:
        """Fills the batch with copies of the last image. They have no labels."""
        return [*layouts, *[layouts[-1]] * (self._shardings.batch_parts - len(layouts))]


def _place(array: np.ndarray, sharding: jax.sharding.NamedSharding) -> jax.Array:
    """Puts an array that all processes have on the devices."""
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def _batches(
    examples: Iterable[tuple[Layout, np.ndarray]], size: int
) -> Iterator[list[tuple[Layout, np.ndarray]]]:
    """Yields lists of up to ``size`` images of the same shapes."""
    waiting = {}
    for example in examples:
        shapes = example[0].shapes
        waiting.setdefault(shapes, []).append(example)
        if len(waiting[shapes]) == size:
            yield waiting.pop(shapes)
    yield from waiting.values()


def _protocol(config: Mapping[str, Any], multi_scale: bool) -> dict[str, Any]:
    """Returns the keyword arguments of ``multi_scale_inference`` for an experiment."""
    evaluation, data = config["evaluation"], config["data"]
    mode = evaluation["mode"]
    if mode not in ("whole", "slide"):
        raise InputError(f"evaluation.mode is {mode!r}; use 'whole' or 'slide'")
    slide = mode == "slide"
    return {
        "base_size": tuple(evaluation["base_size"]),
        "ratios": tuple(evaluation["ratios"]) if multi_scale else (1.0,),
        "flip": evaluation["flip"] if multi_scale else False,
        "crop": tuple(evaluation["crop"]) if slide else None,
        "stride": tuple(evaluation["stride"]) if slide else None,
        "align_corners": config["model"]["align_corners"],
        "mean": tuple(data["mean"]),
        "std": tuple(data["std"]),
    }
