"""Blocks on a mesh of eight devices against the same blocks on one; a process of its own."""

_COMPARE = """
import functools
import jax, jax.numpy as jnp, numpy as np
from nonlocal_jax import blocks
from nonlocal_jax.mesh import make_mesh, split_images, use_mesh

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

def outputs(block, mesh, variables, x, weights):
    def loss(params, x):
        y, updates = block.apply({**variables, "params": params}, x, train=True,
                                 mutable=["batch_stats"])
        return jnp.sum(y * weights), (y, updates)
    if mesh is None:
        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)
    with use_mesh(mesh):
        x = split_images(x, mesh)
        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)

rng = np.random.default_rng(0)
for block, shape in CASES:
    x, weights = rng.standard_normal(shape), rng.standard_normal(shape)
    variables = jax.tree.map(
        lambda leaf: 0.5 + rng.random(leaf.shape), block.init(jax.random.key(0), x)
    )
    one = jax.jit(functools.partial(outputs, block, None))(variables, x, weights)
    largest = max(jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(one))
    for context in (1, 2, 4, 8):
        mesh = make_mesh(context=context)
        other = jax.jit(functools.partial(outputs, block, mesh))(variables, x, weights)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            error = jnp.max(jnp.abs(a - b)) / largest
            assert a.dtype == b.dtype == np.float64 and error <= 1e-10, (block, context, error)
# Explicit axes, of any name: the batch stays as it is split. Maps large enough to be chunked.
x = rng.standard_normal((8, 46, 46, 4))
for block in (NL(), NL(mode="concatenation"), DNL()):
    variables = block.init(jax.random.key(0), x[:1])
    apply = lambda variables, x: block.apply(variables, x, train=True, mutable=["batch_stats"])[0]
    variables = jax.tree.map(lambda leaf: 0.5 + rng.random(leaf.shape), variables)
    one = jax.jit(apply)(variables, x)
    explicit = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(explicit):
        other = jax.jit(apply)(variables, jax.device_put(x, jax.P("batch")))
    assert jnp.max(jnp.abs(jax.device_get(other) - one)) <= 1e-10 * jnp.max(jnp.abs(one)), block
print("compared")
"""


def test_blocks_over_devices_are_those_of_one(on_devices):
    """Outputs, statistics and all gradients to 1e-10, positions split 1, 2, 4 and 8 ways."""
    assert on_devices(_COMPARE, 8) == "compared\n"
