"""What an operation or a whole forward pass needs in memory, measured in this fresh process.

    python -m experiments.benchmark.memory operation --operation=softmax_attention --positions=9409
    python -m experiments.benchmark.memory forward --size=1024x2048 \\
        --config=configs/segmentation.py:nonlocal_r50-d8_512x1024_40k_cityscapes

    python -m experiments.benchmark.memory operation --positions=100352 --channels=256 \\
        --dtype=bfloat16 --topology=v5e:4x4 --context=16 --implementation=ring

Prints one JSON object. ``peak_mib`` is what the process' resident memory rose by while the compiled
program ran, its inputs and parameters not counted; one run after one compilation. With a topology
nothing runs: ``chip_mib`` is what the compiler allocates on a TPU chip, ``context`` of which share
the positions.
"""

import functools
import json
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from absl import flags

from experiments import cli
from experiments.benchmark.measure import measure
from experiments.benchmark.operations import OPERATIONS
from nonlocal_jax import create_model
from nonlocal_jax.errors import InputError
from nonlocal_jax.sharding import CONTEXT, make_mesh, topology_devices

_CONFIG = cli.define_config(required=False)
_POSITIONS = flags.DEFINE_integer("positions", 9409, "Number of positions N.", lower_bound=1)
_CHANNELS = flags.DEFINE_integer("channels", 64, "Number of channels C.", lower_bound=1)
_IMPLEMENTATION = flags.DEFINE_string("implementation", "auto", "Form of the operation.")
_BACKWARD = flags.DEFINE_boolean("backward", True, "Take the gradient of the operation too.")
_OPERATION = flags.DEFINE_enum(
    "operation", "softmax_attention", list(OPERATIONS), "Function of nonlocal_jax.ops."
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of the arguments.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPU to compile an operation for: v5e:4x4.")
_CONTEXT = flags.DEFINE_integer("context", 1, "Chips that share the positions.", lower_bound=1)
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
    forward = functools.partial(operation.function, **options)
    described = {
        "operation": _OPERATION.value,
        "positions": shape[0],
        "channels": shape[1],
        "dtype": _DTYPE.value,
        "implementation": _IMPLEMENTATION.value,
        "backward": _BACKWARD.value,
    }
    if _TOPOLOGY.value is not None:
        return {**described, **_compile(forward, shapes)}
    if _CONTEXT.value > 1:
        raise InputError("--context needs a --topology to compile for")
    keys = jax.random.split(jax.random.key(0), len(shapes))
    arrays = [jax.random.normal(*pair, _DTYPE.value) for pair in zip(keys, shapes, strict=True)]
    compiled = _program(forward, len(shapes)).lower(*arrays).compile()
    seconds, peak = measure(lambda: compiled(*arrays))
    return {**described, "seconds": round(seconds, 3), "peak_mib": round(peak, 1)}


def _program(forward: Callable[..., jax.Array], arguments: int) -> jax.stages.Wrapped:
    def loss(*arrays):
        return jnp.sum(jnp.square(forward(*arrays).astype(jnp.float32)))

    gradient = jax.value_and_grad(loss, argnums=tuple(range(arguments)))
    return jax.jit(gradient if _BACKWARD.value else forward)


def _compile(
    forward: Callable[..., jax.Array], shapes: Sequence[tuple[int, ...]]
) -> dict[str, object]:
    """What an operation needs of a TPU chip, its positions split over the mesh's "context"."""
    cli.use_tpu_compiler()
    devices = topology_devices(_TOPOLOGY.value)
    if _CONTEXT.value > len(devices):
        raise InputError(f"--context must be at most the {len(devices)} of {_TOPOLOGY.value}")
    if _POSITIONS.value % _CONTEXT.value:
        raise InputError(f"--positions must divide by the {_CONTEXT.value} chips of --context")
    mesh = make_mesh(devices[: _CONTEXT.value], context=_CONTEXT.value)
    split = jax.P(CONTEXT)
    if _CONTEXT.value > 1:
        forward = jax.shard_map(
            functools.partial(forward, axis_name=CONTEXT),
            mesh=mesh,
            in_specs=(split,) * len(shapes),
            out_specs=split,
            check_vma=False,  # kernels do not take part in it
        )
    sharding = jax.NamedSharding(mesh, split)
    arrays = [jax.ShapeDtypeStruct(s, _DTYPE.value, sharding=sharding) for s in shapes]
    memory = _program(forward, len(shapes)).lower(*arrays).compile().memory_analysis()
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    return {
        "topology": _TOPOLOGY.value,
        "context": _CONTEXT.value,
        "chip_mib": {name: round(size / 2**20, 1) for name, size in parts.items()},
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
    cli.run(main, positional=True)
