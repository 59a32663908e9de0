"""All operations against their formulas, written in NumPy with loops over positions."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlocal_jax import ops
from nonlocal_jax.errors import InputError


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def softmax(s):
    e = np.exp(s - np.max(s))
    return e / e.sum()


def pairwise_reference(f, theta, phi, g):
    """y_i = sum_j f(theta_i, phi)_j g_j, one query at a time."""
    return np.stack([sum(w * g_j for w, g_j in zip(f(t, phi), g, strict=True)) for t in theta])


@pytest.fixture(params=[lambda op: op, jax.jit], ids=["eager", "jit"])
def compiled(request, x64):
    """A transformation of an operation: none, or ``jax.jit``. In float64."""
    return request.param


@pytest.mark.parametrize("sizes", [(7, 5), (1, 4), (300, 3)])
@pytest.mark.parametrize("implementation", ["dense", "chunked", "auto"])
def test_softmax(compiled, implementation, sizes):
    n, m = sizes
    theta, phi, g = draw(0, (n, 4), (m, 4), (m, 3))
    op = compiled(lambda *a: ops.softmax_attention(*a, scale=0.7, implementation=implementation))
    expected = pairwise_reference(lambda t, phi: softmax([0.7 * t @ p for p in phi]), theta, phi, g)
    np.testing.assert_allclose(op(theta, phi, g), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("implementation", ["dense", "reassociated", "auto"])
def test_dot_product(compiled, implementation):
    theta, phi, g = draw(1, (6, 4), (5, 4), (5, 3))
    expected = pairwise_reference(lambda t, phi: [t @ p / 5 for p in phi], theta, phi, g)
    op = compiled(lambda *a: ops.dot_product(*a, implementation=implementation))
    np.testing.assert_allclose(op(theta, phi, g), expected, 1e-12)


@pytest.mark.parametrize("implementation", ["dense", "sorted", "auto"])
def test_concatenation(compiled, implementation):
    theta, phi, g, w = draw(2, (6, 4), (5, 4), (5, 3), (8,))
    expected = pairwise_reference(
        lambda t, phi: [max(w @ np.concatenate([t, p]), 0) / 5 for p in phi], theta, phi, g
    )
    op = compiled(lambda *a: ops.concatenation(*a, implementation=implementation))
    np.testing.assert_allclose(op(theta @ w[:4], phi @ w[4:], g), expected, 1e-12)


def test_disentangled(compiled):
    theta, phi, g, unary = draw(3, (6, 4), (5, 4), (5, 3), (5,))
    mean_t, mean_p = theta.mean(0), phi.mean(0)
    expected = pairwise_reference(
        lambda t, phi: softmax([9 * (t - mean_t) @ (p - mean_p) for p in phi]) + softmax(unary),
        theta,
        phi,
        g,
    )
    actual = compiled(lambda *a: ops.disentangled(*a, scale=9.0))(theta, phi, g, unary)
    np.testing.assert_allclose(actual, expected, 1e-12)


def test_context_pool(compiled):
    x, score = draw(4, (2, 5, 3), (2, 5))
    weights = np.stack([softmax(s) for s in score])
    expected = (weights[..., None] * x).sum(1, keepdims=True)
    pool = compiled(ops.context_pool)
    np.testing.assert_allclose(pool(x, score), expected, 1e-12)
    np.testing.assert_allclose(pool(x), x.mean(1, keepdims=True), 1e-12)


def arguments(operation, seed, leading, n, m, c, d, ties=False):
    theta, phi, g = draw(seed, (*leading, n, c), (*leading, m, c), (*leading, m, d))
    if operation == "concatenation":
        theta, phi = theta[..., 0], phi[..., 0]
    # Multiples of one half: scores repeat, and a_i + b_j is often zero.
    return [np.round(2 * x) / 2 if ties else x for x in (theta, phi, g)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_gradients(operation, implementation, given, mask=None):
    """The output, and the gradients of its sum of squares."""
    op = functools.partial(getattr(ops, operation), implementation=implementation, mask=mask)
    y, vjp = jax.vjp(op, *given)
    return y, *vjp(2 * y)


def assert_equals_dense(operation, implementation, given, mask=None):
    dense = value_and_gradients(operation, "dense", given, mask)
    other = value_and_gradients(operation, implementation, given, mask)
    sizes = [float(jnp.max(jnp.abs(expected))) for expected in dense]
    for expected, actual, size in zip(dense, other, sizes, strict=True):
        # With a single key the gradients of the logits are zero by algebra.
        size = max(size, 1e-3 * max(sizes))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * size)


# Those that run on all platforms; kernels are tested in test_kernels.py.
IMPLEMENTATIONS = [
    ("softmax_attention", "chunked"),
    ("dot_product", "reassociated"),
    ("concatenation", "sorted"),
]


@pytest.mark.parametrize(("operation", "implementation"), IMPLEMENTATIONS)
@given(
    n=st.integers(1, 300),
    m=st.integers(1, 300),
    leading=st.sampled_from([(), (2,), (2, 3)]),
    widths=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    ties=st.booleans(),
    real=st.sampled_from([None, 0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=15, deadline=None)
def test_implementations_equal_the_dense_one(
    operation, implementation, n, m, leading, widths, ties, real, seed
):
    """``real`` is the fraction of the keys that are not padding."""
    with jax.enable_x64(True):
        given = arguments(operation, seed, leading, n, m, *widths, ties)
        rng = np.random.default_rng(seed)
        mask = None if real is None else rng.random((*leading, m)) < real
        assert_equals_dense(operation, implementation, given, mask)


@pytest.mark.parametrize("n", [4097, pytest.param(9409, marks=pytest.mark.large)])
@pytest.mark.parametrize(("operation", "implementation"), IMPLEMENTATIONS)
def test_implementations_equal_the_dense_one_at_size(operation, implementation, n, x64):
    given = arguments(operation, 11, (), n, n, 4, 4)
    assert_equals_dense(operation, implementation, given)


@pytest.mark.parametrize("operation", [*ops.IMPLEMENTATIONS, "disentangled", "context_pool"])
def test_padding_changes_nothing(operation, x64):
    """Maps of 7 and 4 positions in one batch, with NaN in the padding, against each by itself."""
    theta, phi, g, unary = draw(9, (2, 7, 3), (2, 7, 3), (2, 7, 2), (2, 7))
    mask = np.arange(7) < np.array([[7], [4]])
    options = {"mask": mask}
    if operation == "context_pool":
        given = [g, unary]
    elif operation == "concatenation":
        given = [theta[..., 0], phi[..., 0], g]
    elif operation == "disentangled":
        given = [theta, phi, g, unary]
        options["query_mask"] = mask
    else:
        given = [theta, phi, g]
    op = getattr(ops, operation)
    padded = [np.where(mask if x.ndim == 2 else mask[..., None], x, np.nan) for x in given]
    # The outputs of padded queries are undefined.
    shared = operation == "context_pool"

    def loss(*given):
        y = op(*given, **options)
        return jnp.sum(jnp.square(y if shared else jnp.where(mask[..., None], y, 0)))

    y = op(*padded, **options)
    if operation in ops.IMPLEMENTATIONS:  # they have no mask of the queries
        padded[0] = given[0]
    gradients = jax.grad(loss, range(len(given)))(*padded)
    for i, size in enumerate((7, 4)):
        single = [x[i, :size] for x in given]
        expected, vjp = jax.vjp(op, *single)
        actual = y[i] if shared else y[i, :size]
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)
        for actual, wanted in zip(gradients, vjp(2 * expected), strict=True):
            np.testing.assert_allclose(actual[i, :size], wanted, rtol=1e-10, atol=1e-12)
            np.testing.assert_array_equal(actual[i, size:], 0)


def test_wrong_masks_are_refused():
    x, unary = jnp.zeros((2, 5, 3)), jnp.zeros((2, 5))
    with pytest.raises(InputError, match=r"mask has shape \(5,\).*use \(2, 5\)"):
        ops.softmax_attention(x, x, x, mask=jnp.ones(5, bool))
    with pytest.raises(InputError, match="mask has dtype float32; use bool"):
        ops.context_pool(x, unary, mask=jnp.ones((2, 5)))
    with pytest.raises(InputError, match=r"^mask is given, but query_mask is None.*pass both"):
        ops.disentangled(x, x, x, unary, mask=jnp.ones((2, 5), bool))


@pytest.mark.parametrize("offset", [9.0, -9.0, 0.0])
def test_sorting_scores_that_are_all_active_inactive_or_zero(offset, x64):
    a, b, g = arguments("concatenation", 12, (2,), 40, 30, 1, 3)
    given = (a + offset, b + offset, g) if offset else (0 * a, 0 * b, g)
    assert_equals_dense("concatenation", "sorted", given)


@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_prefix_sums_are_as_accurate_as_the_dense_implementation(offset):
    """The error of 100,352 positions in float32 is at most that of the dense implementation."""
    a, b, g = arguments("concatenation", 13, (), 100_352, 100_352, 1, 2)
    given = [x.astype(np.float32) for x in (a - offset, b + offset, g)]
    rows = slice(None, None, 784)
    with jax.enable_x64(True):
        wide = [x.astype(np.float64) for x in given]
        exact = np.asarray(ops.concatenation(wide[0][rows], *wide[1:], implementation="dense"))
    sampled = (given[0][rows], *given[1:])
    dense = np.asarray(ops.concatenation(*sampled, implementation="dense"))
    fast = np.asarray(ops.concatenation(*given, implementation="sorted"))[rows]
    assert np.max(np.abs(fast - exact)) <= np.max(np.abs(dense - exact))


@pytest.mark.parametrize("operation", ops.IMPLEMENTATIONS)
def test_auto_materializes_small_matrices_only(operation):
    def largest_intermediate(n):
        scores = [jax.ShapeDtypeStruct((n,), jnp.float32)] * 2
        maps = [jax.ShapeDtypeStruct((n, 64), jnp.float32)] * 2
        first = scores if operation == "concatenation" else maps
        jaxpr = jax.make_jaxpr(getattr(ops, operation))(*first, maps[0])
        return max(v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars)

    assert largest_intermediate(64) == 64**2
    assert largest_intermediate(4096) < 4096**2 / 8


@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_half_precision_keeps_float32_logits(implementation):
    theta, phi, g = (jnp.asarray(a, jnp.bfloat16) for a in draw(5, (64, 16), (64, 16), (64, 4)))
    # Logits around 50: rounded to bfloat16 they would be off by 0.2.
    y = ops.softmax_attention(theta, phi, g, scale=4.0, implementation=implementation)
    wide = ops.softmax_attention(
        *(a.astype(jnp.float32) for a in (theta, phi, g)), scale=4.0, implementation="dense"
    )
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), wide, atol=0.01, rtol=0.01)


@pytest.mark.parametrize(
    ("operation", "implementation"),
    [
        ("dot_product", "dense"),
        ("dot_product", "reassociated"),
        ("concatenation", "dense"),
        ("concatenation", "sorted"),
        ("context_pool", None),
    ],
)
@pytest.mark.parametrize("real", [1000, 700])
def test_half_precision_is_summed_in_float32(operation, implementation, real):
    """Only the result is rounded to bfloat16; sums in bfloat16 would have errors of 1e-3."""
    given = [jnp.asarray(x, jnp.bfloat16) for x in arguments("dot_product", 17, (), 40, 1000, 8, 4)]
    op = functools.partial(getattr(ops, operation), mask=np.arange(1000) < real)
    if operation == "context_pool":
        given = [given[2], given[1][:, 0]]
    else:
        op = functools.partial(op, implementation=implementation)
    if operation == "concatenation":
        given = [given[0][:, 0], given[1][:, 0], given[2]]
    y = op(*given)
    with jax.enable_x64(True):
        exact = np.asarray(op(*(np.asarray(x, np.float64) for x in given)))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(y, np.float64), exact, rtol=2**-8, atol=1e-4 * np.abs(exact).max()
    )


def test_disentangled_whitens_in_float32():
    # At an offset of 100, bfloat16 has a resolution of 0.5.
    theta, phi, g, unary = draw(6, (32, 8), (32, 8), (32, 4), (32,))
    half = [jnp.asarray(a, jnp.bfloat16) for a in (theta + 100, phi + 100, g, unary)]
    expected = ops.disentangled(*(a.astype(jnp.float32) for a in half), scale=5.0)
    actual = ops.disentangled(*half, scale=5.0).astype(jnp.float32)
    np.testing.assert_allclose(actual, expected, atol=0.03)


def test_attention_weights_of_real_keys(x64):
    theta, phi = draw(18, (2, 6, 4), (2, 7, 4))
    mask = np.arange(7) < np.array([[7], [4]])
    padded = np.where(mask[..., None], phi, 1e9)
    weights = ops.attention_weights(theta, padded, scale=0.5, mask=mask)
    for i, size in enumerate((7, 4)):
        single = ops.attention_weights(theta[i], phi[i, :size], scale=0.5)
        np.testing.assert_allclose(weights[i, :, :size], single, rtol=1e-12)
        np.testing.assert_array_equal(weights[i, :, size:], 0)


def test_attention_weights_of_chosen_queries(x64):
    theta, phi = draw(7, (2, 50, 4), (2, 40, 4))
    everything = ops.attention_weights(theta, phi, scale=0.5)
    np.testing.assert_allclose(everything.sum(-1), 1, rtol=1e-12)
    chosen = ops.attention_weights(theta[:, [3, 9]], phi, scale=0.5)
    np.testing.assert_allclose(chosen, everything[:, [3, 9]], rtol=1e-12)


def test_large_logits_do_not_overflow():
    theta, phi, g = (jnp.asarray(a, jnp.float32) for a in draw(8, (9, 4), (9, 4), (9, 2)))
    y, grads = jax.value_and_grad(
        lambda t: ops.softmax_attention(t, phi, g, scale=1e4, implementation="chunked").sum()
    )(theta)
    chex.assert_tree_all_finite((y, grads))


@pytest.mark.parametrize(("operation", "implementation"), IMPLEMENTATIONS)
@pytest.mark.parametrize("types", [("f4", "f4", "f8"), ("f4", "f8", "f4"), ("f2", "f4", "f8")])
def test_gradients_have_the_types_of_the_arguments(operation, implementation, types, x64):
    given = arguments(operation, 14, (), 30, 20, 4, 4)
    given = [x.astype(t) for x, t in zip(given, types, strict=True)]
    with jax.numpy_dtype_promotion("standard"):
        _, *gradients = value_and_gradients(operation, implementation, given)
    assert [x.dtype for x in gradients] == list(types)


@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_the_scale_may_be_learned(implementation, x64):
    given = arguments("softmax_attention", 15, (), 300, 20, 4, 4)

    def loss(scale):
        y = ops.softmax_attention(*given, scale=scale, implementation=implementation)
        return jnp.sum(jnp.sin(y))

    slope = (loss(0.7 + 1e-5) - loss(0.7 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(loss)(0.7), slope, rtol=1e-6)


def test_large_logits_keep_their_digits():
    """Gradients of logits in the thousands: at most twice the error of the dense implementation."""
    given = [x.astype(np.float32) for x in arguments("softmax_attention", 16, (), 400, 300, 8, 4)]
    given[0] *= 300
    with jax.enable_x64(True):
        wide = [x.astype(np.float64) for x in given]
        exact = jax.device_get(value_and_gradients("softmax_attention", "dense", wide))
    dense, fast = (
        jax.device_get(value_and_gradients("softmax_attention", implementation, given))
        for implementation in ("dense", "chunked")
    )
    for e, d, f in zip(exact, dense, fast, strict=True):
        assert np.linalg.norm(f - e) <= 2 * np.linalg.norm(d - e)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4,), (4, 2), (4, 2)), r"use theta \[..., N, C\]"),
        (((4, 3), (4, 2), (4, 2)), r"theta has shape \(4, 3\), phi \(4, 2\).* number of channels"),
        (((4, 3), (5, 3), (4, 2)), r"same number of positions M"),
        (((2, 4, 3), (5, 3), (5, 2)), r"same leading dimensions"),
        (((4, 3), (0, 3), (0, 2)), r"at least one query and one key"),
    ],
)
@pytest.mark.parametrize("op", [ops.softmax_attention, ops.dot_product])
def test_wrong_shapes_are_quoted(op, shapes, message):
    with pytest.raises(InputError, match=message):
        op(*(jnp.zeros(shape) for shape in shapes))


def test_unknown_implementation_is_refused():
    x = jnp.zeros((3, 2))
    message = "softmax_attention is 'fast'; use one of auto, dense, .* flash, cudnn"
    with pytest.raises(InputError, match=message):
        ops.softmax_attention(x, x, x, implementation="fast")
    with pytest.raises(
        InputError, match=r"dot_product is 'chunked'; use one of auto, dense, reassoc"
    ):
        ops.dot_product(x, x, x, implementation="chunked")


def test_score_must_fit_the_positions():
    with pytest.raises(InputError, match=r"score has shape \(2, 4\).*use \(2, 5\)"):
        ops.context_pool(jnp.zeros((2, 5, 3)), jnp.zeros((2, 4)))


def test_a_key_of_very_low_score_leaves_the_others_alone():
    rng = np.random.default_rng(0)
    a, b, g = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in (600, 600, (600, 2)))
    b = b.at[5].set(-1e9)
    expected = ops.concatenation(a, b, g, implementation="dense")
    actual = ops.concatenation(a, b, g, implementation="sorted")
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * jnp.max(jnp.abs(expected)))


def test_an_empty_batch():
    x = jnp.zeros((0, 300, 4))
    assert ops.softmax_attention(x, x, x, implementation="chunked").shape == x.shape
