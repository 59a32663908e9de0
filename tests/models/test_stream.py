"""A network on a stream gives the logits of the same network on a clip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nonlocal_jax as nlj
from nonlocal_jax.errors import InputError
from tests.models.check_stream import network, run

_TSM = {
    "network": "video",
    "num_classes": 5,
    "stage_sizes": (1, 3),
    "strides": (1, 2),
    "width": 8,
    "shift": "past",
    "shift_at": ("layer1.0", "layer2.0", "layer2.2"),
}
_SIZE = (17, 16)


def _clips(frames, seed=0):
    shape = (2, frames, *_SIZE, 3)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.usefixtures("x64")
def test_a_stream_equals_the_clip_even_after_a_reset(caplog):
    model, variables = network(_TSM)
    reset, step = nlj.models.stream(model, variables)
    offline = jax.jit(lambda clips: model.apply(variables, clips, window=(1, None, None)))
    before = _clips(200).astype(np.float64)
    after = before.copy()
    after[:, 0] *= -1
    expected = [np.asarray(offline(clips))[:, :, 0, 0] for clips in (before, after)]
    # A frame matters to the next one.
    assert np.abs(expected[0][:, 1] - expected[1][:, 1]).max() > 1e-3

    with jax.log_compiles():
        caplog.clear()
        first = reset(2, _SIZE)
        state, logits = run(step, first, before)
        _, logits_after = run(step, reset(2, _SIZE), after[:, :30])
    assert sum("Finished XLA compilation of jit(jitted)" in m for m in caplog.messages) == 1
    for streamed, clip in zip((logits, logits_after), expected, strict=True):
        np.testing.assert_allclose(streamed, clip[:, : streamed.shape[1]], rtol=0, atol=1e-10)

    # The state is an eighth of the channels of the input of each residual block, for one frame.
    assert jax.tree.map(jnp.shape, first) == jax.tree.map(jnp.shape, state)
    assert {leaf.dtype for leaf in jax.tree.leaves([first, state])} == {np.dtype("float64")}
    shapes = {
        place: leaf["temporal_shift"]["previous"].shape for place, leaf in state["backbone"].items()
    }
    assert shapes == {
        "layer1_0": (2, 5, 4, 8 // 8),
        "layer2_0": (2, 5, 4, 32 // 8),
        "layer2_2": (2, 3, 2, 64 // 8),
    }


def test_a_step_is_a_pure_function():
    model, variables = network(_TSM)
    reset, step = nlj.models.stream(model, variables)
    clips = _clips(3)
    state, logits = run(step, reset(2, _SIZE), clips)
    # Each stream by itself, in a loop on the device.
    scan = jax.vmap(lambda clip: jax.lax.scan(step, reset(1, _SIZE), clip[:, None]))
    states, scanned = jax.jit(scan)(clips)
    np.testing.assert_allclose(scanned[:, :, 0], logits, rtol=0, atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(states), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(ours[:, 0], theirs, rtol=0, atol=1e-5)
    # Nothing was donated.
    _, again = step(state, clips[:, 0])
    np.testing.assert_array_equal(again, step(state, clips[:, 0])[1])


def test_the_state_has_the_type_of_the_features():
    model, variables = network(_TSM | {"dtype": "bfloat16"})
    reset, step = nlj.models.stream(model, jax.tree.map(jnp.float32, variables))
    first = reset(2, _SIZE)
    state, logits = jax.eval_shape(step, first, _clips(1)[:, 0])
    types = {leaf.dtype for leaf in jax.tree.leaves([first, state])}
    assert (types, logits.dtype) == ({jnp.dtype("bfloat16")}, jnp.float32)


def test_a_network_without_layers_over_frames_needs_no_state():
    model, variables = network(_TSM | {"shift_at": ()})
    reset, step = nlj.models.stream(model, variables)
    clips = _clips(1)
    state, logits = step(reset(2, _SIZE), clips[:, 0])
    assert state == {}
    np.testing.assert_allclose(logits, jax.jit(model.apply)(variables, clips), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"shift": "both"}, "shift is 'both'"),
        ({"block": "global_context", "block_at": ("layer2.0",)}, "block_at is ('layer2.0',)"),
        ({"inflate_at": ("layer2.1",)}, "inflate_at is ('layer2.1',)"),
        ({"conv1_frames": 5, "conv1_stride": 2}, "conv1_frames is 5, conv1_stride is 2"),
        ({"pool1_frames": 2}, "pool1_frames is 2"),
        ({"pool2_frames": 2}, "pool2_frames is 2"),
    ],
)
def test_networks_that_need_a_clip_are_refused(options, reason):
    with pytest.raises(InputError) as error:
        nlj.models.stream(nlj.create_model(_TSM | options), {})
    assert f"because {reason}," in str(error.value)


def test_other_networks_are_refused():
    model = nlj.create_model({"num_classes": 3})
    with pytest.raises(InputError, match=r"a SegmentationNet; use a network of config\.model"):
        nlj.models.stream(model, {})
    with pytest.raises(InputError, match="the variables have no 'params'; use those"):
        nlj.models.stream(nlj.create_model(_TSM), {"kernel": 0})


def test_frames_that_do_not_fit_are_refused():
    reset, step = nlj.models.stream(*network(_TSM))
    state, frame = reset(2, _SIZE), _clips(1)[:, 0]
    with pytest.raises(InputError, match=r"\(1, 16, 16, 3\); use the state of reset\(1, \(16, 16"):
        step(state, frame[:1, :16])
    with pytest.raises(InputError, match="frame of shape"):
        step({}, frame)
    with pytest.raises(InputError, match=r"shape \(2, 1, 17, 16, 3\); use one normalized"):
        step(state, frame[:, None])
    with pytest.raises(InputError, match=r"size is 16; use \(height, width\)"):
        reset(1, 16)
    with pytest.raises(InputError, match="frame has dtype uint8"):
        step(state, frame.astype(np.uint8))


def test_training_variables_have_no_stream():
    model = nlj.create_model(_TSM)
    shapes = jax.eval_shape(model.init, jax.random.key(0), _clips(2))
    assert set(shapes) == {"params", "batch_stats"}
