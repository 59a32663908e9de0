"""The training loop."""

import contextlib
import functools
import json
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from nonlocal_jax import convert, distributed
from nonlocal_jax._files import PathLike, as_path, make_directory, write_file
from nonlocal_jax.data import Dataset, cached, fingerprint, train_batches
from nonlocal_jax.data.source import check_source
from nonlocal_jax.errors import InputError
from nonlocal_jax.sharding import Shardings, make_shardings, process_rows, to_global
from nonlocal_jax.tasks import Task
from nonlocal_jax.train._lock import locked
from nonlocal_jax.train._memory import memory_errors
from nonlocal_jax.train._next_batch import NextBatch
from nonlocal_jax.train._observed_step import ObservedStep
from nonlocal_jax.train._shutdown import ShutdownRequest
from nonlocal_jax.train._stall import StallReport
from nonlocal_jax.train.checkpoint import Checkpoints
from nonlocal_jax.train.experiment import Experiment, create_experiment
from nonlocal_jax.train.log import Monitor, RunLog
from nonlocal_jax.train.precise_batch_norm import precise_batch_norm
from nonlocal_jax.train.state import TrainState, abstract_state, create_state
from nonlocal_jax.train.step import make_train_step

Evaluate = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Result(NamedTuple):
    """How a run ended.

    Attributes:
      state: The last state. It has been saved, unless its step is 0.
      metrics: The last value of every metric, such as "train/loss".
      signal: The signal that stopped the run before its last step or its last evaluation, or None.
    """

    state: TrainState
    metrics: dict[str, Any]
    signal: signal.Signals | None


def _prepare(
    task: Task, config: ConfigDict, example: Mapping[str, Any], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    return task.prepare(example, config, rng)


def _headline(experiment: Experiment, state: TrainState, devices: int) -> str:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    line = f"{experiment.config.name}: {parameters:,} parameters, batch {experiment.batch_size}"
    line += f" on {devices} x {jax.devices()[0].device_kind}"
    if step := int(state.step):
        line += f", from step {step} of {experiment.config.steps}"
    return line


def train(
    config: ConfigDict,
    workdir: PathLike,
    source: Sequence[Mapping[str, Any]],
    *,
    evaluate: Evaluate | None = None,
    init: PathLike | None = None,
    reinit_head: bool = False,
    new_blocks: bool = False,
    allow_non_finite: bool = False,
    shardings: Shardings | None = None,
    dtype: jax.typing.DTypeLike = "float32",
    stall_timeout: float | None = None,
    profile: tuple[int, int] | None = None,
) -> Result:
    """Trains an experiment, or resumes it if ``workdir`` has a checkpoint.

    A run that is killed and resumed any number of times ends with the same parameters, bit for bit,
    as an uninterrupted run on the same devices: the state, the data and the random numbers are
    functions of the seed and the step. After SIGTERM, SIGHUP or Ctrl-C, the function finishes the
    current step, saves the state and returns. An evaluation is interrupted, and runs again when the
    run is resumed. So are the statistics of ``train.precise_batch_norm``. If they are those of the
    last checkpoint, the resumed run repeats the last step.

    It writes ``config.json``, ``checkpoints/STEP``, ``metrics.jsonl`` and ``curves.png`` to
    ``workdir``. Step n is the state after n updates. With ``train.precise_batch_norm``, evaluations
    and the last checkpoint have the statistics of ``precise_batch_norm``. Training goes on with the
    running ones.

    Several processes call it with the same arguments. They check that before the first step.
    SIGTERM, SIGHUP or Ctrl-C in one of them stops all of them. An evaluation is interrupted only
    if it comes from ``Task.evaluator``. Further SIGTERMs have no effect.

    Args:
      config: Config of the experiment.
      workdir: Directory of the run, on a disk or in a bucket ("gs://bucket/run"). It is locked
        during the run.
      source: Random access to the training examples, see ``Task.open_source``. If it has a
        ``dataset``, a ``nonlocal_jax.data.Dataset``, the checkpoints contain its classes. If
        ``config.data.cache`` is a directory, the examples are decoded once and read from there, see
        ``nonlocal_jax.data.cached``. With ``config.data.workers``, it must be picklable.
      evaluate: Function from the variables to a dict of metrics. The variables are sharded like the
        state. Metrics of type float are logged. The function is called every
        ``train.evaluate_every`` steps and after the last step.
      init: Checkpoint to start from, see ``nonlocal_jax.convert.load``. The optimizer state is
        initialized and the step is 0. A run that is resumed does not read it, and refuses another
        one than it started from.
      reinit_head: Whether to initialize the classifiers instead of loading them from ``init``, for
        data with other classes. ``config.seed`` is their seed.
      new_blocks: Whether to initialize the blocks instead of loading them from ``init``, such as
        for the checkpoint of a network without blocks.
      allow_non_finite: Whether to accept values of ``init`` that are NaN or infinite.
      shardings: How the state and the batch are sharded. Default: as ``config.mesh`` says, see
        ``sharding.make_shardings``.
      dtype: Type of the parameters and statistics. float64 is for exact comparisons, and needs
        ``jax_enable_x64``.
      stall_timeout: If a step takes more seconds than this, the stacks of all threads are printed,
        once. The first step, which compiles, does not count. Default, and 0: no report.
      profile: The first and the last of the steps that process 0 traces, into ``workdir/profile``.
        If the trace cannot be written in the end, there is a warning.

    Raises:
      InputError: The config or ``dtype`` does not fit the devices, the checkpoint, the classes of
        the source or the run in ``workdir``, or ``reinit_head``, ``new_blocks`` or
        ``allow_non_finite`` is set without ``init``. Also if another run uses ``workdir`` or a
        signal ends the wait for its end, if the memory or the disk is full, or if the processes
        have different configs, data, versions or work directories.
      NonFiniteError: The loss or the parameters are not finite. The message names the step. The
        checkpoints before it are kept.
    """
    for option, is_set in (
        ("reinit_head", reinit_head),
        ("new_blocks", new_blocks),
        ("allow_non_finite", allow_non_finite),
    ):
        if is_set and init is None:
            raise InputError(
                f"{option} is set, but there is no checkpoint to start from; add --init=PATH "
                f"(init), or leave out --{option.replace('_', '-')}"
            )
    if not jax.numpy.issubdtype(dtype, np.floating):
        raise InputError(f"dtype is {np.dtype(dtype)}; use a floating-point type")
    if np.dtype(dtype) == np.float64 and not jax.config.jax_enable_x64:
        raise InputError(
            "dtype is float64, and JAX's 64-bit mode is off; call "
            "jax.config.update('jax_enable_x64', True) before the first computation"
        )
    experiment = create_experiment(config)
    task, batch_size = experiment.task, experiment.batch_size
    shardings = make_shardings(config.mesh) if shardings is None else shardings
    experiment.check_batch(shardings)
    if profile is not None and not 1 <= profile[0] <= profile[1] <= config.steps:
        raise InputError(
            f"--profile={profile[0]}:{profile[1]} (profile) does not name steps of the run; use "
            f"FIRST:LAST from 1 to {config.steps}"
        )
    check_source(source)
    if batch_size > len(source):
        raise InputError(
            f"data.batch_size={batch_size} is larger than the number of training examples; use at "
            f"most {len(source)}"
        )
    workdir = as_path(workdir)
    # Configs of other projects may lack these two fields.
    workers, cache = config.data.get("workers", 0), config.data.get("cache")
    with contextlib.ExitStack() as stack:
        shutdown = stack.enter_context(ShutdownRequest())  # until the last save has ended

        distributed.gather(lambda: str(make_directory(workdir)))
        check_lock = stack.enter_context(locked(workdir, shutdown.requested))
        distributed.check_shared(workdir)
        distributed.from_first(lambda: profile and str(make_directory(workdir / "profile")))
        run = distributed.agree(
            lambda: {
                "config": json.loads(config.to_json()),
                "data": fingerprint(source),
                "init": None if init is None else str(init),
                "reinit_head": reinit_head,
                "new_blocks": new_blocks,
                "dtype": str(np.dtype(dtype)),
            }
        )
        if cache is not None:
            # A run that is stopped here ends below, before the first step.
            source = shutdown.interrupt(lambda: cached(source, cache)) or source
            check_lock()
        dataset = getattr(source, "dataset", None)
        # The attribute of this name in sources of other projects is something else.
        classes = dataset.to_json() if isinstance(dataset, Dataset) else None
        checkpoints = stack.enter_context(Checkpoints(workdir, config, run["data"], classes, init))
        stack.enter_context(memory_errors(config))

        def last_saved() -> TrainState:
            state = checkpoints.restore(abstract_state(experiment, shardings, dtype))
            if state is not None:
                return state
            variables = None
            if init is not None:
                options = {
                    "reinit_head": reinit_head,
                    "new_blocks": new_blocks,
                    "allow_non_finite": allow_non_finite,
                }
                variables = convert.load(init, config.model, **options, seed=config.seed)
            return create_state(experiment, shardings, variables, dtype)

        state = last_saved()
        step = int(state.step)
        headline = task.headline if isinstance(task.headline, str) else task.headline(config)
        log = RunLog(workdir, step, headline, check_lock)
        stack.callback(log.close)
        if jax.process_index() == 0:
            write_file(workdir / "config.json", config.to_json(indent=2) + "\n")
        log.say(_headline(experiment, state, shardings.mesh.size))
        if (warmup := config.schedule.warmup_steps) >= config.steps:
            log.say(
                f"warning: the run ends in the warm-up of {warmup} steps, before the learning rate "
                "reaches optimizer.learning_rate; set schedule.warmup_steps to less than "
                f"{config.steps} steps"
            )

        monitor = Monitor(
            log, steps=config.steps, log_every=config.train.log_every, batch_size=batch_size
        )
        batches_from = functools.partial(
            train_batches,
            source,
            functools.partial(_prepare, task, config),  # can be pickled, for workers
            batch_size=batch_size,
            seed=config.seed,
            rows=process_rows(shardings, batch_size),
            workers=workers,
        )
        precise = precise_batch_norm(experiment, shardings, batches_from)
        is_precise = config.train.get("precise_batch_norm", 0) > 0

        def is_due(every: int) -> bool:
            return step % every == 0 or step == config.steps

        def evaluate_if_due() -> None:
            due = evaluate is not None and step > 0 and is_due(config.train.evaluate_every)
            if due and not log.was_evaluated(step):
                monitor.flush()
                # The last state is precise already.
                metrics = shutdown.interrupt(
                    lambda: evaluate((state if step == config.steps else precise(state)).variables)
                )
                if metrics is not None:
                    scalars = {k: v for k, v in metrics.items() if isinstance(v, float)}
                    log.add_evaluation(step, scalars)
                    log.draw()

        def save() -> None:
            monitor.flush()
            check_lock()
            checkpoints.save(state, log.scores())

        # If the run was stopped or killed during an evaluation, that evaluation runs now.
        evaluate_if_due()
        if step < config.steps:
            log.say("compiling the train step; this takes minutes for a large network")
        metrics = {"loss": None}
        with (
            NextBatch(batches_from(step=step)) as next_batch,
            StallReport(stall_timeout) as stall,
            ObservedStep(
                make_train_step(experiment, shardings), step, log.say, profile, workdir / "profile"
            ) as train_step,
        ):
            while step < config.steps and not shutdown.requested():
                taken = next_batch.take(metrics["loss"], lambda: shutdown.signal is not None)
                if taken is None:
                    break
                batch, waited = taken
                # The devices get it while they compute the steps before it.
                state, metrics = train_step(state, to_global(batch, shardings))
                step += 1
                monitor.add(step, metrics, waited)
                stall.pause()
                if step == config.steps and is_precise:
                    monitor.flush()
                    state = shutdown.interrupt(functools.partial(precise, state))
                    if state is None:
                        # The last state needs them, so a resumed run repeats the last step.
                        state = last_saved()
                        step = int(state.step)
                        break
                check_lock()
                checkpoints.check()
                # The state before the last step is saved for a stop during the final statistics.
                if is_due(config.train.checkpoint_every) or (
                    is_precise and step == config.steps - 1
                ):
                    save()
                evaluate_if_due()
                stall.start_step()
        save()
        log.draw()
    is_done = step == config.steps and (evaluate is None or log.was_evaluated(step))
    return Result(state, log.latest(), None if is_done else shutdown.signal)
