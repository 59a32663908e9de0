"""One training step without the optimizer, to compare with mmsegmentation."""

import jax

from nonlocal_jax.train import loss_fn


def make_step(model, config):
    """(variables, images, labels) -> losses, gradients, new statistics."""

    @jax.jit
    def step(variables, images, labels):
        def loss(params):
            outputs, updates = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            total, parts = loss_fn(outputs, labels, config.loss)
            return total, ({"loss": total, **parts}, updates["batch_stats"])

        gradients, (losses, statistics) = jax.grad(loss, has_aux=True)(variables["params"])
        return losses, gradients, statistics

    return step
