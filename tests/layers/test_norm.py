"""Batch normalization against PyTorch's results, and how norms are applied."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from nonlocal_jax.errors import InputError
from nonlocal_jax.layers import BatchNorm, Constructor, apply_norm
from nonlocal_jax.models.count import equations
from tests.helpers import NORMS


def test_train_and_eval(x64):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 5, 2)) * 3 + 1)
    bn = BatchNorm()
    single = x.astype(jnp.float32)
    variables = bn.init(jax.random.key(0), single, use_running_average=False)
    variables = jax.tree.map(lambda a: a.astype(jnp.float64), variables)
    y, updates = bn.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    flat = np.asarray(x).reshape(-1, 2)
    np.testing.assert_allclose(
        y.reshape(-1, 2), (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5), rtol=1e-10
    )
    # The running variance is unbiased: n / (n - 1) times the variance that normalizes.
    stats = jax.tree.map(np.asarray, updates["batch_stats"])
    np.testing.assert_allclose(stats["mean"], 0.1 * flat.mean(0), rtol=1e-10)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-10)

    z = bn.apply({**variables, **updates}, x, use_running_average=True)
    expected = (flat - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    np.testing.assert_allclose(z.reshape(-1, 2), expected, rtol=1e-10)


def test_initialization_does_not_count_as_a_batch():
    variables = BatchNorm().init(jax.random.key(0), jnp.ones((2, 3)), use_running_average=False)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], 1)


def test_a_large_mean_costs_no_precision():
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1000, 1)) + 1000, jnp.float32)
    bn = BatchNorm()
    variables = bn.init(jax.random.key(0), x, use_running_average=False)
    y, _ = bn.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(y, (wide - wide.mean()) / wide.std(), atol=1e-3)


def test_more_positions_than_int32_can_count():
    x = jax.ShapeDtypeStruct((2**16, 2**15, 1), jnp.float32)

    def run(x):
        return BatchNorm().apply(_statistics((1,)), x, False, mutable=["batch_stats"])

    y, _ = jax.eval_shape(run, x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


def test_statistics_stay_float32_under_bfloat16():
    x = jnp.ones((4, 3), jnp.bfloat16)
    bn = BatchNorm(dtype=jnp.bfloat16)
    variables = bn.init(jax.random.key(0), x, use_running_average=False)
    y, updates = bn.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}


def test_the_statistics_to_use_must_be_chosen():
    with pytest.raises(ValueError, match="use_running_average"):
        BatchNorm().init(jax.random.key(0), jnp.ones((2, 3)))


FROZEN = [functools.partial(norm, use_running_average=True) for norm in (BatchNorm, nn.BatchNorm)]


@pytest.mark.parametrize("norm", FROZEN)
def test_a_frozen_norm_uses_and_keeps_its_statistics(norm):
    x = jax.random.normal(jax.random.key(0), (4, 3)) + 5
    variables = norm().init(jax.random.key(1), x)
    y, updates = nn.apply(
        lambda module: apply_norm(module, x, train=True), norm(), mutable=["batch_stats"]
    )(variables)
    np.testing.assert_allclose(y, x, rtol=1e-4)  # running mean 0 and variance 1
    for old, new in zip(*map(jax.tree.leaves, (variables["batch_stats"], updates)), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "norm",
    [*NORMS, *FROZEN, nn.RMSNorm],
)
@pytest.mark.parametrize("train", [False, True])
def test_every_norm_is_applied_in_the_same_way(norm, train):
    x, mask = jnp.ones((2, 3, 5, 4)), jnp.ones((2, 3, 5), bool)

    def applied(key):
        apply = nn.init_with_output(
            lambda module: apply_norm(module, x, train=train, mask=mask), norm()
        )
        return apply(key)

    y, _ = jax.eval_shape(applied, jax.random.key(0))
    assert y.shape == x.shape


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("transformation", ["vmap", "shard_map"])
def test_statistics_over_devices(transformation, masked, x64):
    """The batch in parts, over a named axis of vmap or over two axes of a mesh."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3, 5)))
    mask = jnp.asarray(np.random.default_rng(1).random((8, 3)) < 0.5).at[:2].set(False)
    mask = jnp.broadcast_to(mask[..., None], x.shape) if masked else None
    variables = jax.tree.map(
        lambda a: jnp.full(a.shape, 0.5),
        jax.eval_shape(lambda: BatchNorm().init(jax.random.key(0), jnp.ones((1, 5)), False)),
    )

    def run(axis_name, variables, x, mask):
        bn = BatchNorm(axis_name=axis_name)
        return bn.apply(variables, x, False, mask, mutable=["batch_stats"])

    if transformation == "vmap":
        parts = jax.tree.map(lambda a: a.reshape(4, 2, *a.shape[1:]), (x, mask))
        each = jax.vmap(functools.partial(run, "part"), in_axes=(None, 0, 0), axis_name="part")
        y, updates = each(variables, *parts)
        y, updates = y.reshape(x.shape), jax.tree.map(lambda a: a[0], updates)
    else:
        axes = ("data", "context")
        split, whole = jax.P(axes), jax.P()
        auto = (AxisType.Auto,) * 2
        mesh = jax.make_mesh((2, 2), axes, auto, devices=jax.devices()[:4])
        y, updates = jax.shard_map(
            functools.partial(run, axes),
            mesh=mesh,
            in_specs=(whole, split, split),
            out_specs=(split, whole),
        )(variables, x, mask)
    expected, expected_updates = run(None, variables, x, mask)
    np.testing.assert_allclose(y, expected, rtol=1e-10)
    for name, array in expected_updates["batch_stats"].items():
        np.testing.assert_allclose(updates["batch_stats"][name], array, rtol=1e-10)


def test_init_ignores_axis_name():
    BatchNorm(axis_name="anything").init(jax.random.key(0), jnp.ones((2, 3)), False)


@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("running", [False, True])
def test_half_precision_parameters_and_gradients(half, running):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 3)), half)
    bn = BatchNorm(param_dtype=half)
    variables = bn.init(jax.random.key(0), x, False)
    assert {a.dtype for a in jax.tree.leaves(variables["params"])} == {jnp.dtype(half)}
    assert {a.dtype for a in jax.tree.leaves(variables["batch_stats"])} == {jnp.dtype("float32")}

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradients(params, x):
        given = {**variables, "params": params}
        y, _ = bn.apply(given, x, running, mutable=["batch_stats"])
        assert y.dtype == half
        return jnp.sum(jnp.sin(y.astype(jnp.float32)))

    for leaf in jax.tree.leaves(gradients(variables["params"], x)):
        assert leaf.dtype == half
        assert np.all(np.isfinite(leaf))


def _statistics(shape):
    return {
        "params": {"scale": jnp.full(shape, 1.5), "bias": jnp.full(shape, 0.5)},
        "batch_stats": {"mean": jnp.full(shape, 0.5), "var": jnp.full(shape, 2.0)},
    }


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("masked", [False, True])
def test_groups_are_normalized_one_by_one(masked):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 3, 4, 5)))
    mask = jnp.asarray(np.random.default_rng(1).random((6, 3, 4, 1)) < 0.5)
    mask = jnp.broadcast_to(mask, x.shape) if masked else None
    variables = _statistics((5,))

    def run(norm, x, mask):
        return norm.apply(variables, x, False, mask, mutable=["batch_stats", "batch_moments"])

    y, updates = run(Constructor(BatchNorm, group_size=2)(), x, mask)
    parts = [
        run(BatchNorm(), x[i : i + 2], None if mask is None else mask[i : i + 2]) for i in (0, 2, 4)
    ]
    np.testing.assert_allclose(y, jnp.concatenate([part for part, _ in parts]), rtol=1e-12)
    mean_of_parts = jax.tree.map(
        lambda *leaves: np.mean(leaves, axis=0), *(own["batch_stats"] for _, own in parts)
    )
    for name, expected in mean_of_parts.items():
        np.testing.assert_allclose(updates["batch_stats"][name], expected, rtol=1e-12)
    if not masked:
        for name, expected in run(BatchNorm(), x, None)[1]["batch_moments"].items():
            np.testing.assert_allclose(updates["batch_moments"][name], expected, rtol=1e-12)
    # A batch that is not larger is one group, and inference has no groups.
    for module in (BatchNorm(group_size=9), BatchNorm(group_size=6)):
        np.testing.assert_array_equal(run(module, x, mask)[0], run(BatchNorm(), x, mask)[0])
    running = [
        norm.apply(variables, x[:5], True) for norm in (BatchNorm(group_size=2), BatchNorm())
    ]
    np.testing.assert_array_equal(*running)


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="a batch of 5 is not a multiple of 2"):
        BatchNorm(group_size=2).init(jax.random.key(0), jnp.ones((5, 3)), False)
    with pytest.raises(InputError, match="group_size=2 and axis_name='a'; use one of them"):
        BatchNorm(group_size=2, axis_name="a").init(jax.random.key(0), jnp.ones((4, 3)), False)


@pytest.mark.parametrize(
    ("group_size", "communicates"), [(2, False), (4, False), (8, True), (None, True)]
)
def test_groups_within_a_device_need_no_communication(group_size, communicates):
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])
    split = jax.NamedSharding(mesh, jax.P("data"))
    norm, variables = BatchNorm(group_size=group_size), _statistics((5,))
    x = jax.device_put(np.random.default_rng(0).standard_normal((16, 3, 5), np.float32), split)

    def normalize(x):
        return norm.apply(variables, x, False, mutable=["batch_stats"])[0]

    compiled = jax.jit(normalize, out_shardings=split).lower(x).compile()
    text = compiled.as_text()
    assert any(name in text for name in ("all-reduce", "all-gather")) == communicates
    np.testing.assert_allclose(compiled(x), normalize(np.asarray(x)), rtol=1e-4, atol=1e-5)


def test_moments_are_stored_only_on_request():
    norm, x = BatchNorm(), jnp.ones((2, 3))
    assert set(norm.init(jax.random.key(0), x, False)) == {"params", "batch_stats"}
    _, updates = norm.apply(_statistics((3,)), x, False, mutable=["batch_stats"])
    assert set(updates) == {"batch_stats"}


@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_are_those_of_the_formula(masked, x64):
    rng = np.random.default_rng(0)
    x, dx, dy = (jnp.asarray(rng.standard_normal((2, 3, 4, 2)) + 1) for _ in range(3))
    mask = jnp.broadcast_to(rng.random((2, 3, 4, 1)) > 0.3, x.shape) if masked else None
    params = {"scale": jnp.array([0.5, 2.0]), "bias": jnp.array([1.0, -1.0])}

    def layer(params, x):
        stats = {"mean": jnp.zeros(2), "var": jnp.ones(2)}
        variables = {"params": params, "batch_stats": stats}
        options = {"use_running_average": False, "mutable": ["batch_stats"], "mask": mask}
        y, updates = BatchNorm(dtype=jnp.float64).apply(variables, x, **options)
        return jnp.sum(y**2 * dy) + sum(jnp.sum(a**2) for a in jax.tree.leaves(updates))

    def formula(params, x):
        n = x[..., 0].size if mask is None else jnp.sum(mask[..., 0], dtype=float)
        mean = jnp.sum(x, (0, 1, 2), where=mask) / n
        var = jnp.sum((x - mean) ** 2, (0, 1, 2), where=mask) / n
        y = (x - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"]
        running = 0.1 * mean, 0.9 + 0.1 * var * n / (n - 1)
        return jnp.sum(y**2 * dy) + sum(jnp.sum(a**2) for a in running)

    def derivatives(f):
        gradient = jax.grad(f, (0, 1))

        def product(params, x):
            return jnp.sum(gradient(params, x)[1] * dx)

        tangents = jax.tree.map(jnp.ones_like, params), dx
        return (
            jax.jvp(f, (params, x), tangents),
            jax.jvp(gradient, (params, x), tangents),
            jax.grad(product, (0, 1))(params, x),
        )

    close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
    with jax.numpy_rank_promotion("allow"):
        jax.tree.map(close, derivatives(layer), derivatives(formula))


def test_the_gradient_has_one_pass_of_sums_over_an_input_in_its_own_type():
    """All sums read x and dy, and none another sum, so that XLA computes them together."""
    x = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.bfloat16)
    bn = BatchNorm(dtype=jnp.bfloat16)
    variables = jax.eval_shape(lambda x: bn.init(jax.random.key(0), x, False), x)

    def gradient(variables, x):
        apply = functools.partial(bn.apply, use_running_average=False, mutable=["batch_stats"])
        y, pullback, _ = jax.vjp(apply, variables, x, has_aux=True)
        return pullback(y)

    program = [e for e, *_ in equations(jax.make_jaxpr(gradient)(variables, x).jaxpr)]
    sums = [e for e in program if e.primitive.name == "reduce_sum"]
    assert sum(e.invars[0].aval.shape == x.shape for e in sums) == 2 + 4
    barriers = [e for e in program if e.primitive.name == "optimization_barrier"]
    assert [e.outvars[0].aval.dtype for e in barriers] == [jnp.bfloat16] * 2  # of dy and of x
