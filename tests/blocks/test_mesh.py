"""Blocks on a mesh of eight devices against the same blocks on one; a process of its own."""

_COMPARE = """
import functools
import jax, jax.numpy as jnp, numpy as np
from nonlocal_jax import blocks
from nonlocal_jax.sharding import make_mesh, split_images, use_mesh

IMAGE, ODD, CLIP, SEQUENCE = (4, 8, 6, 8), (4, 7, 5, 8), (2, 4, 3, 5, 8), (8, 16, 8)
NL, DNL = blocks.NonLocalBlock, blocks.DisentangledNonLocalBlock
CASES = [
    (NL(implementation="ring"), IMAGE),
    (NL(), ODD),
    (NL(sub_sample=True, implementation="chunked"), SEQUENCE),
    (NL(mode="gaussian", axes="space"), CLIP),
    (NL(mode="dot_product", axes="time"), CLIP),
    (NL(mode="concatenation", implementation="sorted"), ODD),
    (DNL(implementation="ring"), ODD),
    (DNL(sub_sample="before"), CLIP),
    (blocks.GlobalContextBlock(fusion=("multiply", "add")), ODD),
]
# Padded maps whose positions do not divide either.
MASKED = [NL(), NL(mode="dot_product"), DNL()]

def outputs(block, mesh, variables, x, weights, mask):
    def loss(params, x):
        y, updates = block.apply({**variables, "params": params}, x, train=True,
                                 mask=mask, mutable=["batch_stats"])
        if mask is not None:  # what comes out of padding means nothing
            y *= mask[..., None]
        return jnp.sum(y * weights), (y, updates)
    if mesh is None:
        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)
    with use_mesh(mesh):
        x = split_images(x, mesh)
        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)

rng = np.random.default_rng(0)
mask = rng.random(ODD[:-1]) < 0.6
mask[0, :4] = False  # of an image, whole devices hold nothing but padding
for block, shape, mask, contexts in (
    *((block, shape, None, (1, 2, 4, 8)) for block, shape in CASES),
    *((block, ODD, mask, (4,)) for block in MASKED),
):
    x, weights = rng.standard_normal(shape), rng.standard_normal(shape)
    variables = jax.tree.map(
        lambda leaf: 0.5 + rng.random(leaf.shape), block.init(jax.random.key(0), x)
    )
    one = jax.jit(functools.partial(outputs, block, None))(variables, x, weights, mask)
    largest = max(jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(one))
    for context in contexts:
        mesh = make_mesh(context=context)
        other = jax.jit(functools.partial(outputs, block, mesh))(variables, x, weights, mask)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            error = jnp.max(jnp.abs(a - b)) / largest
            assert a.dtype == b.dtype == np.float64 and error <= 1e-10, (block, context, error)
# Explicit axes, of any name: results are split as x is. Maps large enough to be chunked.
x = rng.standard_normal((8, 46, 46, 4))
axis_types = (jax.sharding.AxisType.Explicit,) * 2
explicit = jax.make_mesh((4, 2), ("batch", "rows"), axis_types=axis_types)
for block in (NL(), NL(mode="concatenation"), DNL(), blocks.GlobalContextBlock()):
    variables = block.init(jax.random.key(0), x[:1])
    apply = lambda variables, x: block.apply(variables, x, train=True, mutable=["batch_stats"])[0]
    variables = jax.tree.map(lambda leaf: 0.5 + rng.random(leaf.shape), variables)
    one = jax.jit(apply)(variables, x)
    for spec in (jax.P("batch"), jax.P("batch", "rows"), jax.P(None, "rows")):
        with jax.set_mesh(explicit):
            split = jax.device_put(x, spec)
            other = jax.jit(apply)(variables, split)
        error = jnp.max(jnp.abs(jax.device_get(other) - one)) / jnp.max(jnp.abs(one))
        assert other.sharding.is_equivalent_to(split.sharding, x.ndim), (block, spec)
        assert error <= 1e-10, (block, spec, error)
"""


def test_blocks_over_devices_are_those_of_one(on_devices):
    """Outputs, statistics and all gradients to 1e-10, positions split 1, 2, 4 and 8 ways."""
    on_devices(_COMPARE, 8)
