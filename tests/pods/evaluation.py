"""Evaluation of 64 images of 40 sizes, on any number of processes and devices.

``python -m tests.pods.evaluation DEVICES CONTEXT OUTPUT`` is one process.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np

from tests.helpers import child_environment, free_port

IMAGES, SIZES, MAX_PROGRAMS = 64, 40, 6


def _confusion(directory: pathlib.Path, processes: int, devices: int, context: int) -> dict:
    """Evaluates in so many processes, each with so many devices."""
    outputs = [directory / f"{processes}_{devices}_{context}_{i}.json" for i in range(processes)]
    address = f"localhost:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.pods.evaluation", *map(str, (devices, context, output))],
            env=child_environment(
                JAX_PLATFORMS="cpu",
                JAX_DISABLE_MOST_OPTIMIZATIONS="1",
                JAX_COORDINATOR_ADDRESS=address,
                JAX_NUM_PROCESSES=str(processes),
                JAX_PROCESS_ID=str(i),
            ),
        )
        for i, output in enumerate(outputs)
    ]
    assert [process.wait(timeout=1800) for process in started] == [0] * processes
    first, *others = (json.loads(output.read_text()) for output in outputs)
    for other in others:
        assert other["confusion"] == first["confusion"]
    assert first["programs"] <= MAX_PROGRAMS, first["programs"]
    return first


def scenario(directory: pathlib.Path) -> str:
    """The confusion matrix is that of the images one by one without padding, pixel for pixel."""
    layouts = (1, 1, 1), (1, 8, 1), (1, 8, 2), (2, 4, 1), (2, 4, 2)
    results = [_confusion(directory, *layout) for layout in layouts]
    for result in results:
        assert result["confusion"] == results[0]["confusion_without_padding"]
    programs = max(result["programs"] for result in results)
    return f"{len(layouts)} equal matrices, at most {programs} compiled programs"


SCENARIOS = {f"{IMAGES} images of {SIZES} sizes, 1 to 8 devices, 1 and 2 processes": scenario}


def _member(devices: int, context: int, output: str) -> None:
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_x64", True)
    if os.environ["JAX_NUM_PROCESSES"] != "1":
        jax.distributed.initialize()
    from nonlocal_jax.evaluation import evaluator
    from tests.evaluation import many_sizes

    config, variables = many_sizes.experiment()
    config.mesh.context = context
    source = many_sizes.examples(IMAGES, SIZES)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event)
    )
    run = evaluator(config, source)
    confusion = run(variables)["confusion"]
    programs = sum("backend_compile" in event for event in compiled)
    result = {"confusion": confusion.tolist(), "programs": programs}
    if devices == 1:
        without_padding = many_sizes.confusion_without_padding(config, variables, source)
        result["confusion_without_padding"] = np.asarray(without_padding).tolist()
    pathlib.Path(output).write_text(json.dumps(result))


if __name__ == "__main__":
    _member(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
