"""What an operation or a whole forward pass needs in memory, measured in this fresh process.

    python -m experiments.memory operation --operation=softmax_attention --positions=9409
    python -m experiments.memory forward --size=1024x2048 \\
        --config=configs/segmentation.py:nonlocal_r50-d8_512x1024_40k_cityscapes

Prints one JSON object. ``peak_mib`` is what the process' resident memory rose by while the compiled
program ran, its inputs and parameters not counted; one run after one compilation.
"""

import functools
import json
import pathlib
import resource
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import flags

from experiments import cli
from nonlocal_jax import create_model, ops
from nonlocal_jax.errors import InputError

_CONFIG = cli.define_config(required=False)
_POSITIONS = flags.DEFINE_integer("positions", 9409, "Number of positions N.", lower_bound=1)
_CHANNELS = flags.DEFINE_integer("channels", 64, "Number of channels C.", lower_bound=1)
_IMPLEMENTATION = flags.DEFINE_string("implementation", "auto", "Form of the operation.")
_BACKWARD = flags.DEFINE_boolean("backward", True, "Take the gradient of the operation too.")
# (theta, phi, g, options) -> y; scores are the first channel.
_OPERATIONS = {
    "softmax_attention": lambda theta, phi, g, **options: ops.softmax_attention(
        theta, phi, g, scale=theta.shape[-1] ** -0.5, **options
    ),
    "dot_product": ops.dot_product,
    "concatenation": lambda theta, phi, g, **options: ops.concatenation(
        theta[:, 0], phi[:, 0], g, **options
    ),
    "disentangled": lambda theta, phi, g, **options: ops.disentangled(
        theta, phi, g, phi[:, 0], scale=theta.shape[-1] ** -0.5, **options
    ),
    "context_pool": lambda theta, phi, g, **_: ops.context_pool(g, phi[:, 0]),  # of one form
}
_OPERATION = flags.DEFINE_enum(
    "operation", "softmax_attention", list(_OPERATIONS), "Function of nonlocal_jax.ops."
)
_SIZE = flags.DEFINE_string("size", "1024x2048", "HEIGHTxWIDTH of the image.")


def _status_kib(field: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise KeyError(field)


def measure(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds that ``run`` takes, and MiB that resident memory rises by meanwhile."""
    linux = sys.platform == "linux"
    if linux:
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
        before = _status_kib("VmRSS")
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    jax.block_until_ready(run())
    seconds = time.perf_counter() - start
    if linux:
        peak = _status_kib("VmHWM")
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return seconds, (peak - before) / 1024


def _operation() -> dict[str, object]:
    if _OPERATION.value == "context_pool" and _IMPLEMENTATION.value != "auto":
        raise InputError("context_pool has one form: leave --implementation out")
    shape = (_POSITIONS.value, _CHANNELS.value)
    keys = jax.random.split(jax.random.key(0), 3)
    theta, phi, g = (jax.random.normal(key, shape) for key in keys)

    forward = functools.partial(_OPERATIONS[_OPERATION.value], implementation=_IMPLEMENTATION.value)

    def loss(*arrays):
        return jnp.sum(jnp.square(forward(*arrays)))

    function = jax.value_and_grad(loss, argnums=(0, 1, 2)) if _BACKWARD.value else forward
    compiled = jax.jit(function).lower(theta, phi, g).compile()
    seconds, peak = measure(lambda: compiled(theta, phi, g))
    return {
        "operation": _OPERATION.value,
        "positions": shape[0],
        "channels": shape[1],
        "implementation": _IMPLEMENTATION.value,
        "backward": _BACKWARD.value,
        "seconds": round(seconds, 3),
        "peak_mib": round(peak, 1),
    }


def _forward() -> dict[str, object]:
    if _CONFIG.value is None:
        raise InputError("forward needs --config=configs/FILE.py:NAME")
    try:
        height, width = (int(n) for n in _SIZE.value.split("x"))
    except ValueError:
        raise InputError(f"--size must be HEIGHTxWIDTH; got {_SIZE.value!r}") from None
    model = create_model(_CONFIG.value.model)
    image = jax.random.normal(jax.random.key(0), (1, height, width, 3))
    variables = jax.jit(model.init)(jax.random.key(1), image[:, :65, :65])
    compiled = jax.jit(model.apply).lower(variables, image).compile()
    seconds, peak = measure(lambda: compiled(variables, image))
    return {
        "experiment": _CONFIG.value.name,
        "size": [height, width],
        "seconds": round(seconds, 1),
        "peak_mib": round(peak, 1),
    }


def main(arguments: list[str]) -> None:
    commands = {"operation": _operation, "forward": _forward}
    if len(arguments) != 2 or arguments[1] not in commands:
        raise InputError(f"give one of {', '.join(commands)}")
    print(json.dumps(commands[arguments[1]]()))


if __name__ == "__main__":
    cli.run(main)
