"""The traffic and the communication that the text of a compiled program shows."""

import functools
import string

import jax
import jax.numpy as jnp
import pytest

from nonlocal_jax.hlo import Program, Shape
from nonlocal_jax.models.count import kernel_passes
from nonlocal_jax.ops import softmax_attention
from nonlocal_jax.sharding import Shardings, make_mesh
from nonlocal_jax.topology import topology_devices
from nonlocal_jax.traffic import collectives, traffic

# A loop of three iterations. Each reads a row of 4 KiB, and adds it to a row in vector memory.
_TEXT = string.Template("""HloModule jit_f, is_scheduled=true

%slice_add (param_0: f32[3,1024], param_1: s32[], param_2: f32[1,1024]) -> f32[1,1024] {
  %param_0 = $rows parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %param_2 = $near parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %row = $far dynamic-slice(%param_0, %param_1, %zero), dynamic_slice_sizes={1,1024}
  ROOT %sum = $near add(%row, %param_2)
}

%body (p: (s32[], f32[3,1024], f32[1,1024])) -> (s32[], f32[3,1024], f32[1,1024]) {
  %p = (s32[]{:T(128)}, $rows, $near) parameter(0)
  %i = s32[]{:T(128)S(2)} get-tuple-element(%p), index=0
  %x = $rows get-tuple-element(%p), index=1
  %y = $near get-tuple-element(%p), index=2
  %fusion = $near fusion(%x, %i, %y), calls=%slice_add, metadata={op_name="jit(f)/jvp(Net)/bn/add"}
  ROOT %t = (s32[]{:T(128)}, $rows, $near) tuple(%i, %x, %fusion)
}

%condition (p.1: (s32[], f32[3,1024], f32[1,1024])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, $rows, $near) parameter(0)
  %n = s32[]{:T(128)} constant(3)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %n), direction=LT
}

ENTRY %main (a: f32[3,1024], b: bf16[20,100]) -> f32[1,1024] {
  %a = $rows parameter(0)
  %b = bf16[20,100]{1,0:T(8,128)(2,1)} parameter(1)
  %start = $near constant(0)
  %first = s32[]{:T(128)S(2)} constant(0)
  %init = (s32[]{:T(128)}, $rows, $near) tuple(%first, %a, %start)
  %while = (s32[]{:T(128)}, $rows, $near) while(%init), condition=%condition, body=%body
  %y.1 = $near get-tuple-element(%while), index=2
  %copy-start = ($far, $near, u32[]{:S(2)}) copy-start(%y.1)
  %copy-done = $far copy-done(%copy-start)
  %buffer = $rows custom-call(), custom_call_target="AllocateBuffer"
  %copy = bf16[20,100]{0,1:T(8,128)(2,1)} copy(%b)
  ROOT %sum.1 = $far all-reduce(%copy-done), channel_id=1, replica_groups=$groups, to_apply=%add
}
""")


def _program(groups="mesh['axis_0'=4,'axis_1'=2] {'axis_0'}"):
    far = "f32[1,1024]{1,0:T(1,128)}"
    near = "f32[1,1024]{1,0:T(1,128)S(1)}"
    rows = "f32[3,1024]{1,0:T(1,128)}"
    return Program(_TEXT.substitute(far=far, near=near, rows=rows, groups=groups))


def test_loops_slices_layouts_and_vector_memory():
    program = _program()
    assert traffic(program) == {
        "norms": 3 * 4096,
        # What is moved out of vector memory, for the sum over devices, and the sum itself.
        "collectives": 4096 + 2 * 4096,
        # Tiles of 8 x 128: 24 x 128 numbers become 104 x 128.
        "copies": 2 * (24 * 128 + 104 * 128),
    }
    # With the best algorithm, each of four devices sends three quarters of the array twice.
    assert collectives(program) == {"all-reduce": {"calls": 1, "bytes": 2 * 3 / 4 * 4096}}


def test_a_fusion_reads_what_a_fusion_inside_of_it_passes_on():
    """The inner fusion is a view of the operand, which the outer one reads whole."""
    program = Program("""HloModule jit_f

%inner (p: f32[8,1024]) -> f32[1,8,1024] {
  %p = f32[8,1024]{1,0:T(8,128)} parameter(0)
  ROOT %view = f32[1,8,1024]{2,1,0:T(8,128)} bitcast(%p)
}

%outer (q: f32[8,1024]) -> f32[1,8,1024] {
  %q = f32[8,1024]{1,0:T(8,128)} parameter(0)
  %nested = f32[1,8,1024]{2,1,0:T(8,128)} fusion(%q), kind=kLoop, calls=%inner
  ROOT %negative = f32[1,8,1024]{2,1,0:T(8,128)S(1)} negate(%nested)
}

ENTRY %main (a: f32[8,1024]) -> f32[1,8,1024] {
  %a = f32[8,1024]{1,0:T(8,128)} parameter(0)
  ROOT %fusion = f32[1,8,1024]{2,1,0:T(8,128)S(1)} fusion(%a), kind=kLoop, calls=%outer
}
""")
    assert traffic(program) == {"optimizer": 4 * 8 * 1024}


def test_groups_and_small_types():
    assert Shape("pred[7,3]{1,0}").bytes == 21
    assert Shape("s4[8]{0:E(4)}").bytes == 4
    for groups, size in (("{{0,1},{2,3}}", 2), ("[2,4]<=[8]", 4)):
        (sent,) = collectives(_program(groups)).values()
        assert sent["bytes"] == pytest.approx(2 * (size - 1) / size * 4096)


_ASYNCHRONOUS = string.Template("""HloModule jit_f, is_scheduled=true

%gathered (q: f32[1,1024]) -> f32[4,1024] {
  %q = $row parameter(0)
  ROOT %all-gather = $rows all-gather(%q), channel_id=1, replica_groups=[2,4]<=[8]
}

%offloaded (u: f32[1,1024]) -> f32[1,1024] {
  %u = $row parameter(0)
  ROOT %all-reduce = $row all-reduce(%u), channel_id=3, replica_groups=[2,4]<=[8]
}, execution_thread="sparsecore"

%if (r: f32[1,1024]) -> f32[1,1024] {
  %r = $row parameter(0)
  ROOT %negate = $row negate(%r)
}

%else (s: f32[1,1024]) -> f32[1,1024] {
  ROOT %s = $row parameter(0)
}

ENTRY %main (a: f32[1,1024], p: pred[]) -> f32[1,1024] {
  %a = $row parameter(0)
  %p = pred[]{:T(512)S(2)} parameter(1)
  %async-start = (($row), $rows) async-start(%a), calls=%gathered
  %async-done = $rows async-done(%async-start)
  %start = ($row, $row, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%a), channel_id=2
  %done = $row collective-permute-done(%start)
  %call-start = (($row), $row) call-start(%a), to_apply=%offloaded
  %call-done = $row call-done(%call-start)
  ROOT %c = $row conditional(%p, %a, %a), true_computation=%if, false_computation=%else
}
""")


def test_asynchronous_instructions_and_branches():
    row, rows = "f32[1,1024]{1,0:T(1,128)}", "f32[4,1024]{1,0:T(4,128)}"
    program = Program(_ASYNCHRONOUS.substitute(row=row, rows=rows))
    # The gathered rows, the permuted one, the reduced one, and the negated one.
    assert traffic(program) == {
        "optimizer": 2 * 4096,
        "collectives": (1 + 4) * 4096 + 2 * 4096 + 2 * 4096,
    }
    assert collectives(program) == {
        "all-gather": {"calls": 1, "bytes": 3 / 4 * 4 * 4096},
        "collective-permute": {"calls": 1, "bytes": 4096},
        "all-reduce": {"calls": 1, "bytes": 2 * 3 / 4 * 4096},
    }


@pytest.mark.usefixtures("libtpu")
def test_a_kernel_reads_the_keys_for_each_block_of_queries():
    shardings = Shardings(make_mesh(topology_devices("v5e:2x2")[:1]))
    n, m, c = 1024, 2**20, 128  # the keys do not fit in VMEM
    query, keys = (
        jax.ShapeDtypeStruct((1, rows, c), jnp.bfloat16, sharding=shardings.replicated)
        for rows in (n, m)
    )
    attention = functools.partial(softmax_attention, implementation="flash")
    traced = jax.jit(attention).trace(query, keys, keys)
    passes = kernel_passes(traced.jaxpr.jaxpr, "tpu")
    assert passes == {((1, 1, n, c), *[(1, 1, m, c)] * 2, (1, 1, n, c)): (1, 2, 2, 1)}
    text = traced.lower().compile().as_text()
    (moved,) = traffic(Program(text, passes)).values()
    assert moved == pytest.approx(2 * (2 * n + 2 * 2 * m) * c, rel=0.01)


@pytest.mark.usefixtures("libtpu")
def test_compiled_layers():
    """Five layers read five kernels, in a loop as without one. Their features fit in VMEM."""
    shardings = Shardings(make_mesh(topology_devices("v5e:2x2")))
    n, layers, kernel = 4 * 64 * 1024 * 2, 5, 1024 * 1024 * 2
    x, kernels = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
        for shape, sharding in (
            ((4 * 64, 1024), shardings.batch),
            ((layers, 1024, 1024), shardings.replicated),
        )
    )

    def layer(x, kernel):
        return jnp.tanh(x @ kernel), None

    for unroll in (1, layers):
        step = jax.jit(lambda x, kernels, u=unroll: jax.lax.scan(layer, x, kernels, unroll=u)[0])
        text = step.lower(x, kernels).compile().as_text()
        assert ("while(" in text) == (unroll == 1)
        moved = sum(traffic(Program(text)).values())
        assert moved == pytest.approx(layers * kernel + 2 * n // 4, rel=0.2)
        assert not collectives(Program(text))
