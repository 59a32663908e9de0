"""Evaluation of images of many sizes on any number of processes and devices, and its memory.

``python -m tests.pods.evaluation evaluate DEVICES CONTEXT TOGETHER OUTPUT`` is one process.
"""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tests.helpers import child_environment, free_port

IMAGES, SIZES, MAX_PROGRAMS = 64, 40, 6
# (processes, devices of each, devices that share an image, whether processes share batches)
_LAYOUTS = (1, 1, 1, 0), (1, 8, 1, 0), (1, 8, 2, 0), (2, 4, 1, 0), (2, 4, 2, 0), (2, 4, 2, 1)


def _start(
    name: str, *arguments: Any, output: pathlib.Path, **environment: str
) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.pods.evaluation", name, *map(str, arguments)]
    with _log(output).open("w") as log:
        return subprocess.Popen(
            [*command, str(output)], env=child_environment(**environment), stdout=log, stderr=log
        )


def _result(process: subprocess.Popen, output: pathlib.Path) -> Any:
    assert process.wait(timeout=1800) == 0, _log(output).read_text()
    return json.loads(output.read_text())


def _log(output: pathlib.Path) -> pathlib.Path:
    return output.with_suffix(".log")


def _evaluate(directory: pathlib.Path, processes: int, *layout: int) -> Mapping[str, Any]:
    """Evaluates in so many processes. Returns what each of them found, which is the same."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    outputs = [directory / f"{processes}{layout}{i}.json" for i in range(processes)]
    started = [
        _start("evaluate", *layout, output=output, JAX_PROCESS_ID=str(i), **environment)
        for i, output in enumerate(outputs)
    ]
    first, *others = map(_result, started, outputs)
    assert all(other["confusion"] == first["confusion"] for other in others)
    return first


def many_sizes(directory: pathlib.Path) -> str:
    """The confusion matrix is that of the images one by one without padding, pixel for pixel."""
    first, *others = (_evaluate(directory, *layout) for layout in _LAYOUTS)
    for result in (first, *others):
        assert result["confusion"] == first["confusion_without_padding"]
        assert result["programs"] <= MAX_PROGRAMS, result["programs"]
    programs = max(result["programs"] for result in (first, *others))
    return f"{len(_LAYOUTS)} equal matrices, at most {programs} compiled programs"


def memory(directory: pathlib.Path) -> str:
    """Four chips that share an image need at most 0.4 of the memory of one, without parameters."""
    output = directory / "memory.json"
    one, four = _result(_start("memory", output=output), output)
    assert four <= 0.4 * one, (one, four)
    return f"{one / 2**20:.0f} MiB on one chip, {four / 2**20:.0f} MiB on each of four"


SCENARIOS = {
    f"{IMAGES} images of {SIZES} sizes, 1 to 8 devices, 1 and 2 processes": many_sizes,
    "inference for 512x1024 pixels on v5e:2x4, narrow NL network": memory,
}


def _evaluate_here(devices: int, context: int, together: int) -> Mapping[str, Any]:
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_x64", True)
    number = int(os.environ["JAX_NUM_PROCESSES"])
    if number > 1:
        address = os.environ["JAX_COORDINATOR_ADDRESS"]
        jax.distributed.initialize(address, number, int(os.environ["JAX_PROCESS_ID"]))
    from nonlocal_jax.evaluation import evaluator
    from nonlocal_jax.sharding import Shardings, make_mesh
    from tests.evaluation import many_sizes

    config, variables = many_sizes.experiment()
    config.mesh.context = context
    source = many_sizes.examples(IMAGES, SIZES)
    shardings = Shardings(make_mesh(context=context)) if together else None
    run = evaluator(config, source, shardings=shardings)
    compiled = []

    def listen(event: str, _: float, *, fun_name: str = "", **__: Any) -> None:
        if "backend_compile" in event:
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    confusion = run(variables)["confusion"]
    # JAX compiles small programs of its own to exchange arrays between processes.
    ours = [name for name in compiled if "_network" in name or "_confusion" in name]
    programs = len(compiled if number == 1 else ours)
    result = {"confusion": confusion.tolist(), "programs": programs}
    if devices == 1:
        without_padding = many_sizes.confusion_without_padding(config, variables, source)
        result["confusion_without_padding"] = np.asarray(without_padding).tolist()
    return result


def _memory_here() -> list[int]:
    from nonlocal_jax.topology import compiled_report, topology_devices, use_tpu_compiler

    use_tpu_compiler()
    from configs import segmentation
    from nonlocal_jax.evaluation import Predictor
    from nonlocal_jax.sharding import Shardings, make_mesh

    config = segmentation.get_config("nonlocal_r50-d8_512x1024_40k_cityscapes")
    config.model.update(stage_sizes=(1, 1, 1, 1), width=16, head_channels=128, dtype="bfloat16")
    needed = []
    for context in (1, 4):
        shardings = Shardings(make_mesh(topology_devices("v5e:2x4"), context=context))
        compiled = Predictor(config, shardings=shardings).trace((512, 1024)).lower().compile()
        variables = jax.tree.leaves(compiled.in_avals[0][0])
        parameters = sum(x.size * x.dtype.itemsize for x in variables)
        needed.append(compiled_report(compiled)["bytes_per_chip"]["peak"] - parameters)
    return needed


if __name__ == "__main__":
    _, name, *arguments, output = sys.argv
    function = {"evaluate": _evaluate_here, "memory": _memory_here}[name]
    pathlib.Path(output).write_text(json.dumps(function(*map(int, arguments))))
