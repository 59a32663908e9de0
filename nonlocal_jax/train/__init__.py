"""Training, the same for every task: the state, the step, the loop, checkpoints and logs."""

from etils import epy

from nonlocal_jax.tasks.segmentation import loss_fn
from nonlocal_jax.train.experiment import Experiment, create_experiment
from nonlocal_jax.train.optimizer import create_optimizer
from nonlocal_jax.train.state import TrainState, create_state
from nonlocal_jax.train.step import make_train_step

# Imported on first use: the train step needs only jax, flax, optax and ml_collections.
with epy.lazy_api_imports(globals()):
    from nonlocal_jax.train.checkpoint import Checkpoints
    from nonlocal_jax.train.compile import compile_train_step
    from nonlocal_jax.train.log import NonFiniteError
    from nonlocal_jax.train.loop import Result, train

__all__ = [
    "Checkpoints",
    "Experiment",
    "NonFiniteError",
    "Result",
    "TrainState",
    "compile_train_step",
    "create_experiment",
    "create_optimizer",
    "create_state",
    "loss_fn",
    "make_train_step",
    "train",
]
