"""The sorted concatenation against the dense one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from nonlocal_jax import ops

N, D = 4096, 8
ALL = (0, 1, 2)  # the arguments a, b and g


def apply(*arguments, implementation="sorted"):
    return ops.concatenation(*arguments, implementation=implementation)


def loss(*arguments, implementation="sorted"):
    return jnp.sum(jnp.sin(3 * apply(*arguments, implementation=implementation)))


dense = functools.partial(apply, implementation="dense")
dense_loss = functools.partial(loss, implementation="dense")


def draw(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def assert_close(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype == np.float64
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-12 * np.max(np.abs(e)))


def outlier(x, size):
    return np.where(np.arange(x.size) == 7, size, x)


def every_second(x, offset):
    return x + offset * (np.arange(x.size) % 2)


SCORES = {
    "normal": lambda a, b: (a, b),
    "a large query": lambda a, b: (outlier(a, 1e4), b),
    "a large query and inactive keys": lambda a, b: (outlier(a, 1e4), every_second(b, -1e3)),
    "a large key": lambda a, b: (a, outlier(b, 1e4)),
    "a large key and inactive queries": lambda a, b: (every_second(a, -1e3), outlier(b, 1e4)),
    "opposite offsets": lambda a, b: (a - 50, b + 50),
    "two groups of keys": lambda a, b: (a, every_second(b, 1e3)),
    "ties": lambda a, b: (np.round(2 * a) / 2, np.round(2 * b) / 2),
    "all active": lambda a, b: (np.abs(a), np.abs(b)),
    "none active": lambda a, b: (-np.abs(a), -np.abs(b)),
}


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(f, a, b, g, dy):
    y, vjp = jax.vjp(f, a, b, g)
    return y, *vjp(dy)


def row_errors(actual, exact):
    """The largest error of each row, relative to the row, or to the median row if it is larger."""
    exact, actual = (np.asarray(x, np.float64).reshape(N, -1) for x in (exact, actual))
    sizes = np.sqrt(np.mean(exact**2, axis=1))
    return np.max(np.abs(actual - exact), axis=1) / (np.maximum(sizes, np.median(sizes)) + 1e-30)


@pytest.mark.parametrize("scores", SCORES)
def test_float32_is_as_accurate_as_dense(scores):
    """In each row, so that an outlying score costs the others nothing."""
    a, b, g, dy = draw((N,), (N,), (N, D), (N, D))
    narrow = [x.astype(np.float32) for x in (*SCORES[scores](a, b), g, dy)]
    with jax.enable_x64(True):
        wide = [x.astype(np.float64) for x in narrow]
        exact = value_and_gradients(dense, *wide)
        for actual, expected in zip(value_and_gradients(apply, *wide), exact, strict=True):
            assert np.max(row_errors(actual, expected)) < 1e-12
    for e, s, d in zip(
        exact,
        value_and_gradients(apply, *narrow),
        value_and_gradients(dense, *narrow),
        strict=True,
    ):
        assert np.max(row_errors(s, e)) <= 3 * np.max(row_errors(d, e))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", range(4))
def test_what_is_not_finite_reaches_only_the_rows_that_it_reaches_in_dense(place, value):
    for seed in range(5):
        given = [x.astype(np.float32) for x in draw((70,), (90,), (90, 2), (70, 2), seed=seed)]
        given[place].flat[seed * 7] = value
        finite = [[np.isfinite(x) for x in value_and_gradients(f, *given)] for f in (dense, apply)]
        for in_dense, in_sorted in zip(*finite, strict=True):
            assert np.all(in_sorted >= in_dense)
        if place < 2:  # nothing is hidden
            assert np.isfinite(value_and_gradients(apply, *given)[0]).all() == finite[0][0].all()


def test_a_nan_query_leaves_the_other_rows_alone(x64):
    a, b, g = map(jnp.asarray, draw((40,), (50,), (50, 3)))
    actual, expected = np.array(apply(a.at[7].set(jnp.nan), b, g)), np.array(apply(a, b, g))
    assert np.isnan(actual[7]).all()
    np.testing.assert_array_equal(np.delete(actual, 7, 0), np.delete(expected, 7, 0))


@pytest.mark.parametrize("sizes", [(1, 40), (40, 1), (33, 64)])
def test_second_derivatives(sizes, x64):
    n, m = sizes
    given, tangents = (tuple(draw((2, n), (2, m), (2, m, 3), seed=s)) for s in (1, 2))

    def forward(f):
        return jax.jvp(jax.grad(f, ALL), given, tangents)

    def reverse(f):
        return jax.grad(lambda *x: sum(jnp.sum(jnp.cos(y)) for y in jax.grad(f, ALL)(*x)), ALL)(
            *given
        )

    for derivative in (forward, reverse):
        assert_close(jax.jit(derivative, static_argnums=0)(loss), derivative(dense_loss))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_partly_manual_mesh(kind, x64):
    given = draw((4, 70), (4, 45), (4, 45, 3))
    mesh = jax.make_mesh((2, 4), ("data", "model"), (kind,) * 2)
    split = jax.shard_map(
        apply, mesh=mesh, in_specs=P("data"), out_specs=P("data"), axis_names={"data"}
    )

    def split_loss(*given):
        return jnp.sum(jnp.sin(3 * split(*given)))

    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in given]
        y = jax.jit(split)(*placed)
        gradients = jax.jit(jax.grad(split_loss, ALL))(*placed)
    assert_close(y, dense(*given))
    assert_close(gradients, jax.grad(dense_loss, ALL)(*given))


@pytest.mark.parametrize("axes", ["data", ("data", "model")])
def test_a_mesh_with_explicit_axes(axes, x64):
    given = draw((8, 70), (8, 45), (8, 45, 3))
    mesh = jax.make_mesh((2, 4), ("data", "model"), (AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, P(axes))) for x in given]
        y = jax.jit(apply)(*placed)
        assert jax.typeof(y).sharding.spec[0] == axes
        gradients = jax.jit(jax.grad(loss, ALL))(*placed)
    assert_close(y, dense(*given))
    assert_close(gradients, jax.grad(dense_loss, ALL)(*given))


def test_one_export_for_all_sizes(x64):
    """Queries are all positions of a map, keys are the maxima of windows of two by two."""

    def attend(x, op):
        b, h, w, c = x.shape
        windows = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)
        keys = windows.max((2, 4)).reshape(b, (h // 2) * (w // 2), c)
        return op(x[..., 0].reshape(b, h * w), keys[..., 1], keys)

    def sorted_gradient(x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(attend(x, apply))))(x)

    def dense_gradient(x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(attend(x, dense))))(x)

    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, h, w, 3"), jnp.float64)
    platforms = "cpu", "tpu"
    for f, expected in (
        (lambda x: attend(x, apply), lambda x: attend(x, dense)),
        (sorted_gradient, dense_gradient),
    ):
        exported = export.export(jax.jit(f), platforms=platforms)(shape)
        for size in ((1, 2, 2), (2, 9, 12), (1, 40, 31)):
            (x,) = draw((*size, 3))
            assert_close(exported.call(x), expected(x))
