"""What an operation or a whole forward pass needs in memory, measured in this fresh process.

    python -m experiments.memory operation --operation=softmax_attention --positions=9409
    python -m experiments.memory forward --size=1024x2048 \\
        --config=configs/segmentation.py:nonlocal_r50-d8_512x1024_40k_cityscapes

Prints one JSON object. ``peak_mib`` is what the process' resident memory rose by while the compiled
program ran, its inputs and parameters not counted; one run after one compilation.
"""

import functools
import json

import jax
import jax.numpy as jnp
from absl import flags

from experiments import cli
from experiments.measure import measure
from experiments.operations import OPERATIONS
from nonlocal_jax import create_model
from nonlocal_jax.errors import InputError

_CONFIG = cli.define_config(required=False)
_POSITIONS = flags.DEFINE_integer("positions", 9409, "Number of positions N.", lower_bound=1)
_CHANNELS = flags.DEFINE_integer("channels", 64, "Number of channels C.", lower_bound=1)
_IMPLEMENTATION = flags.DEFINE_string("implementation", "auto", "Form of the operation.")
_BACKWARD = flags.DEFINE_boolean("backward", True, "Take the gradient of the operation too.")
_OPERATION = flags.DEFINE_enum(
    "operation", "softmax_attention", list(OPERATIONS), "Function of nonlocal_jax.ops."
)
_SIZE = flags.DEFINE_string("size", "1024x2048", "HEIGHTxWIDTH of the image.")


def _operation() -> dict[str, object]:
    operation = OPERATIONS[_OPERATION.value]
    shape = (_POSITIONS.value, _CHANNELS.value)
    options = operation.options(shape[1])
    if operation.forms:
        options["implementation"] = _IMPLEMENTATION.value
    elif _IMPLEMENTATION.value != "auto":
        raise InputError(f"{_OPERATION.value} has one form: leave --implementation out")
    shapes = operation.shapes(*shape)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    arrays = [jax.random.normal(*pair) for pair in zip(keys, shapes, strict=True)]

    forward = functools.partial(operation.function, **options)

    def loss(*arrays):
        return jnp.sum(jnp.square(forward(*arrays)))

    gradient = jax.value_and_grad(loss, argnums=tuple(range(len(arrays))))
    function = gradient if _BACKWARD.value else forward
    compiled = jax.jit(function).lower(*arrays).compile()
    seconds, peak = measure(lambda: compiled(*arrays))
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
