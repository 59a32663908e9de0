"""Inference with the published protocols.

``apply_fn`` always maps normalized RGB images ``[B, H, W, 3]`` to logits ``[B, H', W', classes]``.
Logits of a different size are resized to the size of the images. Pass a compiled function, such as
one from ``inference_fn``. ``jax.jit`` compiles one program for each image size. Later runs reuse
these programs after ``nonlocal_jax.compilation.use_cache()``.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nonlocal_jax.data import check_image, keep_ratio_size, normalize, resize_image
from nonlocal_jax.errors import InputError
from nonlocal_jax.evaluation._windows import ApplyFn, WindowLogits, interpolate, starts
from nonlocal_jax.models import create_model
from nonlocal_jax.models.segmentation import SegmentationNet
from nonlocal_jax.ops.resize import bilinear_part
from nonlocal_jax.sharding import Shardings, make_mesh, split_positions, use_mesh

Variables = Mapping[str, Any]

# Mean and standard deviation of ImageNet, RGB, in 8-bit gray levels.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

# Label maps are computed in parts of at most this many pixels times classes.
_PART = 2**22


def inference_fn(
    model: nn.Module, shardings: Shardings | None = None, **kwargs: Any
) -> Callable[[Variables], ApplyFn]:
    """Compiles the inference of a model, once for each image size.

    Images are replicated, and the rows of their feature maps are split over the mesh axis
    "context". If the mesh spans several processes, all of them must call ``apply_fn`` with the same
    images.

    Args:
      model: The model.
      shardings: Where the variables are placed. Default: one device of this process.
      **kwargs: Passed to ``model.apply``.

    Returns:
      A function that maps variables to ``apply_fn``.
    """
    shardings = shardings or Shardings(make_mesh(jax.local_devices()[:1]))
    spans_processes = shardings.mesh.is_multi_process

    @functools.partial(jax.jit, out_shardings=shardings.replicated if spans_processes else None)
    def apply(variables, images):
        with use_mesh(shardings.mesh):
            return model.apply(shardings.gather(variables), split_positions(images), **kwargs)

    def place(variables: Variables) -> ApplyFn:
        variables = shardings.place(variables)

        def apply_fn(images: jax.Array) -> jax.Array:
            if spans_processes:  # each has its own copy of the images and of the logits
                images = jax.device_put(np.asarray(images), shardings.replicated)
                return apply(variables, images).addressable_data(0)
            return apply(variables, jax.device_put(images, shardings.replicated))

        return apply_fn

    return place


class Predictor:
    """Segments images with the protocol of an experiment's config::

        predictor = Predictor(config)
        probabilities = predictor(variables)(image)      # [H, W, classes]
        labels = predictor.label_maps(variables)(image)  # [H, W]

    ``image`` is RGB, uint8 ``[H, W, 3]``. The network is compiled once for each image size. The
    memory for a label map does not depend on the number of classes: it is computed part by part.

    Args:
      config: Config of the experiment. ``evaluation``, ``model``, ``data`` and ``mesh`` are used.
      multi_scale: Whether to use all scales of the config and its flip. Default: one scale and no
        flip.
      shardings: Where the variables are placed. Default: replicated on ``mesh.context`` devices of
        this process, which share the rows of an image. If the process has fewer devices, all of
        them are used, without a warning.

    Attributes:
      protocol: The keyword arguments of ``multi_scale_inference``.

    Raises:
      InputError: ``evaluation.mode`` or ``mesh.context`` is invalid.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        multi_scale: bool = False,
        shardings: Shardings | None = None,
    ):
        self.protocol = _protocol(config, multi_scale)
        shardings = shardings or _local_shardings(config["mesh"]["context"])
        model = create_model(config["model"])
        # Logits at the stride of the network are small. Other networks return any size.
        options = {"upsample": False} if isinstance(model, SegmentationNet) else {}
        self._inference = inference_fn(model, shardings, **options)

    def __call__(self, variables: Variables) -> Callable[[np.ndarray], jax.Array]:
        """Returns a function that maps an image to probabilities ``[H, W, classes]``."""
        apply_fn = self._inference(variables)
        return lambda image: multi_scale_inference(apply_fn, image, **self.protocol)

    def label_maps(self, variables: Variables) -> Callable[[np.ndarray], np.ndarray]:
        """Returns a function that maps an image to the most probable class of every pixel.

        Its result is ``[H, W]``, of the smallest unsigned integer type for the number of classes.
        """
        apply_fn = self._inference(variables)

        def label_map(image: np.ndarray) -> np.ndarray:
            probabilities = _Probabilities(apply_fn, image, **self.protocol)
            num_classes, size = probabilities.num_classes, image.shape[:2]
            side = max(1, math.isqrt(_PART // num_classes))
            part = min(side, size[0]), min(side, size[1])
            labels = np.empty(size, np.min_scalar_type(num_classes - 1))
            for y, x in itertools.product(*map(starts, size, part, part)):
                place = slice(y, y + part[0]), slice(x, x + part[1])
                labels[place] = _most_probable(probabilities((y, x), part))
            return labels

        return label_map


def _local_shardings(context: int) -> Shardings:
    """Returns shardings over ``context`` devices of this process, or over all if it has fewer.

    Every process predicts its own images.
    """
    if context < 1:
        raise InputError(f"mesh.context is {context}; use a positive integer")
    devices = jax.local_devices()[:context]
    return Shardings(make_mesh(devices, context=len(devices)))


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


def slide_inference(
    apply_fn: ApplyFn,
    images: jax.Array,
    crop: tuple[int, int],
    stride: tuple[int, int],
    align_corners: bool = False,
) -> jax.Array:
    """Averages the logits of overlapping windows at every pixel.

    Windows of size ``crop`` start every ``stride`` pixels. The last ones are shifted back to end at
    the border. Along an axis where the image is smaller than ``crop``, there is one window of the
    size of the image. The network runs on one window at a time. All windows have the same size, so
    it is compiled once.

    Args:
      apply_fn: Maps images to logits, see the module docstring.
      images: Normalized RGB ``[B, H, W, 3]``.
      crop: (height, width) of a window.
      stride: (vertical, horizontal) distance of windows, at most ``crop``.
      align_corners: Convention of the resize of a window's logits to the window's size.

    Returns:
      Logits ``[B, H, W, classes]``, at least float32.

    Raises:
      InputError: The images have the wrong shape, or the windows do not cover all pixels.
    """
    if images.ndim != 4 or images.shape[-1] != 3:
        raise InputError(
            f"images have the shape {images.shape}; use normalized RGB images [B, H, W, 3]"
        )
    logits = WindowLogits(apply_fn, images, crop, stride, align_corners)
    total, count = logits.sum((0, 0), logits.size)
    return total / count


@functools.partial(jax.jit, static_argnames="flipped", donate_argnames="total")
def _add_softmax(
    total: jax.Array | None,
    logits: jax.Array,
    count: jax.Array,
    weights: tuple[jax.Array, jax.Array],
    *,
    flipped: bool,
) -> jax.Array:
    probabilities = jax.nn.softmax(interpolate(logits / count, (0, 0), weights)[0], axis=-1)
    probabilities = probabilities[:, ::-1] if flipped else probabilities
    return probabilities if total is None else total + probabilities


@jax.jit
def _most_probable(probabilities: jax.Array) -> jax.Array:
    return jnp.argmax(probabilities, axis=-1)


class _Probabilities:
    """The probabilities of ``multi_scale_inference``, in any part of the image."""

    def __init__(
        self,
        apply_fn: ApplyFn,
        image_uint8: np.ndarray,
        *,
        base_size: tuple[int, int],
        ratios: Sequence[float],
        flip: bool,
        crop: tuple[int, int] | None,
        stride: tuple[int, int] | None,
        align_corners: bool,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        check_image(image_uint8)
        if (crop is None) != (stride is None):
            raise InputError(f"crop is {crop} and stride is {stride}; use both or neither")
        scales = [tuple(int(side * ratio) for side in base_size) for ratio in ratios]
        if not scales:
            raise InputError("ratios is empty; use one or more ratios")
        if min(map(min, scales)) < 1:
            raise InputError(
                f"base_size={tuple(base_size)} and ratios={tuple(ratios)} give an image of size "
                "0; use larger sizes or ratios"
            )
        image = np.asarray(image_uint8)
        self._size = image.shape[:2]
        self._align_corners = align_corners
        self._passes = []
        for scale in scales:
            resized = resize_image(image, keep_ratio_size(self._size, scale))
            for flipped in (False, True) if flip else (False,):
                images = resized[None, :, ::-1] if flipped else resized[None]
                images = normalize(images, mean, std, dtype=float)
                logits = WindowLogits(apply_fn, images, crop, stride, align_corners)
                self._passes.append((logits, flipped))
        self.num_classes = logits.num_classes

    def __call__(self, starts: tuple[int, int], shape: tuple[int, int]) -> jax.Array:
        """Returns the probabilities ``[*shape, classes]`` of the part at a row and a column."""
        total = None
        for logits, flipped in self._passes:
            y, x = starts
            x = self._size[1] - x - shape[1] if flipped else x
            axes = zip(logits.size, self._size, (y, x), shape, strict=True)
            parts = [bilinear_part(n, m, self._align_corners, *part) for n, m, *part in axes]
            firsts, weights = zip(*parts, strict=True)
            weights = tuple(w.astype(logits.dtype) for w in weights)
            part = logits.sum(firsts, tuple(w.shape[1] for w in weights))
            total = _add_softmax(total, *part, weights, flipped=flipped)
        return total if len(self._passes) == 1 else total / len(self._passes)


def multi_scale_inference(
    apply_fn: ApplyFn,
    image_uint8: np.ndarray,
    *,
    base_size: tuple[int, int],
    ratios: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    flip: bool = True,
    crop: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    align_corners: bool = False,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> jax.Array:
    """Returns the class probabilities of an image, averaged over scales and horizontal flips.

    This is the test-time augmentation of mmsegmentation 0.x, "ms+flip" in its tables. For each
    ratio r:

    1. OpenCV resizes the 8-bit image (bilinear, without antialiasing, with its aspect ratio) to fit
       into (int(r * width), int(r * height)), where ``base_size`` is (width, height).
    2. The image is normalized and passed to the network, as a whole or in windows.
    3. The logits are resized to the size of the original image. The softmax follows.

    The probabilities are averaged, not the logits. The single-scale protocol is ``ratios=(1.0,),
    flip=False``. It also resizes the logits twice: to the size of the network's input, and then to
    the size of the original image.

    The computation runs in JAX's default float type, which is float64 if 64-bit types are enabled.

    Args:
      apply_fn: Maps images to logits, see the module docstring.
      image_uint8: RGB ``[H, W, 3]``.
      base_size: The size that ratio 1 fits the image into. The order of its sides does not matter.
      ratios: The scales.
      flip: Whether to pass each scale a second time, flipped.
      crop: (height, width) of the windows of ``slide_inference``. If None, whole images are passed.
      stride: (vertical, horizontal) distance of the windows.
      align_corners: Convention of every resize of logits.
      mean: Mean of each channel, in 8-bit gray levels.
      std: Standard deviation of each channel, in 8-bit gray levels.

    Returns:
      Probabilities ``[H, W, classes]``. Their sum over the classes is one.

    Raises:
      InputError: The image has the wrong type or shape, a size is not positive, there is no ratio,
        or only one of ``crop`` and ``stride`` is given.
    """
    probabilities = _Probabilities(
        apply_fn,
        image_uint8,
        base_size=base_size,
        ratios=ratios,
        flip=flip,
        crop=crop,
        stride=stride,
        align_corners=align_corners,
        mean=mean,
        std=std,
    )
    return probabilities((0, 0), image_uint8.shape[:2])
