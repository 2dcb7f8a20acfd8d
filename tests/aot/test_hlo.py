"""The text of a compiled program: shapes, what runs how often, and the bytes that each instruction moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax.aot import accounts, hlo, parts

# A loop of three turns in the form of a TPU's program: a copy to the chip's own memory, a product, an update in place.
PROGRAM = """HloModule jit_step, is_scheduled=true

%body (p: (s32[], f32[4,128])) -> (s32[], f32[4,128]) {
  %p = (s32[]{:T(128)}, f32[4,128]{1,0:T(4,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[4,128]{1,0:T(4,128)} get-tuple-element(%p), index=1
  %start = (f32[4,128]{1,0:T(4,128)S(1)}, f32[4,128]{1,0:T(4,128)}, u32[]{:S(2)}) copy-start(%x)
  %done = f32[4,128]{1,0:T(4,128)S(1)} copy-done(%start)
  %sum = f32[4,128]{1,0:T(4,128)} all-reduce(%done), replica_groups={{0,1}}, to_apply=%add, metadata={op_name="jit(step)/loss/psum"}
  ROOT %t = (s32[]{:T(128)}, f32[4,128]{1,0:T(4,128)}) tuple(%i, %sum)
}

%condition (q: (s32[], f32[4,128])) -> pred[] {
  %three = s32[]{:T(128)} constant(3)
  %q = (s32[]{:T(128)}, f32[4,128]{1,0:T(4,128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %three), direction=LT
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%fused (f0: f32[64,128], f1: f32[8,128], f2: s32[]) -> f32[64,128] {
  %f0 = f32[64,128]{1,0:T(8,128)} parameter(0)
  %f1 = f32[8,128]{1,0:T(8,128)} parameter(1)
  %f2 = s32[]{:T(128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %d = f32[64,128]{1,0:T(8,128)} dynamic-update-slice(%f0, %f1, %f2, %zero)
}

ENTRY %main (x0: (s32[], f32[4,128]), y: f32[64,128], u: f32[8,128]) -> f32[64,128] {
  %x0 = (s32[]{:T(128)}, f32[4,128]{1,0:T(4,128)}) parameter(0)
  %y = f32[64,128]{1,0:T(8,128)} parameter(1)
  %u = f32[8,128]{1,0:T(8,128)} parameter(2)
  %w = (s32[]{:T(128)}, f32[4,128]{1,0:T(4,128)}) while(%x0), condition=%condition, body=%body
  %n = s32[]{:T(128)} get-tuple-element(%w), index=0
  ROOT %r = f32[64,128]{1,0:T(8,128)} fusion(%y, %u, %n), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/optimizer/dynamic_update_slice"}
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("text", "elements", "stored", "space"),
    [
        ("f32[3,5]{1,0}", 60, 60, 0),
        ("bf16[128,56,56,64]{0,3,2,1:T(8,128)(2,1)}", 51_380_224, 51_380_224, 0),
        ("f32[128,112,112,3]{3,0,2,1:T(8,128)}", 19_267_584, 128 * 112 * 112 * 128 * 4, 0),  # 3 channels in 128 lanes
        ("bf16[7,130]{1,0:T(8,128)(2,1)S(1)}", 1820, 8 * 256 * 2, 1),
        ("pred[]", 1, 1, 0),
    ],
)
def test_a_shape_has_the_bytes_of_its_tiles(text, elements, stored, space):
    (shape,) = hlo.parse_shapes(text)
    assert (shape.bytes, shape.stored_bytes, shape.space) == (elements, stored, space)


def test_traffic_counts_main_memory_and_the_part_that_changes():
    module = hlo.parse(PROGRAM)
    found = {i.name: times * module.traffic(c, i) for c, i, times in module.executed() if module.traffic(c, i)}
    row = 4 * 128 * 4
    # The copy reads main memory and writes the chip's; the sum reads the chip's and writes main memory; the update
    # writes 8 rows, which it reads from another array, and leaves the other 56 alone. The loop compares two numbers.
    assert found == {"start": 3 * row, "sum": 3 * row, "lt": 3 * (4 + 4 + 1), "r": 2 * 8 * 128 * 4 + 4}
    assert accounts.bytes_by_part(module)[parts.LOSS] == 6 * row  # the copy has no name; its reader has
    (exchange,) = accounts.collectives(module)
    assert exchange == accounts.Collective("all-reduce", 3, 3, 3 * row)
    assert exchange.sent(2) == 3 * row  # a ring of two: half of the array twice


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all-reduce", 2 * 6.0), ("reduce-scatter", 6.0), ("all-gather", 24.0), ("collective-permute", 8.0)],
)
def test_what_a_device_sends_in_a_ring_of_four(kind, sent):
    assert accounts.Collective(kind, 1, 1, 8).sent(4) == sent


def test_the_trips_of_a_loop_and_the_operations_of_its_products():
    def function(x):
        return jax.lax.fori_loop(0, 5, lambda _, y: jnp.tanh(y @ x), x)

    compiled = jax.jit(function).lower(jax.ShapeDtypeStruct((16, 16), jnp.float32)).compile()
    module = hlo.parse(compiled.as_text())
    assert accounts.product_flops(module) == 5 * 2 * 16**3
    assert accounts.product_flops(module, repeated=True) == 4 * 2 * 16**3  # what XLA's own count leaves out


@pytest.mark.parametrize(
    ("kind", "flops"),
    [("convForward", 1), ("convBiasActivationForward", 1), ("convBackwardInput", 1), ("convBackwardFilter", 1)],
)
def test_operations_of_the_convolutions_of_a_gpu(kind, flops):
    image, kernel, output = "f32[2,8,8,3]{3,2,1,0}", "f32[5,3,3,3]{3,2,1,0}", "f32[2,8,8,5]{3,2,1,0}"
    operands = {"convBackwardInput": (output, kernel, image), "convBackwardFilter": (image, output, kernel)}
    left, right, result = operands.get(kind, (image, kernel, output))
    text = (
        f"HloModule m\n\nENTRY %e (a: f32[1], b: f32[1]) -> f32[1] {{\n  %a = {left} parameter(0)\n"
        f"  %b = {right} parameter(1)\n  ROOT %c = ({result}, u8[0]{{0}}) custom-call(%a, %b), window={{size=3x3}}, "
        f'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn${kind}"\n}}\n'
    )
    assert accounts.product_flops(hlo.parse(text)) == 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule nothing\n")


@pytest.mark.parametrize(
    ("name", "convolution", "part"),
    [
        ("jit(train_step)/augment/vmap()/while/body/mul", False, parts.AUGMENTATION),
        ("jit(train_step)/jvp(Network)/encoder/layer1_0/conv2/conv_general_dilated", True, parts.FORWARD),
        ("jit(train_step)/transpose(jvp(Network))/encoder/conv1/weight_gradient/conv", True, parts.WEIGHT_GRADIENT),
        ("jit(train_step)/transpose(jvp(Network))/encoder/conv1/input_gradient/rev", False, parts.INPUT_GRADIENT),
        ("jit(train_step)/jvp(Network)/encoder/layer4_0/downsample_bn/sub", False, parts.BATCH_NORM),
        ("jit(train_step)/jvp(Network)/encoder/reduce_window_max", False, parts.MAX_POOL),
        ("jit(train_step)/transpose(jvp(Network))/encoder/select_and_scatter_add", False, parts.MAX_POOL),
        ("jit(train_step)/jvp(Network)/encoder/layer1_0/add", False, parts.RESIDUAL),
        ("jit(train_step)/jvp(Network)/projector/dot_general", True, parts.HEADS),
        ("jit(train_step)/transpose(jvp(loss))/dot_general", True, parts.LOSS),
        ("jit(train_step)/optimizer/mul", False, parts.OPTIMIZER),
        ("jit(train_step)/scalars/sqrt", False, parts.SCALARS),
        ("jit(train_step)/add", False, parts.OTHER),
    ],
)
def test_parts_by_name(name, convolution, part):
    assert parts.part_of_name(name, convolution=convolution) == part


def test_bytes_agree_with_the_count_of_xla():
    def function(x, y):
        return jnp.sum(jnp.maximum(x @ y, 0.0), axis=0)

    shapes = [jax.ShapeDtypeStruct(side, jnp.float32) for side in ((256, 64), (64, 256))]
    compiled = jax.jit(function).lower(*shapes).compile()
    module = hlo.parse(compiled.as_text())
    found = sum(times * module.traffic(c, i) for c, i, times in module.executed())
    # XLA's count of a reduction adds its scalar start; versions differ in small copies.
    np.testing.assert_allclose(found, compiled.cost_analysis()["bytes accessed"], rtol=0.02)
