"""The video network: its outputs, windows, dropout, and options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nonlocal_jax.blocks import BatchNorm, GlobalContextBlock, NonLocalBlock
from nonlocal_jax.errors import InputError
from nonlocal_jax.models import create_model
from tests.helpers import draw

TINY = {
    "network": "video",
    "num_classes": 3,
    "stage_sizes": (1, 1),
    "strides": (1, 2),
    "width": 8,
    "dropout": 0.0,
}
CLIPS = np.random.default_rng(0).standard_normal((2, 4, 24, 32, 3))


def build(**options):
    model = create_model(TINY | options)
    clip = jax.ShapeDtypeStruct(CLIPS.shape, jnp.float32)
    return model, draw(jax.eval_shape(model.init, jax.random.key(0), clip))


def test_an_image_network_processes_each_frame(x64):
    """Its logits of a clip are the mean of those of its frames."""
    model, variables = build()
    apply = jax.jit(model.apply)
    clip = apply(variables, CLIPS)
    assert clip.shape == (2, 3)
    frames = [apply(variables, CLIPS[:, t : t + 1]) for t in range(CLIPS.shape[1])]
    np.testing.assert_allclose(clip, np.mean(frames, 0), rtol=1e-12)


def test_windows(x64):
    model, variables = build()
    features = np.asarray(
        jax.jit(model.backbone.apply)(
            {name: tree["backbone"] for name, tree in variables.items()}, CLIPS
        )[-1]
    )
    classifier = variables["params"]["classifier"]
    assert features.shape[1:4] == (4, 3, 4)

    def logits(x):
        return (
            np.einsum("bthwc,cd->bd", x, classifier["kernel"]) / x[0, ..., 0].size
            + (classifier["bias"])
        )

    whole = model.apply(variables, CLIPS, window=(None, None, None))
    assert whole.shape == (2, 1, 1, 1, 3)
    np.testing.assert_allclose(whole[:, 0, 0, 0], model.apply(variables, CLIPS), rtol=1e-12)
    np.testing.assert_allclose(whole[:, 0, 0, 0], logits(features), rtol=1e-10)
    some = model.apply(variables, CLIPS, window=(3, 2, None))
    assert some.shape == (2, 2, 2, 1, 3)
    expected = logits(features[:, 1:4, :2])
    np.testing.assert_allclose(some[:, 1, 0, 0], expected, rtol=1e-10)


@pytest.mark.parametrize("per_frame", [False, True])
def test_dropout_is_of_the_clip_or_of_each_frame(per_frame):
    """With the identity as the classifier, a channel of a clip is kept whole or dropped whole."""
    model, variables = build(num_classes=64, dropout=0.5, dropout_per_frame=per_frame)
    classifier = variables["params"]["classifier"]
    classifier["kernel"], classifier["bias"] = (
        np.eye(64, dtype=np.float32),
        np.zeros(64, np.float32),
    )
    x = CLIPS.astype(np.float32)
    run = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(1)}}
    dropped = np.asarray(model.apply(variables, x, **run)[0])
    plain = create_model(TINY | {"num_classes": 64})
    kept = np.asarray(plain.apply(variables, x, **run)[0])
    used = kept != 0  # ReLU
    ratio = dropped[used] / (2 * kept[used])
    is_binary = np.all(np.isclose(ratio, 0) | np.isclose(ratio, 1))
    assert is_binary != per_frame


def test_norms_of_the_backbone_and_of_the_blocks():
    options = {"block": "nonlocal", "block_at": ("layer2.0",), "block_axes": "time"}
    frozen = create_model(TINY | options | {"norm": "frozen_batch_norm", "block_norm": "none"})
    assert frozen.backbone.norm().use_running_average
    block = frozen.backbone.block()
    assert isinstance(block, NonLocalBlock)
    assert block.norm is None
    block = create_model(TINY | options).backbone.block()
    assert isinstance(block.norm(), BatchNorm)
    block = create_model(TINY | {"block": "global_context", "block_at": ("layer2.0",)})
    assert isinstance(block.backbone.block(), GlobalContextBlock)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": "nonlocal"}, "block is 'nonlocal' and block_at is"),
        ({"block_at": ["layer1.0"]}, "block is 'none' and block_at is"),
        (
            {"block": "none", "block_at": ["layer1.0"], "block_mode": "gaussian"},
            "not have the options block_mode; .* remove these options and block_at$",
        ),
        ({"stem": "v1"}, "network 'video' with block 'none' has no option 'stem'"),
        ({"conv1_frame": 5}, "has no option 'conv1_frame'; did you mean 'conv1_frames'"),
        ({"conv1_frames": 2}, "conv1_frames is 2; use an integer of at least 1 that is odd"),
        ({"pool1_padding": 2}, "pool1_padding is 2; use 0 or 1"),
        ({"head_std": 0}, "head_std is 0; use a number above 0"),
        (
            {"block_frames": 4, "block": "nonlocal", "block_at": ("layer1.0",)},
            "no option 'block_fr",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        create_model(TINY | options)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 24, 32, 3), {}, r"clips has shape \(2, 24, 32, 3\); use normalized RGB clips"),
        ((2, 0, 24, 32, 3), {}, r"\(2, 0, 24, 32, 3\); use at least one frame and one pixel"),
        (CLIPS.shape, {"window": 7}, r"window is 7; use \(frames, height, width\)"),
        (CLIPS.shape, {"window": (None, 9, 9)}, "the last feature map has the size"),
        (
            CLIPS.shape,
            {"window": (1, None)},
            r"window is \(1, None\); use \(frames, height, width\)",
        ),
        (CLIPS.shape, {"window": (1, 1, 1), "train": True}, "use a window at inference"),
    ],
)
def test_calls_that_do_not_fit_are_refused(shape, options, message):
    model, variables = build()
    with pytest.raises(InputError, match=r"clips has dtype uint8; .* nonlocal_jax.data.normalize"):
        model.apply(variables, np.zeros(CLIPS.shape, np.uint8))
    with pytest.raises(InputError, match=message):
        model.apply(variables, jnp.zeros(shape), **options)
