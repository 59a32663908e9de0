"""Measures the memory of an operation, or of the forward pass of a network, in this process.

    python -m experiments.benchmark.memory operation --operation=softmax_attention --positions=9409
    python -m experiments.benchmark.memory forward --size=1024x2048 \\
        --config=configs/segmentation.py:nonlocal_r50-d8_512x1024_40k_cityscapes

    python -m experiments.benchmark.memory operation --positions=100352 --channels=256 \\
        --dtype=bfloat16 --topology=v5e:4x4 --context=16 --implementation=ring

The command prints one JSON object. ``peak_mib`` is the rise of resident memory while the compiled
program runs for the first time, without its inputs and parameters. With --topology the program is
only compiled: ``chip_mib`` is the memory that the compiler allocates on a TPU chip if --context
chips share the positions.
"""

import functools
import json
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from absl import flags

from experiments import cli
from experiments.benchmark._cases import DTYPES, OPERATIONS
from experiments.benchmark._measure import measure_call
from nonlocal_jax import create_model
from nonlocal_jax.errors import InputError
from nonlocal_jax.sharding import CONTEXT, make_mesh
from nonlocal_jax.topology import compiled_report, topology_devices, use_tpu_compiler

_CONFIG = cli.define_config(required=False)
_OPERATION = flags.DEFINE_enum(
    "operation", "softmax_attention", list(OPERATIONS), "Function of nonlocal_jax.ops."
)
_POSITIONS = flags.DEFINE_integer("positions", 9409, "Number of positions N.", lower_bound=1)
_CHANNELS = flags.DEFINE_integer("channels", 64, "Number of channels C.", lower_bound=1)
_IMPLEMENTATION = flags.DEFINE_string("implementation", "auto", "Implementation of the operation.")
_BACKWARD = flags.DEFINE_boolean("backward", True, "Whether to compute the gradient, too.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPES, "Type of the arguments.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPU topology to compile for, such as v5e:4x4.")
_CONTEXT = flags.DEFINE_integer(
    "context", 1, "Number of chips that share the positions.", lower_bound=1
)
_SIZE = flags.DEFINE_string("size", "1024x2048", "Size of the image, HEIGHTxWIDTH.")


def _operation() -> dict[str, object]:
    operation = OPERATIONS[_OPERATION.value]
    shape = (_POSITIONS.value, _CHANNELS.value)
    options = operation.options(shape[1])
    if operation.pairwise:
        options["implementation"] = _IMPLEMENTATION.value
    elif _IMPLEMENTATION.value != "auto":
        raise InputError(
            f"--implementation={_IMPLEMENTATION.value!r} is not supported for {_OPERATION.value}, "
            "which has one implementation; leave it out"
        )
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
        raise InputError(f"--context={_CONTEXT.value} needs --topology; add --topology=v5e:4x4")
    keys = jax.random.split(jax.random.key(0), len(shapes))
    arrays = [jax.random.normal(*pair, _DTYPE.value) for pair in zip(keys, shapes, strict=True)]
    compiled = _program(forward, len(shapes)).lower(*arrays).compile()
    seconds, peak = measure_call(lambda: compiled(*arrays))
    return {**described, "seconds": round(seconds, 3), "peak_mib": round(peak, 1)}


def _program(forward: Callable[..., jax.Array], arguments: int) -> jax.stages.Wrapped:
    def loss(*arrays):
        return jnp.sum(jnp.square(forward(*arrays).astype(jnp.float32)))

    gradient = jax.value_and_grad(loss, argnums=tuple(range(arguments)))
    return jax.jit(gradient if _BACKWARD.value else forward)


def _compile(
    forward: Callable[..., jax.Array], shapes: Sequence[tuple[int, ...]]
) -> dict[str, object]:
    """Compiles an operation whose positions are split over the mesh axis "context"."""
    use_tpu_compiler()
    devices = topology_devices(_TOPOLOGY.value)
    if _CONTEXT.value > len(devices):
        raise InputError(
            f"--context={_CONTEXT.value} exceeds the {len(devices)} devices of {_TOPOLOGY.value}; "
            f"use {len(devices)} or fewer"
        )
    if _POSITIONS.value % _CONTEXT.value:
        raise InputError(
            f"--context={_CONTEXT.value} does not divide --positions={_POSITIONS.value}; "
            f"use --positions={-(-_POSITIONS.value // _CONTEXT.value) * _CONTEXT.value}"
        )
    mesh = make_mesh(devices[: _CONTEXT.value], context=_CONTEXT.value)
    split = jax.P(CONTEXT)
    if _CONTEXT.value > 1:
        forward = jax.shard_map(
            functools.partial(forward, axis_name=CONTEXT),
            mesh=mesh,
            in_specs=(split,) * len(shapes),
            out_specs=split,
            check_vma=False,  # Pallas kernels do not support it
        )
    sharding = jax.NamedSharding(mesh, split)
    arrays = [jax.ShapeDtypeStruct(s, _DTYPE.value, sharding=sharding) for s in shapes]
    report = compiled_report(_program(forward, len(shapes)).lower(*arrays).compile())
    kinds = ("arguments", "outputs", "temporaries")
    return {
        "topology": _TOPOLOGY.value,
        "context": _CONTEXT.value,
        "chip_mib": {kind: round(report["bytes_per_chip"][kind] / 2**20, 1) for kind in kinds},
    }


def _forward() -> dict[str, object]:
    if _CONFIG.value is None:
        raise InputError("forward needs a network; add --config=configs/FILE.py:NAME")
    try:
        height, width = (int(n) for n in _SIZE.value.split("x"))
    except ValueError:
        raise InputError(
            f"--size={_SIZE.value} is not HEIGHTxWIDTH; use, for example, 1024x2048"
        ) from None
    model = create_model(_CONFIG.value.model)
    image = jax.random.normal(jax.random.key(0), (1, height, width, 3))
    variables = jax.jit(model.init)(jax.random.key(1), image[:, :65, :65])
    compiled = jax.jit(model.apply).lower(variables, image).compile()
    seconds, peak = measure_call(lambda: compiled(variables, image))
    return {
        "experiment": _CONFIG.value.name,
        "size": [height, width],
        "seconds": round(seconds, 1),
        "peak_mib": round(peak, 1),
    }


def main(arguments: list[str]) -> None:
    commands = {"operation": _operation, "forward": _forward}
    if len(arguments) != 2 or arguments[1] not in commands:
        given = " ".join(arguments[1:])
        raise InputError(f"cannot measure {given!r}; use {' or '.join(commands)}")
    print(json.dumps(commands[arguments[1]]()))


if __name__ == "__main__":
    cli.run(main, positional=True)
