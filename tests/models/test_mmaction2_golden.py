"""Narrow video networks against numbers of the real mmaction2, in float64.

Their weights come from a formula of name and shape (``tests/parity/formula.py``).
``tests/golden/mmaction2`` contains the running statistics and the results.
``tests/parity/write_golden.py`` wrote them.
"""

import functools
import pathlib

import jax
import narrow
import narrow_video
import numpy as np
import pytest
import step

import nonlocal_jax as nlj
from nonlocal_jax.convert import names

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "mmaction2"


def read(name):
    """The config, the state dict of mmaction2, and its numbers."""
    config = narrow_video.config(name)
    golden = np.load(GOLDEN / f"{name}.npz")
    shapes = {leaf.name: leaf.torch_shape for leaf in names.leaves(config.model)}
    return config, narrow_video.state_dict(shapes, golden["running"]), golden


def load(name):
    """The config, the model, its float64 variables, the clips and the numbers of mmaction2."""
    config, state_dict, golden = read(name)
    variables = nlj.convert.from_torch(state_dict, config.model)
    variables = jax.tree.map(lambda a: a.astype(np.float64), variables)
    model = nlj.create_model(config.model)
    return config, model, variables, narrow_video.clips(name), golden


@pytest.mark.parametrize("name", narrow_video.NETWORKS)
@pytest.mark.usefixtures("x64")
def test_inference(name):
    _, model, variables, clips, golden = load(name)
    features = functools.partial(model.apply, method=lambda model, x: model.backbone(x)[-1])

    @jax.jit
    def infer(variables, clips):
        return features(variables, clips)[..., ::8], model.apply(variables, clips)

    for actual, key in zip(infer(variables, clips), ("features", "logits"), strict=True):
        assert np.max(np.abs(actual - golden[key])) < 1e-6 * np.std(golden[key]), key


@pytest.mark.parametrize("name", narrow_video.TRAINED)
@pytest.mark.usefixtures("x64")
def test_training(name):
    config, model, variables, clips, golden = load(name)
    run = step.make_step(model, config)
    losses, gradients, statistics = jax.device_get(run(variables, clips, narrow_video.LABELS))
    np.testing.assert_allclose(losses["loss"], golden["loss"], rtol=1e-8)

    for kind, tree, relative, of_all in (
        ("gradients", {"params": gradients}, 1e-6, 1e-10),
        ("statistics", {"batch_stats": statistics}, 1e-8, 0),
    ):
        arrays = nlj.convert.to_torch(tree, config.model)
        expected = golden[kind].reshape(-1, 2)  # length of an array, and a product
        whole = np.linalg.norm(expected[:, 0])
        for key, numbers in zip(sorted(arrays), expected, strict=True):
            bound = relative * numbers[0] + of_all * whole
            np.testing.assert_allclose(
                narrow.summary(key, arrays[key]), numbers, rtol=0, atol=bound, err_msg=key
            )
