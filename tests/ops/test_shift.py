"""The temporal shift against its definition."""

import numpy as np
import pytest

from nonlocal_jax import ops
from nonlocal_jax.errors import InputError


@pytest.mark.parametrize("shape", [(2, 5, 3, 4, 19), (1, 1, 16), (2, 3, 4, 8)])
@pytest.mark.parametrize("direction", ["both", "past"])
def test_equals_its_definition(direction, shape, x64):
    x = np.random.default_rng(0).standard_normal(shape)
    frames, fold = shape[1], shape[-1] // 8
    expected = x.copy()
    for t in range(frames):
        later = x[:, t + 1] if t + 1 < frames else np.zeros_like(x[:, 0])
        earlier = x[:, t - 1] if t > 0 else np.zeros_like(x[:, 0])
        parts = [later, earlier] if direction == "both" else [earlier]
        for i, part in enumerate(parts):
            channels = np.s_[..., i * fold : (i + 1) * fold]
            expected[:, t][channels] = part[channels]
    np.testing.assert_array_equal(ops.temporal_shift(x, direction=direction), expected)


@pytest.mark.parametrize("frames", [1, 3])
def test_a_clip_can_be_continued(frames, x64):
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 19))
    whole = ops.temporal_shift(x, direction="past")
    previous = x[:, -frames - 1, :, :2]
    part = ops.temporal_shift(x[:, -frames:], direction="past", previous=previous)
    np.testing.assert_array_equal(part, whole[:, -frames:])


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 4, 8), {"direction": "future"}, "direction is 'future'; use 'both' or 'past'"),
        ((4, 8), {}, r"x has shape \(4, 8\)"),
        ((2, 4, 8), {"division": 1}, "division is 1; use"),
        ((2, 4, 8), {"previous": np.zeros((2, 1))}, "is 'both'; use 'past' with previous"),
        (
            (2, 4, 8),
            {"direction": "past", "previous": np.zeros((2, 2))},
            r"previous has shape \(2, 2\), but x has shape \(2, 4, 8\); use the shape \(2, 1\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(shape, options, message):
    with pytest.raises(InputError, match=message):
        ops.temporal_shift(np.zeros(shape), **options)
