"""The traffic and the communication that the text of a compiled program shows."""

import math

import jax
import jax.numpy as jnp
import pytest

from nonlocal_jax import ops
from nonlocal_jax.hlo import Program, Shape
from nonlocal_jax.sharding import Shardings, make_mesh
from nonlocal_jax.topology import topology_devices
from nonlocal_jax.traffic import collectives, traffic

# A loop of three iterations. Each reads a row of 4 KiB, and adds it to an array in vector memory.
_TEXT = """HloModule jit_f, is_scheduled=true

%slice_add (param_0: f32[3,1024], param_1: s32[], param_2: f32[1,1024]) -> f32[1,1024] {
  %param_0 = f32[3,1024]{1,0:T(1,128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %param_2 = f32[1,1024]{1,0:T(1,128)S(1)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %row = f32[1,1024]{1,0:T(1,128)} dynamic-slice(%param_0, %param_1, %zero), dynamic_slice_sizes={1,1024}
  ROOT %sum = f32[1,1024]{1,0:T(1,128)S(1)} add(%row, %param_2)
}

%body (p: (s32[], f32[3,1024], f32[1,1024])) -> (s32[], f32[3,1024], f32[1,1024]) {
  %p = (s32[]{:T(128)}, f32[3,1024]{1,0:T(1,128)}, f32[1,1024]{1,0:T(1,128)S(1)}) parameter(0)
  %i = s32[]{:T(128)S(2)} get-tuple-element(%p), index=0
  %x = f32[3,1024]{1,0:T(1,128)} get-tuple-element(%p), index=1
  %y = f32[1,1024]{1,0:T(1,128)S(1)} get-tuple-element(%p), index=2
  %fusion = f32[1,1024]{1,0:T(1,128)S(1)} fusion(%x, %i, %y), kind=kLoop, calls=%slice_add, metadata={op_name="jit(f)/jvp(Net)/bn1/add"}
  ROOT %t = (s32[]{:T(128)}, f32[3,1024]{1,0:T(1,128)}, f32[1,1024]{1,0:T(1,128)S(1)}) tuple(%i, %x, %fusion)
}

%condition (p.1: (s32[], f32[3,1024], f32[1,1024])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, f32[3,1024]{1,0:T(1,128)}, f32[1,1024]{1,0:T(1,128)S(1)}) parameter(0)
  %n = s32[]{:T(128)} constant(3)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %n), direction=LT
}

ENTRY %main (a: f32[3,1024], b: bf16[20,100]) -> f32[1,1024] {
  %a = f32[3,1024]{1,0:T(1,128)} parameter(0)
  %b = bf16[20,100]{1,0:T(8,128)(2,1)} parameter(1)
  %start = f32[1,1024]{1,0:T(1,128)S(1)} constant(0)
  %first = s32[]{:T(128)S(2)} constant(0)
  %init = (s32[]{:T(128)}, f32[3,1024]{1,0:T(1,128)}, f32[1,1024]{1,0:T(1,128)S(1)}) tuple(%first, %a, %start)
  %while = (s32[]{:T(128)}, f32[3,1024]{1,0:T(1,128)}, f32[1,1024]{1,0:T(1,128)S(1)}) while(%init), condition=%condition, body=%body
  %y.1 = f32[1,1024]{1,0:T(1,128)S(1)} get-tuple-element(%while), index=2
  %copy-start = (f32[1,1024]{1,0:T(1,128)}, f32[1,1024]{1,0:T(1,128)S(1)}, u32[]{:S(2)}) copy-start(%y.1)
  %copy-done = f32[1,1024]{1,0:T(1,128)} copy-done(%copy-start)
  %copy = bf16[20,100]{0,1:T(8,128)(2,1)} copy(%b), metadata={op_name="jit(f)/jvp(Net)/conv1/transpose"}
  ROOT %all-reduce = f32[1,1024]{1,0:T(1,128)} all-reduce(%copy-done), channel_id=1, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, to_apply=%add
}
"""


def test_loops_slices_layouts_and_vector_memory():
    program = Program(_TEXT)
    assert traffic(program) == {
        "norms": 3 * 4096,
        # What is moved out of vector memory, for the sum over devices, and the sum itself.
        "collectives": 4096 + 2 * 4096,
        # Tiles of 8 x 128: 24 x 128 numbers become 104 x 128.
        "copies": 2 * (24 * 128 + 104 * 128),
    }
    # With the best algorithm, each of four devices sends three quarters of the array twice.
    assert collectives(program) == {"all-reduce": {"calls": 1, "bytes": 2 * 3 / 4 * 4096}}


def test_groups_and_small_types():
    assert Shape("pred[7,3]{1,0}").bytes == 21
    assert Shape("s4[8]{0:E(4)}").bytes == 4
    for groups, size in (("{{0,1},{2,3}}", 2), ("[2,4]<=[8]", 4)):
        text = _TEXT.replace("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", groups)
        (sent,) = collectives(Program(text)).values()
        assert sent["bytes"] == pytest.approx(2 * (size - 1) / size * 4096)


@pytest.mark.usefixtures("libtpu")
def test_a_compiled_step():
    """A large convolution reads and writes each of its three arrays once in each direction."""
    shardings = Shardings(make_mesh(topology_devices("v5e:2x2")))
    shapes = (4 * 4, 256, 256, 128), (3, 3, 128, 128)
    x, kernel = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
        for shape, sharding in zip(shapes, (shardings.batch, shardings.replicated), strict=True)
    )

    def step(x, kernel):
        y, pullback = jax.vjp(ops.conv, x, kernel)
        return y, pullback(y)

    text = jax.jit(step).lower(x, kernel).compile().as_text()
    moved = traffic(Program(text))
    image, small = (2 * math.prod(shape) for shape in shapes)
    image //= 4
    # The input of the convolution is read again for the filter gradient, with y.
    assert sum(moved.values()) == pytest.approx(6 * image, rel=0.4)
    assert moved["convolutions, forward"] == pytest.approx(2 * image + small, rel=0.01)
    assert collectives(Program(text))["all-reduce"]["bytes"] == pytest.approx(1.5 * small, rel=0.01)
