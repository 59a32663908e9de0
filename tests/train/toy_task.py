"""A task that is added from outside of the library: which of two channels has the larger mean."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import nonlocal_jax as nlj


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        x = nlj.blocks.NonLocalBlock()(nn.Dense(8)(x), train=train)
        return nn.Dense(2)(x.mean(1))


def batch(config):
    shapes = {"signal": ((6, 2), "float32"), "label": ((1,), "int32"), "weight": ((1,), "float32")}
    n = config.data.batch_size
    return {name: jax.ShapeDtypeStruct((n, *s), dtype) for name, (s, dtype) in shapes.items()}


def loss(logits, batch, config):
    picked = jnp.take_along_axis(nn.log_softmax(logits), batch["label"], axis=1)
    parts = {"entropy": -jnp.mean(batch["weight"] * picked), "size": 0.01 * jnp.mean(logits**2)}
    return sum(parts.values()), parts


def evaluator(config, source, **_):
    apply = jax.jit(nlj.create_model(config.model).apply)
    signal, label = (np.stack([example[key] for example in source]) for key in ("signal", "label"))

    def run(variables):
        return {"accuracy": float(np.mean(apply(variables, signal).argmax(1) == label[:, 0]))}

    return run


nlj.models.NETWORKS["toy"] = Net
nlj.tasks.TASKS["toy"] = nlj.tasks.Task(
    headline="accuracy",
    leaves={},
    batch=batch,
    inputs=lambda batch, config: batch["signal"],
    loss=loss,
    prepare=lambda example, config, rng: dict(example),
    open_source=lambda config, split, data_dir=None: [],
    evaluator=evaluator,
    report=lambda summary, config: (str(summary), summary),
)
