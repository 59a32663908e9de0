"""The optimizer and the learning rate of an experiment."""

import difflib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from nonlocal_jax.errors import InputError


def create_optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Creates stochastic gradient descent with a learning rate that depends on the step.

    For the gradient g of a parameter w, its velocity v, momentum m and weight decay d, the update
    at step t is ::

        g <- g + d w
        v <- m v + g
        w <- w - lr(t) v              nesterov=False
        w <- w - lr(t) (g + m v)      nesterov=True

    This is L2 regularization as in PyTorch and Caffe2: the decay enters the momentum. By default
    it applies to every parameter, including biases and the parameters of norms.

    The learning rate at t = 0, 1, ..., steps - 1 is, with s for ``config.schedule`` ::

        poly:    lr(t) = (learning_rate - s.end) (1 - t / steps)^s.power + s.end
        step:    lr(t) = learning_rate s.factor^(number of s.boundaries <= t)
        cosine:  lr(t) = learning_rate (1 + cos(pi t / steps)) / 2

    "poly" is the schedule of mmsegmentation 0.x: the rate of the last step is still above ``end``.
    In the first ``warmup_steps`` steps, lr(t) is multiplied, as in MMCV, by ::

        s.warmup_factor + (1 - s.warmup_factor) t / s.warmup_steps

    Options of ``config.optimizer`` beyond ``learning_rate``, ``momentum``, ``nesterov`` and
    ``weight_decay``:

    * ``clip_global_norm``: If the norm of all gradients together exceeds this number, they are
      scaled to it, before the decay is added. Frozen parameters are not included. None disables
      clipping.
    * ``no_decay``: Parameters without weight decay.
    * ``lr_factors``: Pairs of parameters and the factor that multiplies their learning rate. The
      first match counts.
    * ``frozen``: Parameters that are never updated. They have no velocity.

    The last three options select parameters by regular expressions, which are searched for in paths
    such as "backbone/layer1_0/conv1/kernel".

    Args:
      config: The config of an experiment. ``steps``, ``optimizer`` and ``schedule`` are read.

    Returns:
      The gradient transformation, and the schedule as a function of t. The transformation's
      ``init`` raises an ``InputError`` if a regular expression matches no parameter.

    Raises:
      InputError: ``schedule.kind`` is unknown, or "step" has no increasing ``boundaries``.
    """
    options = config.optimizer
    in_steps = _schedule(config)

    def schedule(step):
        # Optax computes with the type of the step. JAX's default float is float64 with x64.
        return in_steps(jnp.asarray(step, float))

    links = [
        optax.add_decayed_weights(options.weight_decay, mask=_decay_mask(options.no_decay)),
        optax.sgd(schedule, momentum=options.momentum, nesterov=options.nesterov),
    ]
    if options.clip_global_norm is not None:
        links.insert(0, optax.clip_by_global_norm(options.clip_global_norm))
    if options.lr_factors:
        links.append(_scale_by_factors(options.lr_factors))
    tx = optax.chain(*links)
    if options.frozen:
        tx = _freeze(tx, options.frozen)
    patterns = {
        "no_decay": options.no_decay,
        "lr_factors": [pattern for pattern, _ in options.lr_factors],
        "frozen": options.frozen,
    }

    def init(params):
        _check_patterns(patterns, params)
        return tx.init(params)

    return tx._replace(init=init), schedule


def _schedule(config: ConfigDict) -> optax.Schedule:
    learning_rate, options = config.optimizer.learning_rate, config.schedule
    if options.kind == "poly":
        schedule = optax.polynomial_schedule(
            init_value=learning_rate,
            end_value=options.end,
            power=options.power,
            transition_steps=config.steps,
        )
    elif options.kind == "step":
        boundaries = tuple(options.boundaries)
        if not boundaries or boundaries != tuple(sorted(set(boundaries))):
            raise InputError(
                f"schedule.boundaries is {boundaries}; with schedule.kind='step', use one or more "
                "steps in increasing order, such as (60000, 80000)"
            )
        rates = [learning_rate * options.factor**i for i in range(len(boundaries) + 1)]
        schedule = optax.join_schedules([optax.constant_schedule(r) for r in rates], boundaries)
    elif options.kind == "cosine":
        schedule = optax.cosine_decay_schedule(learning_rate, decay_steps=config.steps)
    else:
        raise InputError(f"schedule.kind is {options.kind!r}; use 'poly', 'step' or 'cosine'")
    if not options.warmup_steps:
        return schedule
    warmup = optax.linear_schedule(options.warmup_factor, 1.0, options.warmup_steps)
    return lambda t: schedule(t) * warmup(t)


def _path(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _by_path(function: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Returns a function of a tree that calls ``function`` with the path of each leaf."""
    return lambda tree: jax.tree.map_with_path(lambda path, _: function(_path(path)), tree)


def _matches(patterns: Sequence[str], path: str) -> bool:
    return any(re.search(pattern, path) for pattern in patterns)


def _decay_mask(no_decay: Sequence[str]) -> Callable[[Any], Any] | None:
    return _by_path(lambda path: not _matches(no_decay, path)) if no_decay else None


def _scale_by_factors(factors: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    def factor(path):
        return next((factor for pattern, factor in factors if re.search(pattern, path)), 1.0)

    return optax.stateless(
        lambda updates, _: jax.tree.map(operator.mul, updates, _by_path(factor)(updates))
    )


def _freeze(
    tx: optax.GradientTransformation, frozen: Sequence[str]
) -> optax.GradientTransformation:
    labels = _by_path(lambda path: "frozen" if _matches(frozen, path) else "trained")
    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)


def _check_patterns(patterns: Mapping[str, Sequence[str]], params: Any) -> None:
    paths = [_path(path) for path, _ in jax.tree.leaves_with_path(params)]
    for option, expressions in patterns.items():
        for expression in expressions:
            if not any(re.search(expression, path) for path in paths):
                near = difflib.get_close_matches(expression, paths, n=1, cutoff=0.0)
                raise InputError(
                    f"optimizer.{option}: {expression!r} matches no parameter; use a regular "
                    f"expression for paths such as {near[0]!r}"
                )
