"""Frames of a clip with the attention of a position."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nonlocal_jax as nlj
from nonlocal_jax.errors import InputError
from nonlocal_jax.visualize import attention_strip, strip, strongest_position


def composed(monkeypatch, *arguments):
    """The pictures and the labels that a strip arranges."""
    found = []

    def compose(rows, labels, lines):
        found.extend((rows, labels, lines))
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(strip, "_compose", compose)
    attention_strip(*arguments)
    return found


def brightness(pictures):
    return [picture.astype(int).sum() for picture in pictures]


def test_each_frame_gets_its_part_of_the_attention(monkeypatch):
    frames = np.full((4, 20, 30, 3), 50, np.uint8)
    weights = np.zeros((4, 2, 3))
    weights[1], weights[3] = 0.1, 0.2 / 6
    rows, labels, lines = composed(monkeypatch, frames, weights, (2, 5, 7), "a", "b")
    assert lines == ("a", "b")
    assert labels == [[f"frame {i}" for i in range(4)], ["0 %", "75 %", "0 %", "25 %"]]
    # Whole pixels are enlarged.
    assert [p.shape for row in rows for p in row] == [(100, 150, 3)] * 8
    # The ring is in the frame of the position, at its place. Other frames are as they were.
    for row in rows:
        green = [np.argwhere(p[..., 1].astype(int) - p[..., 0] > 100) for p in row]
        assert [len(g) > 0 for g in green] == [False, False, True, False]
        np.testing.assert_allclose(green[2].mean(0), (27.5, 37.5), atol=1)
    assert (rows[0][0] == 50).all()
    # One scale for all frames.
    zero, most, _, some = brightness(rows[1])
    assert zero < some < most
    # It begins at the smallest weight.
    higher, _, _ = composed(monkeypatch, frames, weights + 1, (2, 5, 7), "")
    np.testing.assert_array_equal(higher[1], rows[1])


def test_long_clips_are_drawn_in_eight_parts(monkeypatch):
    frames = np.arange(32, dtype=np.uint8)[:, None, None, None] * np.ones((400, 300, 3), np.uint8)
    weights = np.zeros((16, 7, 7))
    weights[4] = weights[5] = 1
    weights[15] = -1  # of the mode "dot_product"
    rows, labels, _ = composed(monkeypatch, frames, weights, (12, 0, 0), "")
    # The frame of the position, and the middles of the other parts.
    assert labels[0] == [f"frame {i}" for i in (2, 6, 10, 12, 18, 22, 26, 30)]
    assert labels[1] == ["0 %", "0 %", "100 %", "0 %", "0 %", "0 %", "0 %", "0 %"]
    assert rows[0][0].shape == (224, 168, 3)
    assert (rows[0][4] == 18).all()


def test_a_network_that_keeps_few_frames_has_few_parts(monkeypatch):
    frames = np.zeros((32, 8, 8, 3), np.uint8)
    _, labels, _ = composed(monkeypatch, frames, np.ones((4, 2, 2)), (31, 7, 7), "")
    assert labels == [["frame 4", "frame 12", "frame 20", "frame 31"], ["25 %"] * 4]


def test_without_weights_only_the_frames_are_drawn():
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    picture = attention_strip(frames, None, (0, 4, 4), "one line")
    both = attention_strip(frames, np.ones((3, 2, 2)), (0, 4, 4), "one line")
    assert picture.dtype == np.uint8
    assert picture.shape[1] == both.shape[1] > 3 * 160
    assert both.shape[0] - picture.shape[0] > 160
    wide = attention_strip(frames, None, (0, 4, 4), "a long line " * 20)
    assert wide.shape[1] > picture.shape[1]
    assert (wide[:, -1] == 255).all()


def test_wrong_shapes_are_refused():
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    with pytest.raises(InputError, match=r"uint8 RGB \[T, H, W, 3\]"):
        attention_strip(frames[0], np.ones((3, 2, 2)), (0, 4, 4))
    with pytest.raises(InputError, match=r"\(2, 2\); use a map \[T', H', W'\]"):
        attention_strip(frames, np.ones((2, 2)), (0, 4, 4))


class Pool(nn.Module):
    """A feature map of the size of the clip divided by (2, 4, 4)."""

    @nn.compact
    def __call__(self, x, train=False):
        batch, t, h, w, c = x.shape
        return [x.reshape(batch, t // 2, 2, h // 4, 4, w // 4, 4, c).mean((2, 4, 6))]


def test_the_strongest_position_is_the_center_of_the_largest_logit():
    model = nlj.models.video.VideoNet(backbone=Pool(), num_classes=2)
    clip = jnp.zeros((1, 8, 16, 24, 3)).at[0, 5, 9, 22].set(1.0).at[0, 1, 2, 3].set(-2.0)
    variables = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0), clip))
    kernel = jnp.array([[1.0, -1.0]] * 3)
    variables["params"]["classifier"]["kernel"] = kernel
    assert strongest_position(model, variables, clip, 0) == (5, 10, 22)
    assert strongest_position(model, variables, clip, 1) == (1, 2, 2)
