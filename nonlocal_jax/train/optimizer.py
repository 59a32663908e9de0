"""Optimizer and learning rate of an experiment."""

import optax
from ml_collections import ConfigDict


def create_optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of ``config.optimizer`` under the learning rate of ``config.schedule``.

      lr(t) = (lr - end) (1 - t / steps)^power + end,  t = 0, 1, ... steps - 1

    The poly schedule of mmsegmentation 0.x: the last step is still above ``end``. The optimizer is
    v <- momentum v + (g + weight_decay w), w <- w - lr v on every parameter, batch norms and biases
    included: L2 as PyTorch and Caffe2 have it, the decay joining the gradient before the momentum.

    Args:
      config: an experiment's config; reads ``steps``, ``optimizer`` and ``schedule``.

    Returns:
      The gradient transformation and the schedule, a function of t.
    """
    options = config.optimizer
    schedule = optax.polynomial_schedule(
        init_value=options.learning_rate,
        end_value=config.schedule.end,
        power=config.schedule.power,
        transition_steps=config.steps,
    )
    tx = optax.chain(
        optax.add_decayed_weights(options.weight_decay),
        optax.sgd(schedule, momentum=options.momentum),
    )
    return tx, schedule
