"""The PyTorch operations and networks of the benchmark give the results of ours, in float64."""

import warnings

import formula
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark._cases import NETWORKS, OPERATIONS, Case
from experiments.benchmark._ours import network_config
from nonlocal_jax import convert, create_model
from nonlocal_jax.train import loss_fn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")

from experiments.benchmark import _pytorch, _pytorch_models, _pytorch_video

pytestmark = pytest.mark.usefixtures("x64")


def _close(theirs, ours):
    theirs, ours = theirs.detach().numpy(), np.asarray(ours)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-9 * np.abs(ours).max())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in OPERATIONS),
        ("softmax_attention", {"sdpa": True}),
        ("disentangled", {"sdpa": True}),
        ("dot_product", {"reassociated": True}),
    ],
)
def test_operations_are_the_same(name, options):
    operation = OPERATIONS[name]
    arrays = [
        formula.uniform(f"{name} {i}", shape) - 0.5
        for i, shape in enumerate(operation.shapes(2, 20, 8))
    ]
    scale = operation.options(8)
    tensors = [torch.from_numpy(array).requires_grad_() for array in arrays]
    theirs = getattr(_pytorch_models, name)(*tensors, **scale, **options)
    ours, pull = jax.vjp(lambda *a: operation.function(*a, **scale), *map(jnp.asarray, arrays))
    _close(theirs, ours)
    dy = formula.uniform("dy", ours.shape)
    gradients = torch.autograd.grad(theirs, tensors, torch.from_numpy(dy))
    for theirs, ours in zip(gradients, pull(jnp.asarray(dy)), strict=True):
        np.testing.assert_allclose(theirs.numpy(), ours, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sdpa", [False, True])
@pytest.mark.parametrize("head", ["nonlocal", "dnl", "gc"])
def test_networks_are_the_same(head, sdpa):
    # One size for each value of align_corners.
    size = (41, 41) if head == "dnl" else (32, 41)
    assert f"r50_{head}" in NETWORKS
    config = network_config(Case(f"r50_{head}", size, 2, 8, "float32", backward=True))
    config.model.update(stage_sizes=(1, 2, 2, 2), dropout=0.0)
    net = _pytorch_models.SegmentationNet(config.model, sdpa=sdpa).double()
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    weights = formula.state_dict(shapes)
    # Raises an error if a name does not match.
    variables = convert.from_torch(weights, config.model)
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
    net.load_state_dict({name: torch.from_numpy(np.array(w)) for name, w in weights.items()})
    model = create_model(config.model)

    images = formula.images(2, *size)
    labels = formula.labels(2, *size, config.model.num_classes)
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    logits = model.apply(variables, jnp.asarray(images))
    _close(net.eval()(tensor).permute(0, 2, 3, 1), logits)

    loss_config = config.loss.to_dict()
    outputs, _ = model.apply(variables, jnp.asarray(images), train=True, mutable=["batch_stats"])
    ours, _ = loss_fn(outputs, jnp.asarray(labels), loss_config)
    theirs, _ = net.train().loss(tensor, torch.from_numpy(labels).long(), loss_config)
    assert theirs.item() == pytest.approx(float(ours), rel=1e-9)


@pytest.mark.parametrize("sdpa", [False, True])
def test_video_networks_are_the_same(sdpa):
    config = network_config(Case("r50_nl_i3d", (16, 33, 33), 2, 8, "float32", backward=True))
    config.model.update(stage_sizes=(1, 2), strides=(1, 2), dropout=0.0)
    config.model.update(inflate_at=("layer2.0",), block_at=("layer2.1",))
    net = _pytorch_video.VideoNet(config.model, sdpa=sdpa).double()
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    weights = formula.state_dict(shapes)
    variables = convert.from_torch(weights, config.model)
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
    net.load_state_dict({name: torch.from_numpy(np.array(w)) for name, w in weights.items()})
    model = create_model(config.model)

    clips = formula.uniform("clips", (2, 16, 33, 33, 3)) - 0.5
    tensor = torch.from_numpy(clips.transpose(0, 4, 1, 2, 3).copy())
    _close(net.eval()(tensor), model.apply(variables, jnp.asarray(clips)))

    logits, _ = model.apply(variables, jnp.asarray(clips), train=True, mutable=["batch_stats"])
    labels = np.array([3, 7])
    ours, _ = loss_fn(logits, jnp.asarray(labels), config.loss.to_dict())
    theirs, _ = net.train().loss(tensor, torch.from_numpy(labels), config.loss.to_dict())
    assert theirs.item() == pytest.approx(float(ours), rel=1e-9)


@pytest.mark.parametrize("variant", ["torch_eager", "torch_sdpa"])
@pytest.mark.parametrize("name", ["disentangled", "nonlocal_block", "r50_dnl", "r50_nl_i3d"])
def test_programs_run(name, variant, monkeypatch):
    monkeypatch.setattr(_pytorch, "_compile", lambda function, _: function)  # g++ takes minutes
    for backward in (False, True):
        size = {"r50_dnl": (9, 16), "r50_nl_i3d": (16, 32, 32)}.get(name, (2, 3))
        program = _pytorch.build(Case(name, size, 1, 8, "bfloat16", backward), variant)
        program.wait(program.run())
