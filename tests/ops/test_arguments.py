"""Arguments that would give a wrong result in silence, or an unclear error."""

import jax.numpy as jnp
import numpy as np
import pytest

from nonlocal_jax import ops
from nonlocal_jax.blocks import GlobalContextBlock, NonLocalBlock
from nonlocal_jax.errors import InputError

X = jnp.ones((1, 3, 5, 2))
T = jnp.ones((2, 4, 3))
SCORE = T[..., 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.resize(X, (4.5, 5)), r"size is \(4.5, 5\); .* two positive integers"),
        (lambda: ops.resize(X, 8), "size is 8; .* two positive integers"),
        (lambda: ops.resize(X[:, :0], (2, 5)), "with at least one position"),
        (lambda: ops.context_pool(T[:, :0], SCORE[:, :0]), "use .* at least one position"),
        (lambda: ops.context_pool(T[0, 0]), r"x has shape \(3,\)"),
        (lambda: ops.channel_whiten(T[0, 0]), r"x has shape \(3,\)"),
        (lambda: ops.attention_weights(T, T[0]), "same leading dimensions"),
        (lambda: ops.attention_weights(T, T[..., :2]), "same number of channels"),
        (lambda: ops.softmax_attention(T, T, T, scale=jnp.ones(3)), r"scale has shape \(3,\)"),
        (lambda: ops.disentangled(T, T, T, SCORE, scale=jnp.ones(3)), r"scale has shape \(3,\)"),
        (lambda: ops.disentangled(T, T, T, SCORE, factor=jnp.ones(3)), r"factor has shape"),
        (lambda: ops.disentangled(T, T, T, SCORE[:, :2]), r"unary has shape \(2, 2\).*\(2, 4\)"),
        (
            lambda: ops.conv(X, jnp.ones((3, 3, 2, 1)), stride=2.0),
            "stride is 2.0.*positive integer",
        ),
    ],
)
def test_operations(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(
    ("block", "arguments", "message"),
    [
        (NonLocalBlock(), (X, X[..., 0] > 0), "train has shape .* pass a mask as mask=mask"),
        (GlobalContextBlock(), (X, X[..., 0] > 0), "train has shape .* pass a mask as mask=mask"),
        (NonLocalBlock(norm="bn"), (X,), "norm is 'bn'; use a constructor"),
        (GlobalContextBlock(norm="ln"), (X,), "norm is 'ln'; use a constructor"),
        (NonLocalBlock(reduction=2.0), (X,), "reduction is 2.0; use an integer"),
        (NonLocalBlock(sub_sample=True), (X[:, :1],), "leaves no key; use a larger feature map"),
    ],
)
def test_blocks(block, arguments, message):
    with pytest.raises(InputError, match=message):
        block.init({"params": np.zeros(2, np.uint32)}, *arguments)


def test_numpy_numbers_are_numbers():
    kernel = jnp.ones((3, 3, 2, 1))
    expected = ops.conv(X, kernel, stride=2)
    np.testing.assert_array_equal(ops.conv(X, kernel, stride=np.int64(2)), expected)
    np.testing.assert_array_equal(ops.resize(X, (np.int64(6), 5)), ops.resize(X, (6, 5)))
    half = T.astype(jnp.bfloat16)
    y = ops.disentangled(half, half, half, half[..., 0], factor=np.float32(0.5))
    assert y.dtype == jnp.bfloat16
