"""Every operation with its positions split over 1, 2, 4 and 8 devices; a process of its own."""

_COMPARE = """
import functools
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from nonlocal_jax import ops

rng = np.random.default_rng(0)
theta, phi, g = (rng.standard_normal((2, n, c)) for n, c in ((48, 5), (32, 5), (32, 3)))
queries = rng.standard_normal((2, 48))
scores = rng.standard_normal((2, 32))
masks = [None, rng.random((2, 32)) < 0.6]
masks[1][0, :16] = False  # whole devices hold nothing but padding
query_mask = rng.random((2, 48)) < 0.6
OPERATIONS = {
    **{
        ("softmax_attention", form): (theta, phi, g)
        for form in ("auto", "ring", "chunked")
    },
    **{("disentangled", form): (theta, phi, g, scores) for form in ("auto", "ring")},
    **{("dot_product", form): (theta, phi, g) for form in ("reassociated", "dense")},
    **{("concatenation", form): (queries, scores, g) for form in ("sorted", "dense")},
    ("context_pool", None): (g, scores),
    ("channel_whiten", None): (theta,),
}

def outputs(op, given, mask, query_mask):
    options = {"mask": mask} if query_mask is None else {"mask": mask, "query_mask": query_mask}
    y, vjp = jax.vjp(lambda *given: op(*given, **options), *given)
    return y, *vjp(jnp.cos(y))

# How many devices, and whether shard_map follows what varies over them.
WAYS = [(1, True), (2, True), (4, True), (8, True), (4, False)]
assert jax.device_count() == 8
for (name, form), given in OPERATIONS.items():
    op = functools.partial(getattr(ops, name), **({"implementation": form} if form else {}))
    for mask in masks[: 1 if name == "channel_whiten" else None]:
        extra = query_mask if mask is not None and name == "disentangled" else None
        expected = jax.jit(functools.partial(outputs, op))(given, mask, extra)
        for devices, check in WAYS[:4] if mask is None else WAYS[3:]:
            mesh = jax.make_mesh((devices,), ("context",), devices=jax.devices()[:devices],
                                 axis_types=(jax.sharding.AxisType.Auto,))
            whole = name == "context_pool"  # one vector, on every device
            split = lambda x: P(None, "context")

            def sharded(*given, mask=mask, query_mask=None):
                def body(given, mask, query_mask):
                    options = {} if query_mask is None else {"query_mask": query_mask}
                    return op(*given, mask=mask, axis_name="context", **options)
                return jax.shard_map(
                    body, mesh=mesh, in_specs=(jax.tree.map(split, given), P(None, "context"),
                    P(None, "context")), out_specs=P() if whole else P(None, "context"),
                    check_vma=check,
                )(given, mask, query_mask)

            actual = jax.jit(functools.partial(outputs, sharded))(given, mask, extra)
            largest = max(jnp.max(jnp.abs(e)) for e in expected)
            for e, a in zip(expected, actual, strict=True):
                assert a.dtype == np.float64
                error = jnp.max(jnp.abs(a - e)) / largest
                assert error <= 1e-10, (name, form, devices, check, mask is None, error)
"""


def test_operations_over_devices_are_those_of_one(on_devices):
    on_devices(_COMPARE, 8)
