"""The training run: everything in the order it happens."""

import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from nonlocal_jax import convert
from nonlocal_jax._files import PathLike, make_directory, write_file
from nonlocal_jax.data import fingerprint, train_batches
from nonlocal_jax.errors import InputError
from nonlocal_jax.models import create_model
from nonlocal_jax.sharding import check_batch_size, data_shard, make_mesh, to_global
from nonlocal_jax.train.checkpoint import Checkpoints
from nonlocal_jax.train.log import Monitor, RunLog
from nonlocal_jax.train.optimizer import create_optimizer
from nonlocal_jax.train.shutdown import ShutdownRequest
from nonlocal_jax.train.state import TrainState, abstract_state, create_state
from nonlocal_jax.train.step import make_train_step

Evaluate = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Result(NamedTuple):
    """How a run ended.

    Attributes:
      state: the last state; it is saved.
      metrics: the last value of every metric.
      signal: what ended the run before its last step, or None.
    """

    state: TrainState
    metrics: dict[str, Any]
    signal: signal.Signals | None


def _check_numbers(config: ConfigDict) -> None:
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed must be from 0 to 2**32 - 1; got {config.seed}")
    counts = {"steps": config.steps, "data.batch_size": config.data.batch_size}
    counts |= {f"train.{key}": value for key, value in config.train.items()}
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1; got {value}")


def _headline(config: ConfigDict, state: TrainState, devices: int) -> str:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    line = f"{config.name}: {parameters:,} parameters, batch {config.data.batch_size}"
    line += f" on {devices} x {jax.devices()[0].device_kind}"
    if step := int(state.step):
        line += f", from step {step} of {config.steps}"
    return line


def train(
    config: ConfigDict,
    workdir: PathLike,
    source: Sequence[Mapping[str, Any]],
    *,
    evaluate: Evaluate | None = None,
    init: PathLike | None = None,
) -> Result:
    """Trains an experiment, or goes on with it where ``workdir`` holds a checkpoint.

    The parameters after any number of kills and restarts are bit for bit those of an undisturbed
    run on the same machine: state, data and randomness are functions of the seed and the step.
    SIGTERM or Ctrl-C saves after the current step and returns.

    ``workdir`` receives ``config.json``, ``checkpoints/STEP``, ``metrics.jsonl`` and
    ``curves.png``. Steps are counted in updates done: step 1 is the state after the first one.

    Args:
      config: of the experiment.
      workdir: directory of this run alone.
      source: the training images, see ``nonlocal_jax.data.load_source``.
      evaluate: maps ``{"params", "batch_stats"}``, as numpy arrays, to metrics, ``miou`` among
        them, of which the floats are logged; called every ``train.evaluate_every`` steps and after
        the last one.
      init: checkpoint to start from, see ``convert.load``; the optimizer and the step start anew.
        Once the run has a checkpoint of its own, that one counts.

    Raises:
      InputError: the config does not fit the devices, the checkpoint or the run in ``workdir``.
      NonFiniteError: the loss or the parameters are not finite; names the step. The last good
        state stays saved.
    """
    _check_numbers(config)
    mesh = make_mesh(context=config.mesh.context)
    check_batch_size(config.data.batch_size, mesh)
    model = create_model(config.model)
    tx, _ = create_optimizer(config)
    options = {"mesh": mesh, "seed": config.seed, "image_size": config.data.crop}
    target = abstract_state(model, tx, **options)
    workdir = make_directory(workdir)

    with (
        Checkpoints(workdir, config, fingerprint(source)) as checkpoints,
        ShutdownRequest() as shutdown,
    ):
        state = checkpoints.restore(target)
        if state is None:
            variables = None if init is None else convert.load(init, config.model)
            state = create_state(model, tx, variables, **options)
            # So that a run has a good state even if it never reaches its first checkpoint.
            checkpoints.save(state)
        step = int(state.step)
        log = RunLog(workdir, step)
        if jax.process_index() == 0:
            write_file(workdir / "config.json", config.to_json(indent=2) + "\n")
        log.say(_headline(config, state, mesh.size))

        monitor = Monitor(
            log,
            steps=config.steps,
            log_every=config.train.log_every,
            batch_size=config.data.batch_size,
        )
        train_step = make_train_step(model, config, mesh)
        shard, shards = data_shard(mesh)
        batches = train_batches(
            source,
            config.data,
            seed=config.seed,
            step=step,
            num_classes=config.model.num_classes,
            shard_index=shard,
            shard_count=shards,
        )

        def is_due(every: int) -> bool:
            return step % every == 0 or step == config.steps

        def evaluate_if_due() -> None:
            due = evaluate is not None and step > 0 and is_due(config.train.evaluate_every)
            if due and not log.was_evaluated(step):
                monitor.flush()
                metrics = evaluate(jax.device_get(state.variables))
                scalars = {k: v for k, v in metrics.items() if isinstance(v, float)}
                log.add_evaluation(step, scalars)
                log.draw()

        # A run that was killed while it evaluated does so now.
        evaluate_if_due()
        while step < config.steps and not shutdown.requested(step):
            state, metrics = train_step(state, to_global(next(batches), mesh))
            step += 1
            monitor.add(step, metrics)
            if is_due(config.train.checkpoint_every):
                monitor.flush()
                checkpoints.save(state)
            if shutdown.signal is None:
                evaluate_if_due()
        monitor.flush()
        checkpoints.save(state)
        log.draw()
    return Result(state, log.latest(), shutdown.signal)
