"""Inference by the protocols that the published numbers were measured with.

Everywhere ``apply_fn`` maps normalized RGB images ``[B, H, W, 3]`` to logits
``[B, H', W', classes]``; logits of another size than the images are resized to it. Give a compiled
function, as ``inference_fn`` makes: ``jax.jit`` keeps one program for every size of input, so a
dataset whose images differ in size compiles for each new size. JAX keeps these programs from run
to run where the environment variable JAX_COMPILATION_CACHE_DIR names a directory.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nonlocal_jax import ops
from nonlocal_jax.data import keep_ratio_size, normalize, resize_image
from nonlocal_jax.errors import InputError
from nonlocal_jax.ops._numerics import at_least_float32
from nonlocal_jax.sharding import make_mesh, replicated, split_images, use_mesh

ApplyFn = Callable[[jax.Array], jax.Array]

# Of ImageNet, RGB, in units of 8-bit gray levels.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def compile_inference(model: nn.Module, mesh: Mesh) -> Callable[[Mapping[str, Any]], ApplyFn]:
    """From variables to ``apply_fn``, compiled once for every size of image.

    The variables are put on the devices of the mesh, which share an image by its rows.
    """

    @jax.jit
    def apply(variables, images):
        with use_mesh(mesh):
            return model.apply(variables, split_images(images, mesh))

    def inference(variables):
        variables = jax.device_put(variables, replicated(mesh))
        return lambda images: apply(variables, jax.device_put(images, replicated(mesh)))

    return inference


def inference_fn(
    model: nn.Module, variables: Mapping[str, Any], mesh: Mesh | None = None
) -> ApplyFn:
    """The compiled inference of a model on a mesh, by default of one device."""
    return compile_inference(model, mesh or make_mesh(jax.local_devices()[:1]))(variables)


def inference_mesh(config: Mapping[str, Any]) -> Mesh:
    """Up to ``mesh.context`` devices of this process: one group, for one image at a time.

    Each process infers images of its own, also where several share an image in training.

    Raises:
      InputError: ``mesh.context`` is not positive.
    """
    context = config["mesh"]["context"]
    if context < 1:
        raise InputError(f"mesh.context must be at least 1; got {context}")
    devices = jax.local_devices()[:context]
    return make_mesh(devices, context=len(devices))


def inference_protocol(config: Mapping[str, Any], *, multi_scale: bool = False) -> dict[str, Any]:
    """The keyword arguments of ``multi_scale_inference`` that an experiment is tested with.

    Args:
      config: an experiment's config; its ``evaluation``, ``model`` and ``data`` are read.
      multi_scale: all ratios of the config and its flip, instead of one scale without a flip.

    Raises:
      InputError: ``config.evaluation.mode`` is neither "whole" nor "slide".
    """
    evaluation, data = config["evaluation"], config["data"]
    mode = evaluation["mode"]
    if mode not in ("whole", "slide"):
        raise InputError(f"evaluation.mode must be whole or slide; got {mode!r}")
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


def _window_starts(size: int, crop: int, stride: int) -> list[int]:
    """Where windows start along one axis; the last is shifted back to end at the border."""
    number = max(size - crop + stride - 1, 0) // stride + 1
    return [max(min(i * stride, size - crop), 0) for i in range(number)]


@functools.partial(jax.jit, donate_argnames="total")
def _add_window(total: jax.Array, logits: jax.Array, y: int, x: int) -> jax.Array:
    window = jax.lax.dynamic_slice(total, (0, y, x, 0), logits.shape)
    return jax.lax.dynamic_update_slice(total, window + logits, (0, y, x, 0))


def slide_inference(
    apply_fn: ApplyFn,
    images: jax.Array,
    crop: tuple[int, int],
    stride: tuple[int, int],
    align_corners: bool = False,
) -> jax.Array:
    """Logits from overlapping windows: their sum, divided by the number of windows at a pixel.

    Windows of size ``crop`` start every ``stride`` pixels; the last ones are shifted back to end
    at the border. An image smaller than the crop along an axis is one smaller window there. The
    windows go through the network one after the other, all of one size: one compilation, and the
    memory of one window.

    Args:
      apply_fn: see above.
      images: normalized RGB ``[B, H, W, 3]``.
      crop: (height, width) of a window.
      stride: (vertical, horizontal) distance of windows, at most ``crop``.
      align_corners: convention of the resize of a window's logits to the window's size.

    Returns:
      Logits ``[B, H, W, classes]``, at least float32.

    Raises:
      InputError: the windows would leave pixels out.
    """
    chex.assert_shape(images, (None, None, None, 3), custom_message="images must be [B, H, W, 3]")
    if not all(0 < s <= c for s, c in zip(stride, crop, strict=True)):
        raise InputError(
            f"the stride of windows must be positive and at most the crop; "
            f"got stride {tuple(stride)} and crop {tuple(crop)}"
        )
    batch, height, width, _ = images.shape
    window_size = min(crop[0], height), min(crop[1], width)
    ys = _window_starts(height, crop[0], stride[0])
    xs = _window_starts(width, crop[1], stride[1])
    total = None
    count = np.zeros((height, width, 1))
    for y in ys:
        for x in xs:
            window = images[:, y : y + window_size[0], x : x + window_size[1]]
            logits = at_least_float32(jnp.asarray(apply_fn(window)))
            logits = ops.resize(logits, window_size, align_corners=align_corners)
            if total is None:
                total = jnp.zeros((batch, height, width, logits.shape[-1]), logits.dtype)
            total = _add_window(total, logits, y, x)
            count[y : y + window_size[0], x : x + window_size[1]] += 1
    return total / jnp.asarray(count, total.dtype)


@functools.partial(jax.jit, static_argnames=("size", "align_corners", "flipped"))
def _probabilities(
    logits: jax.Array, *, size: tuple[int, int], align_corners: bool, flipped: bool
) -> jax.Array:
    logits = ops.resize(at_least_float32(logits), size, align_corners=align_corners)
    probabilities = jax.nn.softmax(logits, axis=-1)
    return probabilities[:, :, ::-1] if flipped else probabilities


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
    """Class probabilities of an image, the mean over scales and horizontal flips.

    The test-time augmentation of mmsegmentation 0.x, "ms+flip" in its tables. For each ratio r the
    8-bit image is resized by OpenCV (bilinear, not antialiased), keeping its proportions, to fit
    (int(r * width), int(r * height)) of ``base_size``; then normalized, passed through the network
    as a whole or in windows, and the logits are resized to the image's own size, softmax after.
    Averaged are probabilities, not logits. ``ratios=(1.0,), flip=False`` is the plain protocol:
    the logits are still resized twice, to the network's input and then to the image.

    The computation runs in JAX's default float type: float64 where 64-bit types are enabled.

    Args:
      apply_fn: see above.
      image_uint8: RGB ``[H, W, 3]``.
      base_size: (width, height) that ratio 1 fits the image into, whichever way it lies.
      ratios: scales.
      flip: pass each scale a second time, mirrored.
      crop: (height, width) of the windows of ``slide_inference``; None passes images whole.
      stride: (vertical, horizontal) distance of the windows.
      align_corners: convention of every resize of logits.
      mean: of the channels, in 8-bit gray levels.
      std: of the channels, in 8-bit gray levels.

    Returns:
      ``[H, W, classes]``, summing to one over the classes.

    Raises:
      InputError: sizes are not positive, no ratio is given, or only one of crop and stride is.
    """
    chex.assert_shape(image_uint8, (None, None, 3), custom_message="the image must be [H, W, 3]")
    chex.assert_type(image_uint8, np.uint8)
    if (crop is None) != (stride is None):
        raise InputError(f"crop and stride go together; got crop {crop} and stride {stride}")
    scales = [tuple(int(side * ratio) for side in base_size) for ratio in ratios]
    if not scales or min(map(min, scales)) < 1:
        raise InputError(
            f"need base_size and ratios that give positive sizes; got {base_size} and {ratios}"
        )
    image = np.asarray(image_uint8)
    size = image.shape[:2]
    total, passes = 0.0, 0
    for scale in scales:
        resized = resize_image(image, keep_ratio_size(size, scale))
        for flipped in (False, True) if flip else (False,):
            images = resized[None, :, ::-1] if flipped else resized[None]
            images = normalize(images, mean, std, dtype=float)
            if crop is None:
                logits = ops.resize(
                    jnp.asarray(apply_fn(images)), images.shape[1:3], align_corners=align_corners
                )
            else:
                logits = slide_inference(apply_fn, images, crop, stride, align_corners)
            total = total + _probabilities(
                logits, size=size, align_corners=align_corners, flipped=flipped
            )
            passes += 1
    return total[0] / passes


def predict(apply_fn: ApplyFn, image_uint8: np.ndarray, protocol: Mapping[str, Any]) -> np.ndarray:
    """The most probable class of every pixel, by ``inference_protocol``'s protocol.

    Returns:
      ``[H, W]`` at the image's size, in the smallest unsigned integer that holds every class.
    """
    probabilities = multi_scale_inference(apply_fn, image_uint8, **protocol)
    dtype = np.min_scalar_type(probabilities.shape[-1] - 1)
    return np.asarray(jnp.argmax(probabilities, axis=-1)).astype(dtype)
