"""Ahead-of-time compilation of a step for TPUs that this machine does not have."""

import importlib.metadata
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from nonlocal_jax._files import write_file
from nonlocal_jax.errors import first_line, is_out_of_memory
from nonlocal_jax.evaluation import Predictor
from nonlocal_jax.hlo import Program
from nonlocal_jax.models.count import count_jaxpr, kernel_passes
from nonlocal_jax.sharding import Shardings, make_shardings, split_positions, use_mesh
from nonlocal_jax.topology import Chip, chip_of, compiled_report, topology_devices
from nonlocal_jax.traffic import collectives, traffic
from nonlocal_jax.train._necessary import necessary_traffic
from nonlocal_jax.train.experiment import Experiment, create_experiment
from nonlocal_jax.train.state import TrainState, abstract_state
from nonlocal_jax.train.step import make_train_step


def compile_train_step(
    config: ConfigDict, topology: str, text: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Compiles the train step of an experiment for a TPU topology, and reports what it costs.

    The step, the mesh and the shardings are those of ``train``. No TPU is needed, only the
    libtpu library. Call ``nonlocal_jax.topology.use_tpu_compiler`` first.

    Args:
      config: Config of the experiment. ``config.data.batch_size`` is the global batch size.
      topology: Generation and grid of chips, such as "v5e:2x4". See ``topology_devices``.
      text: File that the compiled program is written to, or None.

    Returns:
      Plain values for JSON, see ``docs/devices.md``. If the step does not fit in the memory of the
      chips, ``fits`` is False, and there are an error and advice instead of the costs.

    Raises:
      InputError: The topology does not exist, or the batch cannot be split evenly over its chips.
    """
    experiment = create_experiment(config)
    devices, shardings = _devices(config, topology)
    experiment.check_batch(shardings)
    state = abstract_state(experiment, shardings)
    batch = _sharded(experiment.task.batch(config), shardings)
    traced = make_train_step(experiment, shardings).trace(state, batch)
    return _report(config, topology, devices, _Step("train", traced, state, batch), text)


def compile_evaluation(
    config: ConfigDict, topology: str, text: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Compiles the inference of an experiment for a TPU topology, see ``compile_train_step``.

    There is one input for each group of ``mesh.context`` chips. For segmentation, it is the network
    of ``nonlocal_jax.evaluation.Predictor`` on images, or windows, of the size of the published
    protocol. Its logits have the stride of the network, and are resized by other programs.
    """
    experiment = create_experiment(config)
    devices, shardings = _devices(config, topology)
    state = abstract_state(experiment, shardings)
    if config.task == "segmentation":
        traced = Predictor(config, shardings=shardings).trace(_evaluation_size(config.evaluation))
        _, images, _ = traced.args_info[0]
    else:
        traced, images = _trace_model(experiment, shardings, state.variables)
    batch = _sharded({"image": images}, shardings)
    return _report(config, topology, devices, _Step("evaluate", traced, state, batch), text)


def _trace_model(
    experiment: Experiment, shardings: Shardings, variables: Mapping[str, Any]
) -> tuple[jax.stages.Traced, jax.ShapeDtypeStruct]:
    """Traces the network on inputs of the size of the training. Returns the inputs too."""
    one = experiment.example_inputs()
    images = jax.ShapeDtypeStruct(
        (shardings.batch_parts, *one.shape[1:]), one.dtype, sharding=shardings.batch
    )

    def evaluate(variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        with use_mesh(shardings.mesh):
            return experiment.model.apply(shardings.gather(variables), split_positions(images))

    return jax.jit(evaluate).trace(variables, images), images


def _devices(config: ConfigDict, topology: str) -> tuple[list[jax.Device], Shardings]:
    devices = topology_devices(topology)
    return devices, make_shardings(config.mesh, devices)


def _evaluation_size(protocol: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the (height, width) of an image, or of its windows."""
    if protocol["mode"] == "slide":
        return tuple(protocol["crop"])
    width, height = protocol["base_size"]
    return height, width


def _sharded(batch: Mapping[str, Any], shardings: Shardings) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings.batch)
        for name, leaf in batch.items()
    }


def _bytes_per_device(tree: Any) -> int:
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
    )


class _Step(NamedTuple):
    """A program, and what it is called with.

    Attributes:
      name: "train" or "evaluate".
      traced: The program.
      state: The state. The evaluation uses only its variables.
      batch: The global batch.
    """

    name: str
    traced: jax.stages.Traced
    state: TrainState
    batch: Mapping[str, jax.ShapeDtypeStruct]


def _report(
    config: ConfigDict,
    topology: str,
    devices: list[jax.Device],
    step: _Step,
    text: str | os.PathLike[str] | None,
) -> dict[str, Any]:
    chip, jaxpr = chip_of(topology), step.traced.jaxpr.jaxpr
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    places = {(getattr(d, "slice_index", 0), *d.coords) for d in devices}
    chips, cores = len(places), len(devices) // len(places)  # TPU v4 and 7x can have two cores
    batch_size = jax.tree.leaves(step.batch)[0].shape[0]
    report = {
        "experiment": config.name,
        "step": step.name,
        "topology": topology,
        "device_kind": devices[0].device_kind,
        "slices": slices,
        "hosts": len({device.process_index for device in devices}),
        "chips": chips,
        "batch_size": batch_size,
        "batch": {
            name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
            for name, leaf in step.batch.items()
        },
        "context": config.mesh.context,
        "dtype": config.model.get("dtype"),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(step.state.params)),
        "remat": config.train.get("remat", "none"),
        "versions": {"jax": jax.__version__, "libtpu": _libtpu_version()},
    }
    parts = {
        "parameters": step.state.params,
        "optimizer": step.state.opt_state,
        "batch_statistics": step.state.batch_stats,
        "batch": step.batch,
    }
    if step.name == "evaluate":
        del parts["optimizer"]
    elif step.state.ema is not None:
        parts["ema"] = step.state.ema
    parts = {name: cores * _bytes_per_device(tree) for name, tree in parts.items()}
    operations = 2 * count_jaxpr(jaxpr, "tpu")
    start = time.monotonic()
    try:
        compiled = step.traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return report | {
            "fits": False,
            "error": first_line(error),
            "advice": _advice(config, step.name, batch_size, len(devices)),
            "bytes_per_chip": {**parts, "memory": chip.memory},
            "flops_per_chip": operations / chips,
        }
    seconds = time.monotonic() - start
    hlo = compiled.as_text()
    if text is not None:
        write_file(text, hlo)
    program = Program(hlo, kernel_passes(jaxpr, "tpu"))
    measured = compiled_report(compiled, cores)
    moved = {kind: cores * size for kind, size in traffic(program).items()}
    sent = {
        name: {"calls": each["calls"], "bytes": cores * each["bytes"]}
        for name, each in collectives(program).items()
    }
    needed = necessary_traffic(
        jaxpr,
        chips,
        itemsize=2 if report["dtype"] == "bfloat16" else 4,
        state_bytes=sum(parts.get(name, 0) for name in ("parameters", "optimizer", "ema")),
        gradient_bytes=parts["parameters"] if step.name == "train" else 0,
    )
    if step.name == "evaluate":
        needed.pop("optimizer", None)
        # What is in no layer, such as the normalization of the image.
        moved["other layers"] = moved.get("other layers", 0) + moved.pop("optimizer", 0)
    roofline = _roofline(chip, operations / chips, sum(moved.values()), sent)
    return report | {
        "fits": True,
        "bytes_per_chip": {**parts, **measured["bytes_per_chip"], "memory": chip.memory},
        "flops_per_chip": operations / chips,
        "hbm_bytes_per_chip": sum(moved.values()),
        "traffic_per_chip": {
            kind: {"bytes": moved.get(kind, 0), "necessary": needed.get(kind)}
            for kind in sorted({*moved, *needed}, key=lambda kind: -moved.get(kind, 0))
        },
        "collectives_per_chip": sent,
        "bytes_accessed_per_chip": measured["bytes_accessed_per_chip"],
        "roofline": roofline,
        "throughput": _throughput(config, step.name, report, roofline["seconds"]),
        "compile_seconds": round(seconds, 1),
    }


def _roofline(
    chip: Chip, flops: float, moved: float, sent: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """The time that a step takes at least, if each part of the chip works at its peak.

    Computation, memory and communication overlap completely.
    """
    between_slices = sent.get("send", {}).get("bytes", 0)
    within = sum(each["bytes"] for name, each in sent.items() if name != "send")
    seconds = {
        "compute": flops / chip.flops,
        "memory": moved / chip.bandwidth,
        "interconnect": within / chip.interconnect,
        "network": between_slices / chip.network,
    }
    limit = max(seconds, key=seconds.get)
    return {"seconds": seconds[limit], "limited_by": limit, "seconds_of": seconds}


def _throughput(
    config: ConfigDict, step: str, report: Mapping[str, Any], seconds: float
) -> dict[str, float]:
    """What the roofline time means for a run. Reading the data, for example, is not included."""
    images = report["batch_size"] / seconds
    rates = {"images_per_second": images, "images_per_second_and_host": images / report["hosts"]}
    if step == "train":
        hours = config.steps * seconds / 3600
        rates |= {"hours": hours, "chip_hours": hours * report["chips"]}
    return rates


def _advice(config: ConfigDict, step: str, batch_size: int, devices: int) -> str:
    """What needs less memory per chip."""
    context, fsdp, changes = config.mesh.context, config.mesh.get("fsdp", 1), []
    if step == "train":
        if batch_size * context > devices:
            changes += ["fewer images per chip (--batch-size)"]
            changes += ["--config.train.accumulate=2"] if "accumulate" in config.train else []
        if config.train.get("remat", "full") != "full":
            changes += ["--config.train.remat=full"]
    if config.model.get("dtype") != "bfloat16":
        changes += ["--config.model.dtype=bfloat16"]
    if devices % (2 * context * fsdp) == 0:
        changes += [f"--config.mesh.context={2 * context}, so that more chips share an image"]
        if step == "train":
            changes += [f"--config.mesh.fsdp={2 * fsdp}, so that more chips share the state"]
    return f"use {' or '.join(changes or ['chips with more memory'])}"


def _libtpu_version() -> str:
    # libtpu may be installed in a directory that Python does not import from.
    library = pathlib.Path(os.environ.get("TPU_LIBRARY_PATH", ""))
    found = importlib.metadata.distributions(
        name="libtpu", path=[*sys.path, str(library.parent.parent)]
    )
    return next((distribution.version for distribution in found), "unknown")
