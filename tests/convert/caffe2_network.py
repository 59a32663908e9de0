"""Caffe2's video networks in plain NumPy, channels first, from blobs with Caffe2's names.

Nothing here is shared with the library: convolutions and pools are loops over the taps.
"""

import itertools

import numpy as np

EPSILON = 1.0000001e-5  # of Caffe2's batch norm


def relu(x):
    return np.maximum(x, 0)


def conv(x, weight, bias=None, stride=(1, 1, 1)):
    """``[C, T, H, W]`` with a kernel ``[O, C, t, h, w]``, padded by half of it."""
    size = weight.shape[2:]
    x = np.pad(x, [(0, 0), *((n // 2, n // 2) for n in size)])
    shape = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:], size, stride, strict=True)]
    y = np.zeros((len(weight), *shape))
    for taps in itertools.product(*map(range, size)):
        y += np.einsum("oi,ithw->othw", weight[:, :, *taps], _tap(x, taps, shape, stride))
    return y if bias is None else y + bias[:, None, None, None]


def max_pool(x, size, stride, padding=0):
    space = [(padding, padding)] * 2
    x = np.pad(x, [(0, 0), (0, 0), *space], constant_values=-np.inf)
    shape = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:], size, stride, strict=True)]
    taps = itertools.product(*map(range, size))
    return np.max([_tap(x, tap, shape, stride) for tap in taps], axis=0)


def _tap(x, taps, shape, stride):
    slices = (slice(a, a + s * (n - 1) + 1, s) for a, s, n in zip(taps, stride, shape, strict=True))
    return x[:, *slices]


def norm(x, blobs, name):
    """Batch norm at inference, or a scale and a bias if there are no statistics."""
    x, (scale, bias) = x.T, (blobs[f"{name}_{leaf}"] for leaf in "sb")
    if f"{name}_riv" in blobs:
        x = (x - blobs[f"{name}_rm"]) / np.sqrt(blobs[f"{name}_riv"] + EPSILON)
    return (x * scale + bias).T


def non_local(x, blobs, name):
    """The block of one group of frames: pool before phi and g, softmax of scaled products."""
    pooled = max_pool(x, (1, 2, 2), (1, 2, 2))

    def project(leaf, of):
        return conv(of, blobs[f"{name}_{leaf}_w"], blobs[f"{name}_{leaf}_b"])

    theta, phi, g = project("theta", x), project("phi", pooled), project("g", pooled)
    shape, width = theta.shape, len(theta)
    theta, phi, g = (a.reshape(width, -1) for a in (theta, phi, g))
    logits = theta.T @ phi / np.sqrt(width)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    y = project("out", (g @ weights.T).reshape(shape))
    return x + (norm(y, blobs, f"{name}_bn") if f"{name}_bn_s" in blobs else y)


def logits(clip, blobs, *, frame_strides=(2, 2), pool1=(2, 0), group_frames=None):
    """The logits of a clip ``[T, H, W, 3]``.

    Args:
      clip: The clip.
      blobs: Arrays in float64.
      frame_strides: Strides over frames of conv1 and of the pool after it.
      pool1: Frames of the window of this pool, and its padding in space.
      group_frames: In res3, blocks relate only so many frames.
    """
    x = conv(np.moveaxis(clip, -1, 0), blobs["conv1_w"], None, (frame_strides[0], 2, 2))
    x = relu(norm(x, blobs, "res_conv1_bn"))
    x = max_pool(x, (pool1[0], 3, 3), (frame_strides[1], 2, 2), pool1[1])
    for stage in range(2, 6):
        for index in itertools.count():
            name = f"res{stage}_{index}"
            if f"{name}_branch2a_w" not in blobs:
                break
            stride = (1, 2, 2) if index == 0 and stage > 2 else (1, 1, 1)
            y = x
            for branch, s in (("2a", (1, 1, 1)), ("2b", stride), ("2c", (1, 1, 1))):
                y = conv(y, blobs[f"{name}_branch{branch}_w"], None, s)
                y = norm(y, blobs, f"{name}_branch{branch}_bn")
                y = y if branch == "2c" else relu(y)
            if f"{name}_branch1_w" in blobs:
                x = conv(x, blobs[f"{name}_branch1_w"], None, stride)
                x = norm(x, blobs, f"{name}_branch1_bn")
            x = relu(x + y)
            block = f"nonlocal_conv{stage}_{index}"
            if f"{block}_g_w" in blobs:
                frames = group_frames if group_frames and stage == 3 else x.shape[1]
                groups = [x[:, t : t + frames] for t in range(0, x.shape[1], frames)]
                x = np.concatenate([non_local(group, blobs, block) for group in groups], axis=1)
        if stage == 2:
            x = max_pool(x, (2, 1, 1), (2, 1, 1))
    return blobs["pred_w"].reshape(len(blobs["pred_w"]), -1) @ x.mean((1, 2, 3)) + blobs["pred_b"]


def random_blobs(
    *,
    classes=5,
    width=4,
    sizes=(1, 2, 2, 1),
    conv1_frames=5,
    inflated=("res2_0", "res3_0", "res4_1"),
    blocks=("conv3_1", "conv4_0"),
    block_norm=True,
    affine=False,
    seed=0,
):
    """Blobs of a narrow network, in float32."""
    rng, blobs = np.random.default_rng(seed), {}

    def add_conv(name, outputs, inputs, *size, bias=False):
        fan_in = inputs * np.prod(size)
        blobs[f"{name}_w"] = rng.standard_normal((outputs, inputs, *size)) * (2 / fan_in) ** 0.5
        if bias:
            blobs[f"{name}_b"] = rng.standard_normal(outputs)

    def add_norm(name, channels, *, affine=affine):
        blobs[f"{name}_s"] = rng.uniform(0.5, 1.5, channels)
        blobs[f"{name}_b"] = rng.standard_normal(channels) / 4
        if not affine:
            blobs[f"{name}_rm"] = rng.standard_normal(channels) / 4
            blobs[f"{name}_riv"] = rng.uniform(0.5, 1.5, channels)

    add_conv("conv1", width, 3, conv1_frames, 7, 7)
    add_norm("res_conv1_bn", width)
    inputs = width
    for stage, size in enumerate(sizes, start=2):
        inner = width * 2 ** (stage - 2)
        for index in range(size):
            name = f"res{stage}_{index}"
            add_conv(f"{name}_branch2a", inner, inputs, 3 if name in inflated else 1, 1, 1)
            add_conv(f"{name}_branch2b", inner, inner, 1, 3, 3)
            add_conv(f"{name}_branch2c", 4 * inner, inner, 1, 1, 1)
            for letter, channels in zip("abc", (inner, inner, 4 * inner), strict=True):
                add_norm(f"{name}_branch2{letter}_bn", channels)
            if index == 0:
                add_conv(f"{name}_branch1", 4 * inner, inputs, 1, 1, 1)
                add_norm(f"{name}_branch1_bn", 4 * inner)
            inputs = 4 * inner
            if f"conv{stage}_{index}" in blocks:
                block = f"nonlocal_conv{stage}_{index}"
                for leaf in ("theta", "phi", "g"):
                    add_conv(f"{block}_{leaf}", inputs // 2, inputs, 1, 1, 1, bias=True)
                add_conv(f"{block}_out", inputs, inputs // 2, 1, 1, 1, bias=True)
                if block_norm:
                    add_norm(f"{block}_bn", inputs)
    blobs["pred_w"] = rng.standard_normal((classes, inputs)) / inputs**0.5
    blobs["pred_b"] = rng.standard_normal(classes)
    return {name: blob.astype(np.float32) for name, blob in blobs.items()}


def training_state(blobs):
    """What Caffe2 saves beside the blobs."""
    state = {"model_iter": 400000, "lr": np.float32(1e-4)}
    names = [name for name in blobs if not name.endswith(("_rm", "_riv"))]
    return state | {f"{name}_momentum": np.ones_like(blobs[name]) for name in names}


def of_images(blobs):
    """The blobs of a network for images, whose kernels have no time axis."""
    return {n: x.mean(2) if x.ndim == 5 else x for n, x in blobs.items()}


def inflated(blobs, like):
    """Copies of the kernels along time, divided by their number, as many as in ``like``."""
    frames = {n: x.shape[2] for n, x in like.items() if x.ndim == 5}
    return blobs | {n: np.stack([blobs[n]] * t, 2) / np.float64(t) for n, t in frames.items()}
