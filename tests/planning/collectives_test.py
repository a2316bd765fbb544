"""The parser of collectives, on hand-written programs in the forms that XLA writes for TPU and CPU."""

from tests.collective_counts import collective_counts
from walt_t5x.planning.collectives import collective_bytes, collectives

# A loop of five iterations with a gather in an asynchronous fusion and a reduce-scatter; a tuple with comments; starts.
HLO = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  ROOT %sum = f32[] add(%a, %b)
}

%async_collective_fusion.3 (param: bf16[27,9216]) -> (bf16[27,9216], bf16[1728,9216]) {
  %param = bf16[27,9216]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.7 = bf16[1728,9216]{1,0:T(8,128)(2,1)} all-gather(%param), channel_id=4, dimensions={0}
  ROOT %tuple.2 = (bf16[27,9216]{1,0}, bf16[1728,9216]{1,0}) tuple(%param, %all-gather.7)
}

%all-reduce-scatter.clone (param: f32[64,128]) -> f32[1,128] {
  %param.1 = f32[64,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[64,128]{1,0:T(8,128)} all-reduce(%param.1), to_apply=%add
  ROOT %dynamic-slice.1 = f32[1,128]{1,0:T(8,128)} dynamic-slice(%all-reduce.9, %i, %z), dynamic_slice_sizes={1,128}
}

%body (carry: (s32[], f32[64,128])) -> (s32[], f32[64,128]) {
  %carry = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) parameter(0)
  %gathered = (bf16[27,9216]{1,0}, bf16[1728,9216]{1,0}) fusion(%w), kind=kCustom, calls=%async_collective_fusion.3
  %scattered = f32[1,128]{1,0:T(8,128)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.clone
  ROOT %next = (s32[], f32[64,128]{1,0}) tuple(%i, %x)
}

%condition (carry.1: (s32[], f32[64,128])) -> pred[] {
  %constant.3 = s32[]{:T(128)} constant(5), backend_config={"flag_configs":[]}
  %carry.1 = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) parameter(0)
  %index = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%index, %constant.3), direction=LT, metadata={op_name="while/cond/lt"}
}

ENTRY %main.42 (p0: f32[16], p1: f32[4,4]) -> f32[16] {
  %ar = (f32[16]{0:T(128)}, f32[4,4]{1,0}, f32[2]{0}, f32[2]{0}, f32[2]{0}, /*index=5*/f32[2]{0}) all-reduce(%a, %b, %c, %d, %e, /*index=5*/%f), to_apply=%add
  %ags = (bf16[2,64]{1,0:T(2,128)(2,1)}, bf16[8,64]{1,0:T(8,128)(2,1)}) all-gather-start(%q), dimensions={0}
  %agd = bf16[8,64]{1,0:T(8,128)(2,1)} all-gather-done(%ags)
  %cps = (f32[3,5]{1,0}, f32[3,5]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%r), source_target_pairs={{0,1}}
  %loop = (s32[], f32[64,128]{1,0}) while(%init), condition=%condition, body=%body, backend_config={"estimated_cycles":"7"}
  %like = f32[999]{0} fusion(%x), kind=kLoop, calls=%add, metadata={op_name="all-reduce(like)"}
  ROOT %out = f32[16]{0} get-tuple-element(%ar), index=0
}
"""  # noqa: E501


def test_each_collective_counts_once_per_run():
  assert collective_counts(HLO) == {
    "all-reduce": 1,
    "all-gather": 1 + 5,
    "reduce-scatter": 5,
    "collective-permute": 1,
  }
  assert collective_bytes(HLO) == {
    "all-reduce": 4 * (16 + 16 + 4 * 2),
    "all-gather": 2 * 8 * 64 + 5 * 2 * 1728 * 9216,
    "reduce-scatter": 5 * 4 * 128,
    "collective-permute": 4 * 15,
  }


def test_a_known_trip_count_takes_precedence():
  known = HLO.replace('{"estimated_cycles":"7"}', '{"known_trip_count":{"n":"3"}}')
  assert collective_counts(known)["reduce-scatter"] == 3


def test_a_computation_with_two_callers_runs_twice():
  twice = HLO.replace(
    "  %like = ",
    "  %again = f32[1,128]{1,0} fusion(%g), calls=%all-reduce-scatter.clone\n  %like = ",
  )
  assert collective_counts(twice)["reduce-scatter"] == 6
  (one,) = [c for c in collectives(twice) if c.kind == "reduce-scatter"]
  assert one.name == "all-reduce.9" and one.bytes == 512
