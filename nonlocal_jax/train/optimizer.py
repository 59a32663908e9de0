"""Optimiser and learning rate of an experiment."""

from collections.abc import Callable

import optax
from ml_collections import ConfigDict

from nonlocal_jax.errors import InputError


def _sgd(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    # L2 as PyTorch and Caffe2 have it: the decay joins the gradient before the momentum, and no
    # parameter is spared, batch norms and biases included.
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(schedule, momentum=config.momentum),
    )


def _adamw(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(schedule, weight_decay=config.weight_decay)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": _sgd,
    "adamw": _adamw,
}


def create_optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser of ``config.optimizer`` under the learning rate of ``config.schedule``.

      lr(t) = (lr - end) (1 - t / steps)^power + end,  t = 0, 1, ... steps - 1

    The poly schedule of mmsegmentation 0.x: the last step is still above ``end``. "sgd" is
    v <- momentum v + (g + weight_decay w), w <- w - lr v on every parameter.

    Args:
      config: an experiment's config; reads ``steps``, ``optimizer`` and ``schedule``.

    Returns:
      The gradient transformation and the schedule, a function of t.

    Raises:
      InputError: the optimiser is unknown.
    """
    options = config.optimizer
    if options.name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise InputError(f"optimizer.name must be one of {known}; got {options.name!r}")
    schedule = optax.polynomial_schedule(
        init_value=options.learning_rate,
        end_value=config.schedule.end,
        power=config.schedule.power,
        transition_steps=config.steps,
    )
    return OPTIMIZERS[options.name](options, schedule), schedule
