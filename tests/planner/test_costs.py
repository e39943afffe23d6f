"""Bytes and FLOPs of programs written by hand, whose figures are known."""

import pytest

from msfl_jax.planner.costs import costs_of
from msfl_jax.planner.hlo import executed, parse, parse_shapes
from msfl_jax.planner.traffic import KINDS, Transfer

KB = 1024.0

# Each exchange once, on eight devices; arrays of 1 KiB for each device.
EXCHANGES = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[256]{0})->f32[256]{0}}, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (x: f32[256]) -> f32[256] {
  %x = f32[256]{0} parameter(0)
  %all-reduce.1 = f32[256]{0} all-reduce(%x), channel_id=1, replica_groups=[1,8]<=[8], use_global_device_ids=true, to_apply=%add
  %all-gather.1 = f32[512]{0} all-gather(%x), channel_id=2, replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}
  %reduce-scatter.1 = f32[64]{0} reduce-scatter(%x), channel_id=3, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, to_apply=%add
  %collective-permute.1 = f32[256]{0} collective-permute(%x), channel_id=4, source_target_pairs={{0,1},{1,2},{2,0}}
  %all-to-all.1 = (f32[128]{0}, /*index=1*/f32[128]{0}) all-to-all(%x), channel_id=5, replica_groups={{0,4},{1,5},{2,6},{3,7}}
  ROOT %out = f32[256]{0} copy(%all-reduce.1)
}
"""

LOOPS = """HloModule jit_loop, num_partitions=4

%inner (p: (s32[], f32[256])) -> (s32[], f32[256]) {
  %p = (s32[], f32[256]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %v = f32[256]{0} get-tuple-element(%p), index=1
  %all-reduce.2 = f32[256]{0} all-reduce(%v), replica_groups={}, to_apply=%add
  ROOT %t = (s32[], f32[256]{0}) tuple(%i, %all-reduce.2)
}

%outer (q: (s32[], f32[256])) -> (s32[], f32[256]) {
  %q = (s32[], f32[256]{0}) parameter(0)
  ROOT %w = (s32[], f32[256]{0}) while(%q), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"5"}}
}

%unknown (r: (s32[], f32[256])) -> (s32[], f32[256]) {
  %r = (s32[], f32[256]{0}) parameter(0)
  %j = s32[] get-tuple-element(%r), index=0
  %u = f32[256]{0} get-tuple-element(%r), index=1
  %s = (f32[256]{0}, f32[1024]{0}) all-gather-start(%u), replica_groups={}, dimensions={0}
  %d = f32[1024]{0} all-gather-done(%s)
  ROOT %t2 = (s32[], f32[256]{0}) tuple(%j, %u)
}

ENTRY %main (x: (s32[], f32[256])) -> (s32[], f32[256]) {
  %x = (s32[], f32[256]{0}) parameter(0)
  %first = (s32[], f32[256]{0}) while(%x), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %second = (s32[], f32[256]{0}) while(%first), condition=%c, body=%unknown
}
"""

# A loop over four layers: a fusion cuts one layer's matrix out of all and multiplies, another puts a row where it belongs.
FUSIONS = """HloModule jit_g

%cut_and_multiply (p0: f32[4,64,32], p1: s32[], p2: f32[8,64]) -> f32[8,32] {
  %p0 = f32[4,64,32]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[8,64]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %cut = f32[1,64,32]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,64,32}
  %matrix = f32[64,32]{1,0} bitcast(%cut)
  ROOT %dot = f32[8,32]{1,0} dot(%p2, %matrix), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%put (p0.1: f32[4,8,32], p1.1: f32[8,32], p2.1: s32[]) -> f32[4,8,32] {
  %p0.1 = f32[4,8,32]{2,1,0} parameter(0)
  %p1.1 = f32[8,32]{1,0} parameter(1)
  %p2.1 = s32[] parameter(2)
  %row = f32[1,8,32]{2,1,0} bitcast(%p1.1)
  %zero.1 = s32[] constant(0)
  ROOT %update = f32[4,8,32]{2,1,0} dynamic-update-slice(%p0.1, %row, %p2.1, %zero.1, %zero.1)
}

%body (s: (s32[], f32[4,64,32], f32[8,64], f32[4,8,32])) -> (s32[], f32[4,64,32], f32[8,64], f32[4,8,32]) {
  %s = (s32[], f32[4,64,32]{2,1,0}, f32[8,64]{1,0}, /*index=3*/f32[4,8,32]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %layers = f32[4,64,32]{2,1,0} get-tuple-element(%s), index=1
  %tokens = f32[8,64]{1,0} get-tuple-element(%s), index=2
  %kept = f32[4,8,32]{2,1,0} get-tuple-element(%s), index=3
  %product = f32[8,32]{1,0} fusion(%layers, %i, %tokens), kind=kOutput, calls=%cut_and_multiply
  %stacked = f32[4,8,32]{2,1,0} fusion(%kept, %product, %i), kind=kLoop, calls=%put
  ROOT %next = (s32[], f32[4,64,32]{2,1,0}, f32[8,64]{1,0}, f32[4,8,32]{2,1,0}) tuple(%i, %layers, %tokens, %stacked)
}

ENTRY %main (x: (s32[], f32[4,64,32], f32[8,64], f32[4,8,32])) -> (s32[], f32[4,64,32], f32[8,64], f32[4,8,32]) {
  %x = (s32[], f32[4,64,32]{2,1,0}, f32[8,64]{1,0}, f32[4,8,32]{2,1,0}) parameter(0)
  ROOT %w = (s32[], f32[4,64,32], f32[8,64], f32[4,8,32]) while(%x), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"4"}}
}
"""


# As a TPU has it: no trips are stated; an exchange is begun in one fusion, goes on in those of a loop beside a product, and ends in a last one.
OVERLAPPED = """HloModule jit_step, num_partitions=4

%below_six (c: (s32[], f32[8,8], f32[2,8], f32[8,8])) -> pred[] {
  %c = (s32[], f32[8,8]{1,0}, f32[2,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%c), index=0
  %six = s32[]{:T(128)} constant(6)
  ROOT %lt = pred[] compare(%count, %six), direction=LT
}

%begin (b: f32[2,8]) -> (f32[2,8], f32[8,8]) {
  %b = f32[2,8]{1,0} parameter(0)
  %gather.1 = f32[8,8]{1,0} all-gather(%b), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %start = (f32[2,8]{1,0}, f32[8,8]{1,0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.7 (g: f32[2,8], h: f32[8,8], m: f32[8,8]) -> (f32[8,8], f32[2,8], f32[8,8]) {
  %g = f32[2,8]{1,0} parameter(0)
  %h = f32[8,8]{1,0} parameter(1)
  %m = f32[8,8]{1,0} parameter(2)
  %square = f32[8,8]{1,0} dot(%m, %m), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %gather.2 = f32[8,8]{1,0} all-gather(%g), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %t = (f32[8,8]{1,0}, f32[2,8]{1,0}, f32[8,8]{1,0}) tuple(%square, %g, %gather.2)
}

%end (e: f32[8,8]) -> f32[8,8] {
  %e = f32[8,8]{1,0} parameter(0)
  ROOT %done = f32[8,8]{1,0} custom-call(%e), custom_call_target="AsyncCollectiveDone"
}

%multiply (s: (s32[], f32[8,8], f32[2,8], f32[8,8])) -> (s32[], f32[8,8], f32[2,8], f32[8,8]) {
  %s = (s32[], f32[8,8]{1,0}, f32[2,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %matrix = f32[8,8]{1,0} get-tuple-element(%s), index=1
  %part = f32[2,8]{1,0} get-tuple-element(%s), index=2
  %whole = f32[8,8]{1,0} get-tuple-element(%s), index=3
  %step = (f32[8,8]{1,0}, f32[2,8]{1,0}, f32[8,8]{1,0}) fusion(%part, %whole, %matrix), kind=kCustom, calls=%async_collective_fusion.7
  ROOT %next = (s32[], f32[8,8]{1,0}, f32[2,8]{1,0}, f32[8,8]{1,0}) tuple(%i, %matrix, %part, %whole)
}

ENTRY %main (x: (s32[], f32[8,8], f32[2,8], f32[8,8]), y: f32[2,8]) -> f32[8,8] {
  %x = (s32[], f32[8,8]{1,0}, f32[2,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  %y = f32[2,8]{1,0} parameter(1)
  %begun = (f32[2,8]{1,0}, f32[8,8]{1,0}) fusion(%y), kind=kCustom, calls=%begin
  %loop = (s32[], f32[8,8]{1,0}, f32[2,8]{1,0}, f32[8,8]{1,0}) while(%x), condition=%below_six, body=%multiply
  %gathered = f32[8,8]{1,0} get-tuple-element(%loop), index=3
  ROOT %ended = f32[8,8]{1,0} fusion(%gathered), kind=kCustom, calls=%end
}
"""


def test_a_loop_that_compares_its_counter_with_a_constant_runs_as_often():
    costs = costs_of(OVERLAPPED)
    assert (costs.loops, costs.unstated) == (1, 0)
    assert costs.flops == 6 * 2 * 8**3


def test_an_exchange_that_goes_on_beside_products_is_sent_once_and_its_arrays_are_not_moved_by_them():
    costs = costs_of(OVERLAPPED)
    assert (costs.count("all-gather"), costs.sent("all-gather")) == (1, 2 * 8 * 4 * 3)
    product = next(work for work in costs.work if work.flops)
    assert product.moved == 2 * 8 * 8 * 4


def test_what_a_chip_sends_is_known_for_each_kind_of_exchange():
    costs = costs_of(EXCHANGES)
    sent = {kind: costs.sent(kind) for kind in KINDS}
    assert sent == {
        "all-reduce": 2 * KB * 7 / 8,
        "all-gather": KB * 1,
        "reduce-scatter": KB * 3 / 4,
        "collective-permute": KB,
        "all-to-all": KB * 1 / 2,
    }
    assert [costs.count(kind) for kind in KINDS] == [1] * 5


def test_groups_are_read_in_each_of_their_forms():
    groups = {one.kind: one.group for one in costs_of(EXCHANGES).transfers}
    assert groups["all-reduce"] == tuple(range(8))
    assert groups["all-gather"] == (0, 1)
    assert groups["reduce-scatter"] == (0, 2, 4, 6)
    assert groups["collective-permute"] == (0, 1)
    assert groups["all-to-all"] == (0, 4)


def test_a_chip_alone_in_its_group_sends_nothing():
    for kind in KINDS:
        assert Transfer(kind, KB, (3,)).sent == 0


def test_what_stands_in_loops_counts_as_often_as_they_run_and_once_where_nobody_says():
    costs = costs_of(LOOPS)
    assert costs.count("all-reduce") == 15
    assert costs.sent("all-reduce") == 15 * 2 * KB * 3 / 4
    assert costs.count("all-gather") == 1
    assert costs.sent("all-gather") == 3 * KB
    assert (costs.loops, costs.unstated) == (3, 1)


def test_of_a_slice_only_the_slice_is_moved_and_products_count_in_every_turn():
    costs = costs_of(FUSIONS)
    matrix, tokens, row, index = 64 * 32 * 4, 8 * 64 * 4, 8 * 32 * 4, 4
    first = matrix + index + tokens + row
    second = row + index + row  # read, and written into what is there
    assert costs.moved == 4 * (first + second)
    assert costs.flops == 4 * 2 * 8 * 64 * 32
    assert [(one.lhs, one.rhs, count) for one, count in costs.products.items()] == [((8, 64), (64, 32), 4)]


def one_instruction(line: str, *parameters: str) -> str:
    """A program of one instruction on parameters of these shapes, called %a, %b, ..."""
    given = [
        f"  %{name} = {shape} parameter({number})"
        for number, (name, shape) in enumerate(zip("abc", parameters, strict=False))
    ]
    return "\n".join(["HloModule m", "", "ENTRY %main (a: f32[]) -> f32[] {", *given, f"  ROOT %r = {line}", "}", ""])


@pytest.mark.parametrize(
    ("line", "parameters", "flops"),
    [
        (
            "f32[2,3,5]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}",
            ("f32[2,3,7]{2,1,0}", "f32[2,7,5]{2,1,0}"),
            2 * 2 * 3 * 5 * 7,
        ),
        (
            "bf16[8,32]{1,0:T(8,128)(2,1)} convolution(%a, %b), dim_labels=bf_io->bf, operand_precision={highest,highest}",
            ("bf16[8,64]{1,0:T(8,128)(2,1)}", "bf16[64,32]{1,0:T(8,128)(2,1)S(1)}"),
            2 * 8 * 32 * 64,
        ),
        (  # a batch of six products as a TPU writes it: each place of the batch meets one
            "f32[6,8,16]{2,1,0} convolution(%a, %b), window={size=6 stride=5 lhs_dilate=6}, dim_labels=0bf_0io->0bf",
            ("f32[6,8,64]{2,1,0}", "f32[6,64,16]{2,1,0}"),
            2 * 6 * 8 * 16 * 64,
        ),
        (
            '(f32[8,32]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", '
            'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}',
            ("f32[8,64]{1,0}", "f32[64,32]{1,0}"),
            2 * 8 * 32 * 64,
        ),
        ("f32[8]{0} add(%a, %b)", ("f32[8]{0}", "f32[8]{0}"), 0),
    ],
    ids=["dot", "convolution", "batched convolution", "cublas", "no product"],
)
def test_products_are_counted_whatever_the_backend_calls_them(line, parameters, flops):
    assert costs_of(one_instruction(line, *parameters)).flops == flops


@pytest.mark.parametrize(
    ("line", "parameters", "moved"),
    [
        ("f32[256]{0} add(%a, %b)", ("f32[256]{0}", "f32[256]{0}"), 3 * KB),
        ("f32[256]{0:T(256)S(1)} add(%a, %b)", ("f32[256]{0:T(256)S(1)}", "f32[256]{0}"), KB),
        ("f32[64]{0} slice(%a), slice={[0:64]}", ("f32[256]{0}",), KB / 2),
        ("f32[256]{0} bitcast(%a)", ("f32[16,16]{1,0}",), 0),
        ("f32[256]{0} dynamic-update-slice(%a, %b, %c)", ("f32[256]{0}", "f32[64]{0}", "s32[]"), KB / 2),
        ("(f32[256]{0:S(1)}, f32[256]{0}, u32[]) copy-start(%a)", ("f32[256]{0}",), KB),
        ("f32[256]{0} copy-done(%a)", ("(f32[256]{0:S(1)}, f32[256]{0}, u32[])",), 0),
    ],
    ids=["add", "near memory", "slice", "bitcast", "update", "start", "done"],
)
def test_traffic_of_single_instructions(line, parameters, moved):
    assert costs_of(one_instruction(line, *parameters)).moved == moved


def test_shapes_of_tuples_within_tuples():
    shapes = parse_shapes("((bf16[2,3]{1,0:T(8,128)(2,1)}, pred[]), f8e4m3fn[7]{0:S(5)}, token[])")
    assert [(one.dtype, one.dims, one.size, one.space) for one in shapes] == [
        ("bf16", (2, 3), 12.0, 0),
        ("pred", (), 1.0, 0),
        ("f8e4m3fn", (7,), 7.0, 5),
        ("token", (), 0.0, 0),
    ]


def test_each_branch_counts():
    text = """HloModule m

%yes (a: f32[256]) -> f32[256] {
  %a = f32[256]{0} parameter(0)
  ROOT %copy.1 = f32[256]{0} copy(%a)
}

%no (b: f32[256]) -> f32[256] {
  %b = f32[256]{0} parameter(0)
  ROOT %copy.2 = f32[256]{0} copy(%b)
}

ENTRY %main (p: pred[], x: f32[256]) -> f32[256] {
  %p = pred[] parameter(0)
  %x = f32[256]{0} parameter(1)
  ROOT %c = f32[256]{0} conditional(%p, %x, %x), true_computation=%yes, false_computation=%no
}
"""
    names = [one.instruction.name for one in executed(parse(text))[0] if one.instruction.opcode == "copy"]
    assert names == ["copy.1", "copy.2"]


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        costs_of("HloModule m\n")
