"""One update of the state: a pure function, compiled once."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nonlocal_jax.data import normalize
from nonlocal_jax.sharding import replicated, split_images, use_mesh
from nonlocal_jax.train.loss import loss_and_accuracy
from nonlocal_jax.train.optimizer import create_optimizer
from nonlocal_jax.train.state import TrainState

Batch = Mapping[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(model: nn.Module, config: ConfigDict, mesh: Mesh) -> TrainStep:
    """The jitted ``train_step(state, batch) -> (state, metrics)``.

    The batch is ``{"image": uint8 [B, H, W, 3], "label": uint8 [B, H, W]}``, split over the mesh,
    the rows of an image over its axis "context"; images are normalized on the device. Batch norms
    see the global batch. The old state's memory is donated to the new one.

    The metrics are scalars: ``loss`` and its parts, ``accuracy`` over the pixels that are not
    ignored, ``grad_norm`` over all parameters, ``param_norm`` after the update, and the
    ``learning_rate`` of this step.
    """
    tx, schedule = create_optimizer(config)
    loss_config = config.loss.to_dict()

    def train_step(state, batch):
        images = normalize(batch["image"], config.data.mean, config.data.std)
        images, labels = (split_images(x, mesh) for x in (images, batch["label"]))

        def compute_loss(params):
            with use_mesh(mesh):
                outputs, updates = model.apply(
                    {"params": params, "batch_stats": state.batch_stats},
                    images,
                    train=True,
                    mutable=["batch_stats"],
                    rngs={"dropout": jax.random.fold_in(state.rng, state.step)},
                )
            loss, parts = loss_and_accuracy(outputs, labels, loss_config)
            return loss, (parts, updates["batch_stats"])

        (loss, aux), grads = jax.value_and_grad(compute_loss, has_aux=True)(state.params)
        parts, batch_stats = aux
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        new_state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        metrics = {
            "loss": loss,
            **parts,
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(new_state.params),
            "learning_rate": schedule(state.step),
        }
        return new_state, metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=replicated(mesh))
