"""Cross entropy in blocks of columns against all resized logits at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from nonlocal_jax import ops
from nonlocal_jax.errors import InputError


def draw(seed, batch, size, new_size, classes):
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([*range(classes), 255], np.uint8), (batch, *new_size))
    return jnp.asarray(rng.standard_normal((batch, *size, classes))), jnp.asarray(labels)


def dense(logits, labels, align_corners):
    """The definition: resize everything, then pick the label's log-probability."""
    logits = ops.resize(logits, labels.shape[1:], align_corners=align_corners)
    counted = labels != 255
    picked = jnp.where(counted, labels, 0)[..., None].astype(int)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), picked, axis=-1)[..., 0]
    correct = jnp.argmax(logits, axis=-1) == labels.astype(int)
    return jnp.sum(losses, where=counted), jnp.sum(correct, where=counted)


def blocks(logits, labels, align_corners):
    return ops.upsampled_cross_entropy(
        logits, labels, ignore_index=255, align_corners=align_corners
    )


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("size", "new_size"),
    [
        ((4, 32), (32, 256)),
        ((3, 33), (17, 257)),
        ((97, 97), (769, 769)),
        ((2, 5), (9, 130)),
        ((1, 1), (3, 300)),
        ((40, 300), (7, 200)),
        ((5, 6), (5, 6)),
    ],
)
def test_blocks_equal_the_definition(size, new_size, align_corners, x64):
    logits, labels = draw(0, 2, size, new_size, 5)
    (expected, right), gradient = jax.value_and_grad(dense, has_aux=True)(
        logits, labels, align_corners
    )
    together = jax.jit(jax.value_and_grad(blocks, has_aux=True), static_argnums=2)
    (actual, correct), actual_gradient = together(logits, labels, align_corners)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    np.testing.assert_allclose(blocks(logits, labels, align_corners)[0], expected, rtol=1e-12)
    assert correct == right == blocks(logits, labels, align_corners)[1]
    scale = float(jnp.max(jnp.abs(gradient)))
    np.testing.assert_allclose(actual_gradient, gradient, rtol=0, atol=1e-12 * scale)


def test_gradient_scales_with_the_cotangent(x64):
    logits, labels = draw(1, 1, (3, 40), (24, 320), 4)
    gradient = jax.grad(lambda x: blocks(x, labels, False)[0])(logits)
    tripled = jax.grad(lambda x: 3 * blocks(x, labels, False)[0])(logits)
    np.testing.assert_allclose(tripled, 3 * gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_resized_in_float32(dtype):
    logits, labels = draw(2, 1, (4, 32), (32, 256), 4)
    half = logits.astype(dtype)
    (loss, _), gradient = jax.value_and_grad(blocks, has_aux=True)(half, labels, False)
    assert (loss.dtype, gradient.dtype) == (jnp.float32, dtype)
    np.testing.assert_allclose(loss, blocks(half.astype(jnp.float32), labels, False)[0], rtol=1e-6)


def test_full_size_logits_are_never_materialized():
    logits, labels = draw(3, 1, (64, 128), (512, 1024), 19)
    gradient = jax.jit(jax.grad(lambda x: blocks(x, labels, False)[0]))
    memory = gradient.lower(logits).compile().memory_analysis()
    assert memory.temp_size_in_bytes < labels.size * 19 * 4


def test_wrong_shapes_are_quoted():
    for logits, labels in (((2, 4, 4, 3), (1, 8, 8)), ((4, 4, 3), (1, 8, 8))):
        with pytest.raises(InputError, match=r"use logits \[B, h, w, classes\]") as error:
            blocks(jnp.zeros(logits), jnp.zeros(labels, int), False)
        assert f"logits has shape {logits} and labels has shape {labels}" in str(error.value)


@pytest.mark.parametrize("wrong", [5, 254, -1])
def test_a_label_that_is_no_class_makes_the_loss_nan(wrong, x64):
    logits, labels = draw(4, 2, (4, 40), (16, 300), 5)
    labels = labels.astype(jnp.int16)
    unknown = labels.at[1, 3, 200].set(wrong)
    (loss, _), gradient = jax.value_and_grad(blocks, has_aux=True)(logits, unknown, False)
    assert np.isnan(loss)
    assert np.isnan(blocks(logits, unknown, False)[0])
    without = jax.grad(lambda x: blocks(x, labels.at[1, 3, 200].set(255), False)[0])(logits)
    np.testing.assert_allclose(gradient, without, rtol=0, atol=1e-15)


def test_any_label_may_be_the_ignored_one():
    logits, labels = draw(5, 1, (3, 4), (6, 9), 4)
    for ignored in (0, -100, 7):
        marked = jnp.where(labels == 255, ignored, labels.astype(jnp.int32))
        loss, correct = ops.upsampled_cross_entropy(logits, marked, ignore_index=ignored)
        expected = blocks(logits, jnp.where(marked == ignored, 255, marked), False)
        assert (loss, correct) == expected
        assert np.isfinite(loss)


@pytest.mark.parametrize("dtype", [jnp.float32, bool])
def test_labels_must_be_integers(dtype):
    with pytest.raises(InputError, match=f"labels has dtype {jnp.dtype(dtype)}; use integers"):
        blocks(jnp.zeros((1, 2, 2, 3)), jnp.zeros((1, 4, 4), dtype), False)


def test_logits_must_be_floating_point():
    with pytest.raises(InputError, match="logits has dtype int32; convert it to a floating type"):
        blocks(jnp.zeros((1, 2, 2, 3), jnp.int32), jnp.zeros((1, 4, 4), int), False)


@pytest.mark.parametrize("spec", [P(("data", "height")), P("data", "height")])
def test_split_batches_and_rows(spec, x64):
    """The loop over blocks of columns does not communicate."""
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((8, 4, 40, 3)), rng.integers(0, 3, (8, 32, 320))
    gradient = jax.jit(jax.value_and_grad(blocks, has_aux=True), static_argnums=2)
    (expected, right), whole = gradient(*arrays, False)
    mesh = jax.make_mesh((4, 2), ("data", "height"), (AxisType.Auto,) * 2)
    arrays = jax.device_put(arrays, NamedSharding(mesh, spec))
    compiled = gradient.lower(*arrays, False).compile()
    (loss, correct), split = compiled(*arrays)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(split, whole, rtol=0, atol=1e-12)
    assert correct == right
    # The entry computation communicates. The body of the loop is another computation.
    for computation in compiled.as_text().split("\n\n"):
        communicates = "all-reduce(" in computation or "all-gather(" in computation
        assert not communicates or "\nENTRY" in "\n" + computation, computation[:2000]
