"""Inference with the published protocols, for any network and image by image.

``apply_fn`` always maps normalized RGB images ``[B, H, W, 3]`` to logits ``[B, H', W', classes]``.
Logits of a different size are resized to the size of the images. Pass a compiled function, such as
``jax.jit(functools.partial(model.apply, variables))``. ``jax.jit`` compiles one program for each
image size. ``Predictor`` needs few programs. Later runs reuse the programs after
``nonlocal_jax.compilation.use_cache()``.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nonlocal_jax.data import check_image, keep_ratio_size, normalize, resize_image
from nonlocal_jax.errors import InputError
from nonlocal_jax.evaluation._windows import Windows, cut, merge, weights
from nonlocal_jax.ops._numerics import at_least_float32

ApplyFn = Callable[[jax.Array], jax.Array]

# Mean and standard deviation of ImageNet, RGB, in 8-bit gray levels.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


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
    axes = tuple(map(cut, images.shape[1:3], crop, stride))
    return _infer(apply_fn, images, axes, images.shape[1:3], align_corners)


def _infer(
    apply_fn: ApplyFn,
    images: jax.Array,
    axes: tuple[Windows, Windows],
    size: tuple[int, int],
    align_corners: bool,
    flipped: bool = False,
) -> jax.Array:
    """Returns the logits of images that were resized from ``size``, and flipped, at this size."""
    height, width = (axis.window for axis in axes)
    logits = [
        [
            at_least_float32(jnp.asarray(apply_fn(images[:, y : y + height, x : x + width])))
            for x in axes[1].starts
        ]
        for y in axes[0].starts
    ]
    numbers = logits[0][0].shape[1:3]
    matrices = (
        weights(axis, number, n, align_corners, flip)
        for axis, number, n, flip in zip(axes, numbers, size, (False, flipped), strict=True)
    )
    return merge(logits, *matrices)


class Pass(NamedTuple):
    """One scale of an image, as it is or flipped.

    Attributes:
      image: The image at this scale, uint8 RGB ``[H, W, 3]``.
      flipped: Whether it is flipped.
      scale: The (width, height) that the image was fitted into.
      axes: The windows along its rows and along its columns.
    """

    image: np.ndarray
    flipped: bool
    scale: tuple[int, int]
    axes: tuple[Windows, Windows]

    @property
    def window(self) -> tuple[int, int]:
        """(height, width) of the windows."""
        return self.axes[0].window, self.axes[1].window

    def padded_window(self, y: int, x: int, size: tuple[int, int]) -> np.ndarray:
        """Returns the window in row y and column x, with padding up to a (height, width)."""
        parts = [
            slice(axis.starts[i], axis.starts[i] + axis.window)
            for axis, i in zip(self.axes, (y, x), strict=True)
        ]
        pads = [(0, n - axis.window) for n, axis in zip(size, self.axes, strict=True)]
        return np.pad(self.image[tuple(parts)], [*pads, (0, 0)])


def image_passes(
    image_uint8: np.ndarray,
    *,
    base_size: tuple[int, int],
    ratios: Sequence[float],
    flip: bool,
    crop: tuple[int, int] | None,
    stride: tuple[int, int] | None,
) -> list[Pass]:
    """Returns what the network sees of an image, see ``multi_scale_inference``.

    Raises:
      InputError: See ``multi_scale_inference``.
    """
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
    image, passes = np.asarray(image_uint8), []
    for scale in scales:
        resized = resize_image(image, keep_ratio_size(image.shape[:2], scale))
        axes = tuple(map(cut, resized.shape[:2], crop or (None, None), stride or (None, None)))
        passes.append(Pass(resized, False, scale, axes))
        if flip:
            passes.append(Pass(resized[:, ::-1], True, scale, axes))
    return passes


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
    total, passes = (
        None,
        image_passes(
            image_uint8, base_size=base_size, ratios=ratios, flip=flip, crop=crop, stride=stride
        ),
    )
    for image, flipped, _, axes in passes:
        images = normalize(image[None], mean, std, dtype=float)
        logits = _infer(apply_fn, images, axes, image_uint8.shape[:2], align_corners, flipped)
        probabilities = jax.nn.softmax(logits[0], axis=-1)
        total = probabilities if total is None else total + probabilities
    return total / len(passes)
