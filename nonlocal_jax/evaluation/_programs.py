"""The compiled programs of segmentation: the network, and the result in a tile of the images."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from nonlocal_jax.data import normalize
from nonlocal_jax.evaluation._padding import padding_mask, without_padding
from nonlocal_jax.evaluation._windows import Tile, merge
from nonlocal_jax.evaluation.metrics import confusion_matrix
from nonlocal_jax.models import create_model
from nonlocal_jax.ops._numerics import at_least_float32, zero_padding
from nonlocal_jax.sharding import CONTEXT, Shardings, split_positions, use_mesh

# For each pass, the logits ``[B, h, w, classes]`` of the window in a row and a column of windows.
Logits = Sequence[Mapping[tuple[int, int], jax.Array]]


class Programs:
    """The programs of a segmentation network, for one image in each group of devices.

    Images, logits and results are split over the groups, and their rows over the devices in one.

    Attributes:
      stride: Rows of an image for one row of logits.
      by_image: The sharding of arrays with one item for each image.
      by_row: The sharding of images, logits and labels ``[B, H, W, ...]``.
      by_tile_row: The sharding of the weights ``[B, windows, T, band]`` of the rows of tiles.
      network: ``(variables, images, sizes, canvas) -> logits``. ``images`` are windows with
        padding, uint8 ``[B, H, W, 3]``, and ``sizes`` their (height, width) without it, ``[B, 2]``.
        Logits are padded to the (height, width) of ``canvas``.
      probabilities: ``(logits, rows, columns) -> [B, T, T, classes]``. ``rows`` and ``columns``
        are those of a tile of each image, with lists of the arrays of each pass.
      labels: ``(logits, rows, columns) -> [B, T, T]``, the most probable classes.
      confusion: ``(logits, rows, columns, labels) -> [classes, classes]``, the confusion matrix of
        the true ``labels [B, T, T]`` and the most probable classes.
    """

    def __init__(self, config: Mapping[str, Any], shardings: Shardings):
        self._model = create_model(config["model"])
        self._num_classes = config["model"]["num_classes"]
        self._mean, self._std = config["data"]["mean"], config["data"]["std"]
        self._shardings = shardings
        mesh, batch = shardings.mesh, next(iter(shardings.batch_spec), None)
        context = CONTEXT if CONTEXT in mesh.shape else None
        specs = (
            PartitionSpec(batch),
            PartitionSpec(batch, context),
            PartitionSpec(batch, None, context),
        )
        self.by_image, self.by_row, self.by_tile_row = (NamedSharding(mesh, s) for s in specs)
        self._axes = tuple(jax.tree.leaves(tuple(specs[1])))
        self.stride = self._model.stride
        self.network = jax.jit(self._network, static_argnums=3, out_shardings=self.by_row)

        image, row, tile_row = specs
        arguments = row, Tile(image, tile_row), image, row

        def compiled(function, number, out_specs):
            specs = {"in_specs": arguments[:number], "out_specs": out_specs}
            # The result is that of all devices, which ``check_vma`` cannot know of ``all_gather``.
            split = jax.shard_map(function, mesh=mesh, **specs, check_vma=False)
            return jax.jit(split, out_shardings=shardings.replicated)

        self.probabilities = compiled(self._probabilities, 3, row)
        self.labels = compiled(self._labels, 3, row)
        self.confusion = compiled(self._confusion, 4, PartitionSpec())

    def trace_network(self, padded: tuple[int, int], canvas: tuple[int, int]) -> jax.stages.Traced:
        """Traces ``network`` for windows of a size, without any arrays."""
        batch, sharding = self._shardings.batch_parts, self._shardings
        image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        variables = jax.eval_shape(self._model.init, jax.random.key(0), image)
        variables = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            variables,
            sharding.of(variables),
        )
        images = jax.ShapeDtypeStruct((batch, *padded, 3), jnp.uint8, sharding=self.by_row)
        sizes = jax.ShapeDtypeStruct((batch, 2), jnp.int32, sharding=self.by_image)
        return self.network.trace(variables, images, sizes, canvas)

    def _network(self, variables, images, sizes, canvas):
        padded = images.shape[1:3]
        with use_mesh(self._shardings.mesh), without_padding(sizes, padded):
            x = split_positions(normalize(images, self._mean, self._std, dtype=float))
            x = zero_padding(padding_mask(sizes, padded, x), x)
            logits = self._model.apply(self._shardings.gather(variables), x, upsample=False)
        logits = at_least_float32(logits)
        rest = (c - n for c, n in zip(canvas, logits.shape[1:3], strict=True))
        return jnp.pad(logits, [(0, 0), *((0, n) for n in rest), (0, 0)])

    # The functions below run on one device. It has one image, and its share of the rows.

    def _probabilities(self, logits: Logits, rows: Tile, columns: Tile) -> jax.Array:
        total = 0
        for windows, tops, y, lefts, x in zip(logits, *rows, *columns, strict=True):
            parts = [
                [
                    self._part(windows[i, j], (top, left), (y.shape[-1], x.shape[-1]))
                    for j, left in enumerate(lefts[0])
                ]
                for i, top in enumerate(tops[0])
            ]
            total += jax.nn.softmax(merge(parts, y[0], x[0]), axis=-1)
        return total / len(logits)

    def _part(
        self, logits: jax.Array, firsts: tuple[jax.Array, jax.Array], band: tuple[int, int]
    ) -> jax.Array:
        """Returns the logits that a tile needs, also those of other devices."""
        if CONTEXT in self._axes:
            logits = jax.lax.all_gather(logits, CONTEXT, axis=1, tiled=True)
        for axis, first, number in zip((1, 2), firsts, band, strict=True):
            logits = jax.lax.dynamic_slice_in_dim(logits, first, number, axis)
        return logits

    def _labels(self, logits: Logits, rows: Tile, columns: Tile) -> jax.Array:
        return jnp.argmax(self._probabilities(logits, rows, columns), axis=-1)

    def _confusion(self, logits: Logits, rows: Tile, columns: Tile, labels: jax.Array) -> jax.Array:
        predictions = self._labels(logits, rows, columns)
        confusion = confusion_matrix(labels, predictions, self._num_classes)
        return jax.lax.psum(confusion, self._axes)
