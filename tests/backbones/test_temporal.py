"""The ResNet on clips: what the layers along frames do, and rematerialization."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nonlocal_jax.backbones import ResNet, Temporal
from nonlocal_jax.blocks import GlobalContextBlock, NonLocalBlock
from nonlocal_jax.errors import InputError
from nonlocal_jax.sharding import make_mesh, use_mesh
from tests.helpers import draw

C2D = Temporal(conv1_stride=2, pool1_frames=2, pool1_stride=2, pool1_padding=0, pool2_frames=2)
I3D = dataclasses.replace(C2D, conv1_frames=5, inflate_at=("layer1.0", "layer3.0"))
narrow = functools.partial(
    ResNet,
    stage_sizes=(1, 1, 1, 1),
    strides=(1, 2, 2, 2),
    dilations=(1, 1, 1, 1),
    width=4,
    stem="v1",
)
# Two stages, for tests that compute.
tiny = functools.partial(
    ResNet, stage_sizes=(1, 1), strides=(1, 2), dilations=(1, 1), width=8, stem="v1"
)


def shapes(net, clip):
    function = functools.partial(net.init_with_output, jax.random.key(0))
    outputs, variables = jax.eval_shape(function, jax.ShapeDtypeStruct(clip, jnp.float32))
    return [y.shape for y in outputs], variables


def random_variables(net, clip):
    return draw(shapes(net, clip)[1])


def test_sizes_of_the_released_networks():
    """The authors' C2D has 55x55 positions in its first stage, because pool1 is not padded."""
    sizes = [y[1:4] for y in shapes(narrow(temporal=C2D), (1, 32, 224, 224, 3))[0]]
    assert sizes == [(8, 55, 55), (4, 28, 28), (4, 14, 14), (4, 7, 7)]
    mmaction2 = Temporal(conv1_frames=5, conv1_stride=2, pool1_stride=2, pool2_frames=2)
    sizes = [y[1:4] for y in shapes(narrow(temporal=mmaction2), (1, 31, 65, 97, 3))[0]]
    assert sizes == [(8, 17, 25), (4, 9, 13), (4, 5, 7), (4, 3, 4)]


def test_a_kernel_has_a_time_axis_only_where_it_needs_one():
    def kernels(temporal):
        params = shapes(narrow(temporal=temporal), (1, 16, 64, 64, 3))[1]["params"]
        block = params["layer3_0"]
        names = "conv1", "conv2", "conv3", "downsample_conv"
        return [x["kernel"].shape[:-2] for x in (params["conv1"], *map(block.get, names))]

    flat = [(1, 1), (3, 3), (1, 1), (1, 1)]
    assert kernels(Temporal(shift_at=("layer3.0",))) == [(7, 7), *flat]
    assert kernels(C2D) == [(1, 7, 7), *flat]
    assert kernels(I3D) == [(5, 7, 7), (3, 1, 1), *flat[1:]]
    assert kernels(dataclasses.replace(I3D, inflate="3x3x3"))[1:] == [(1, 1), (3, 3, 3), *flat[2:]]


@pytest.mark.parametrize("direction", ["both", "past"])
def test_a_shift_changes_conv1_and_not_the_shortcut(direction, x64):
    """With a branch that is zero, a block is its shortcut."""
    clip = 1, 4, 9, 9, 3
    net = tiny(temporal=Temporal(shift_at=("layer2.0",), shift=direction))
    variables = random_variables(net, clip)
    x = np.random.default_rng(0).standard_normal(clip)
    plain = tiny()
    shifted, flat = (n.apply(variables, x)[1] for n in (net, plain))
    assert not np.allclose(shifted, flat)
    for name in ("scale", "bias"):
        variables["params"]["layer2_0"]["bn3"][name] *= 0
    shifted, flat = (n.apply(variables, x)[1] for n in (net, plain))
    np.testing.assert_array_equal(shifted, flat)


def test_only_the_past_is_read(x64):
    clip = 1, 4, 9, 9, 3
    net = tiny(temporal=Temporal(shift_at=("layer1.0", "layer2.0"), shift="past"))
    variables = random_variables(net, clip)
    x = np.random.default_rng(0).standard_normal(clip)
    apply = jax.jit(net.apply)
    changed = x.copy()
    changed[:, 2] += 1
    before, after = (apply(variables, c)[-1][0] for c in (x, changed))
    differs = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert differs == [False, False, True, True]


def test_blocks_relate_groups_of_frames_at_some_places(x64):
    places = "layer1.0", "layer2.0"
    temporal = Temporal(group_frames=2, group_at=places[:1])
    options = {"block_at": places, "block_position": "after_residual"}
    net = tiny(temporal=temporal, block=NonLocalBlock, **options)
    clip = 1, 4, 9, 9, 3
    variables = random_variables(net, clip)
    x = np.random.default_rng(0).standard_normal(clip)
    changed = x.copy()
    changed[:, 2:] += 1
    first, second = zip(*(jax.jit(net.apply)(variables, c) for c in (x, changed)), strict=True)
    np.testing.assert_array_equal(*(y[:, :2] for y in first))
    assert not np.allclose(*(y[:, :2] for y in second))


def test_rematerialization_changes_no_number(x64):
    clip = 2, 4, 9, 9, 3
    temporal = Temporal(conv1_frames=5, inflate_at=("layer2.0",))
    options = {"block": GlobalContextBlock, "block_at": ("layer2.0",)}
    options |= {"temporal": temporal, "block_position": "after_residual"}
    plain, remat, full = (tiny(remat=r, **options) for r in ("none", "blocks", "full"))
    variables = random_variables(plain, clip)
    x = np.random.default_rng(0).standard_normal(clip)

    def gradient(net):
        def loss(params):
            state = {**variables, "params": params}
            outputs, updates = net.apply(state, x, True, mutable=["batch_stats"])
            return jnp.sum(outputs[-1] ** 2), updates

        return jax.grad(loss, has_aux=True)

    found, expected = (jax.jit(gradient(n))(variables["params"]) for n in (remat, plain))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), found, expected
    )
    texts = (str(jax.make_jaxpr(gradient(n))(variables["params"])) for n in (plain, remat, full))
    # Forward and backward pass of two residual blocks, then also of the stem and the block.
    assert [text.count("checkpoint[") + text.count("remat2[") for text in texts] == [0, 2, 4]


def test_frames_stay_an_axis_where_they_are_split():
    """XLA would gather frames that were folded into the batch."""
    net, clip = tiny(), (2, 4, 9, 9, 3)
    variables = random_variables(net, clip)
    mesh = make_mesh(jax.devices()[:4], context=4)

    def ranks(inside):
        def run(x):
            if not inside:
                return net.apply(variables, x)[-1]
            with use_mesh(mesh):
                return net.apply(variables, x)[-1]

        jaxpr = jax.make_jaxpr(run)(jnp.zeros(clip))
        return {equation.outvars[0].aval.ndim for equation in equations(jaxpr.jaxpr)}

    def equations(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "conv_general_dilated":
                yield equation
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from equations(inner)

    assert ranks(False) == {4}
    assert ranks(True) == {5}


@pytest.mark.parametrize(
    ("options", "clip", "message"),
    [
        ({"temporal": I3D}, (1, 64, 64, 3), "relates frames; use clips"),
        (
            {"temporal": C2D},
            (1, 2, 64, 64, 3),
            r"too small: a max pool over \(2, 3, 3\) gets a feature map of \(1, 32, 32\)",
        ),
        ({"temporal": Temporal(pool1_padding=0)}, (1, 1, 4, 4, 3), r"too small: .*\(1, 2, 2\)"),
        ({}, (1, 0, 9, 9, 3), r"too small: a max pool over \(1, 3, 3\) gets .* \(0, 5, 5\)"),
        ({"temporal": Temporal(inflate_at=("layer9.0",))}, (1, 4, 9, 9, 3), "inflate_at.*layer9.0"),
        ({"temporal": Temporal(shift_at=("layer1.1",))}, (1, 4, 9, 9, 3), "shift_at.*use some of"),
        (
            {"temporal": Temporal(group_frames=2, group_at=("layer1.0",))},
            (1, 4, 9, 9, 3),
            r"group_at is \('layer1.0',\), but layer1.0 cannot be used",
        ),
        ({"temporal": Temporal(shift="back")}, (1, 4, 9, 9, 3), "shift is 'back'; use 'both'"),
        ({"temporal": Temporal(inflate="1")}, (1, 4, 9, 9, 3), "inflate is '1'; use '3x1x1'"),
        ({"temporal": Temporal(pool1_padding=2)}, (1, 4, 9, 9, 3), "pool1_padding is 2; use 0"),
        ({"temporal": Temporal(group_frames=4)}, (1, 4, 9, 9, 3), "set both or neither"),
        ({"temporal": I3D, "stem": "v1c"}, (1, 4, 9, 9, 3), "stem 'v1c' does not support conv1_fr"),
    ],
)
def test_what_does_not_fit_is_refused(options, clip, message):
    with pytest.raises(InputError, match=message):
        shapes(narrow(**options), clip)
