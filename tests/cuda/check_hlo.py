"""Checks the programs that XLA compiles for an NVIDIA GPU: ``make check-cuda-hlo``.

No GPU is needed. All programs are gradients, compiled for an H200.

- Softmax attention of float32 arrays: the logits must be float32 products, not TF32.
- DNL attention in bfloat16: it must be cuDNN's kernel.
- The backbone ResNet-50-D8: every weight gradient must be cuDNN's backward filter, and no
  convolution may have a window larger than the largest kernel. The ordinary gradient of the dilated
  convolutions is compiled too and must fail this check: once it passes, the workaround in
  ``ops.conv`` is no longer needed.
"""

import collections
import functools
import pathlib
import re
import sys
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from nonlocal_jax import ops
from nonlocal_jax.backbones import ResNet
from nonlocal_jax.ops import convolution

SIZES = ((512, 512), (769, 769))  # feature maps of 64 x 64 and 97 x 97
BATCH = 2
TARGET = pathlib.Path(__file__).with_name("h200.txtpb")

_CALL = re.compile(r'window=\{size=(\d+)x(\d+).*custom_call_target="__cudnn\$conv(\w+)"')


def compile_attention(
    device: jax.Device, operation: Callable[..., jax.Array], *arrays: tuple[str, tuple[int, ...]]
) -> str:
    """Returns the optimized program of the gradients of theta, phi and g."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    given = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for dtype, shape in arrays]

    def loss(*arrays):
        return jnp.sum(jnp.square(operation(*arrays).astype(jnp.float32)))

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*given).compile().as_text()


def attention_passes(device: jax.Device) -> bool:
    """Compiles attention, prints a line for each program, and returns whether all pass."""
    passed = True
    for implementation in ("dense", "chunked"):
        operation = functools.partial(ops.softmax_attention, implementation=implementation)
        text = compile_attention(device, operation, *[("float32", (1, 1024, 64))] * 3)
        highest = text.count("operand_precision={highest,highest}")
        print(f"softmax attention, float32, {implementation}: {highest} products in full float32")
        passed &= highest >= 2
    features, scores = (1, 8192, 256), (1, 8192)
    wide, half = ("float32", features), ("bfloat16", features)
    operation = functools.partial(ops.disentangled, scale=1.25)
    text = compile_attention(device, operation, wide, wide, half, ("bfloat16", scores))
    calls = sorted(set(re.findall(r'custom_call_target="__cudnn\$(fmha\w+)"', text)))
    print(f"DNL attention, bfloat16, N = 8192, C = 256: cuDNN's {', '.join(calls) or 'no kernel'}")
    return passed and len(calls) == 2


def compile_gradient(device: jax.Device, size: tuple[int, int]) -> tuple[str, list]:
    """Returns the optimized program of the training gradient, and the shapes of the kernels."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    net = ResNet(dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((BATCH, *size, 3), jnp.float32, sharding=sharding)
    variables = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(net.init, jax.random.key(0), images),
    )

    def loss(params, batch_stats, images):
        stages, _ = net.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return sum(jnp.sum(jnp.square(stage.astype(jnp.float32))) for stage in stages)

    lowered = jax.jit(jax.grad(loss)).lower(variables["params"], variables["batch_stats"], images)
    kernels = [leaf.shape for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4]
    return lowered.compile().as_text(), kernels


def passes(name: str, device: jax.Device, size: tuple[int, int]) -> bool:
    """Compiles, prints one line, and returns whether all convolutions pass the check."""
    text, kernels = compile_gradient(device, size)
    calls = [(int(h), int(w), kind) for h, w, kind in _CALL.findall(text)]
    largest = max(max(shape[:2]) for shape in kernels)
    filters = sum(kind == "BackwardFilter" for *_, kind in calls)
    giants = collections.Counter(f"{h}x{w}" for h, w, _ in calls if max(h, w) > largest)
    print(
        f"{size[0]}x{size[1]}, {name}: {filters} of {len(kernels)} weight gradients are backward "
        f"filters, windows larger than {largest}x{largest}: {dict(giants) or 'none'}",
        flush=True,
    )
    return filters == len(kernels) and not giants


def main() -> None:
    (device,) = topologies.get_topology_desc(
        platform="cuda", target_config=TARGET.read_text(), topology="1x1x1"
    ).devices
    print(f"jax {jax.__version__}, {device.device_kind}", flush=True)
    if not attention_passes(device):
        sys.exit("attention does not have the precision or the kernel of the lines above")
    if not all([passes("by phases", device, size) for size in SIZES]):
        sys.exit("a weight gradient is not a backward filter of cuDNN; see the lines above")
    ordinary = mock.patch.object(
        convolution, "_phase_weight_gradient", convolution._weight_gradient
    )
    with ordinary:
        if passes("ordinary", device, SIZES[0]):
            sys.exit("XLA no longer needs the phases: use the ordinary gradient in ops.conv")


if __name__ == "__main__":
    main()
