"""Reports from the TPU compiler's results; the compiler is replaced by fake objects."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from walt_t5x.denoiser.transformer import WaltDenoiser
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.planning import plan_text, run_plan, tpu_compile, tpu_report

GIB = 1024**3
REJECTION = (
  "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 23.56G of 15.75G hbm. Exceeded hbm capacity by "
  "7.82G.\n\nTotal hbm usage >= 23.80G"
)


class Compiled:
  """A step with a number of layers, which determines its memory and time."""

  def __init__(self, layers, rows, *, unknown=0, free=0):
    self.layers, self.rows, self.unknown, self.free = layers, rows, unknown, free

  def cost_analysis(self):
    return {"optimal_seconds": 0.3 + 0.02 * self.layers * self.rows - self.unknown - self.free}

  def memory_analysis(self):
    names = ("argument", "output", "alias", "temp", "generated_code")
    return types.SimpleNamespace(**{f"{n}_size_in_bytes": GIB for n in names})

  def as_text(self):
    # A fused kernel's attributes span several lines.
    kernel = '  %k = f32[4]{0} custom-call(%p), frontend_attributes={kernel_metadata={\n"model_flops":"1"\n}}\n'
    free = '  %c = f32[4]{0} custom-call(%p), custom_call_target="ConcatBitcast"\n' * self.free
    # A branch's calls are not included in the model's sum.
    branch = f"%branch (q: f32[4]) -> f32[4] {{\n{free}}}\n\n"
    reduced = "  %r = f32[4]{0} all-reduce(%p), to_apply=%a\n"
    return f"{branch}ENTRY %main (p: f32[4]) -> f32[4] {{\n{kernel}{free}{reduced}}}\n"


def model(**fields):
  module = WaltDenoiser(**({"num_layers": 52, "scan_layers": True, "remat": "dots"} | fields))
  return DenoiserModel(module=module, optimizer_def=None)


BATCH = {"latents": jax.ShapeDtypeStruct((512, 5), np.float32)}


@pytest.fixture
def compiler(monkeypatch):
  """Results of the compiler, by layers: returned or raised; records the compiled steps."""
  answers, asked = {}, []

  def lower_step(model, batch, partitioner, *, num_microbatches=None):
    layers, rows = model.module.num_layers, batch["latents"].shape[0]
    asked.append((layers, model.module.scan_layers, rows, num_microbatches))

    def compile_():
      answer = answers.get(layers, Compiled(layers, rows))
      if isinstance(answer, Exception):
        raise answer
      return answer

    return types.SimpleNamespace(compile=compile_)

  monkeypatch.setattr(tpu_compile, "lower_step", lower_step)
  monkeypatch.setattr(tpu_compile, "topology_devices", lambda name: jax.devices())
  return types.SimpleNamespace(answers=answers, asked=asked)


def test_time_is_that_of_all_layers_and_memory_of_the_complete_step(compiler):
  report = tpu_report.report(model(), BATCH, topology="v5e:2x4", flops_per_step=1e15)
  assert compiler.asked == [(52, True, 512, None), (2, False, 512, None), (4, False, 512, None)]
  seconds = 0.3 + 0.02 * 52 * 512
  assert report.estimated_step_seconds == pytest.approx(seconds)
  assert report.estimated_utilization == pytest.approx(1e15 / seconds / 8 / 197e12)
  assert report.hbm_bytes_per_chip == 3 * GIB and report.fits
  assert report.collective_bytes == {"all-reduce": 16} and report.chips == 8


def test_microbatches_are_timed_separately(compiler):
  report = tpu_report.report(model(), BATCH, topology="v5e:2x4", num_microbatches=4)
  assert compiler.asked == [(52, True, 512, 4), (2, False, 128, None), (4, False, 128, None)]
  assert report.estimated_step_seconds == pytest.approx(4 * (0.3 + 0.02 * 52 * 128))


def test_an_out_of_memory_error_is_reported_and_another_error_is_raised(compiler):
  compiler.answers[52] = RuntimeError(REJECTION)
  report = tpu_report.report(model(), BATCH, topology="v5e:2x4")
  assert not report.fits and report.estimated_step_seconds is None
  assert (report.hbm_bytes_per_chip, report.hbm_limit_bytes) == tpu_compile.memory_wanted(REJECTION)
  assert report.problem == REJECTION.splitlines()[0]
  compiler.answers[52] = RuntimeError("INTERNAL: mosaic failed")
  with pytest.raises(RuntimeError, match="mosaic failed"):
    tpu_report.report(model(), BATCH, topology="v5e:2x4")


def test_a_step_that_fits_is_reported_without_a_time_if_the_shallow_ones_do_not(compiler):
  compiler.answers[4] = RuntimeError(REJECTION)
  report = tpu_report.report(model(), BATCH, topology="v5e:2x4")
  assert (
    report.fits
    and report.estimated_step_seconds is None
    and "no estimate of time: RESOURCE" in report.problem
  )


def test_negative_seconds_of_the_cost_model_are_not_an_estimate(compiler):
  compiler.answers[4] = Compiled(4, 512, unknown=91, free=2)
  report = tpu_report.report(model(), BATCH, topology="v5e:2x4", flops_per_step=1e15)
  assert report.fits and "no estimate of time" in report.problem
  assert report.estimated_step_seconds is None and report.estimated_utilization is None


def test_free_calls_do_not_make_seconds_negative(compiler):
  # Each is missing 1 s in the model's sum: the shallow step's stays positive, the other's does not.
  compiler.answers |= {2: Compiled(2, 512, free=3), 4: Compiled(4, 512, free=175)}
  report = tpu_report.report(model(), BATCH, topology="v5e:2x4", flops_per_step=1e15)
  assert report.estimated_step_seconds == pytest.approx(0.3 + 0.02 * 52 * 512)
  assert report.problem == ""


def plan(**changes):
  fields = {
    "parameters": 1, "parameters_by_module": {}, "tokens_per_row": 1280, "batch_size": 512,
    "train_flops_per_step": 1e16, "steps": 550_000, "bytes_per_row": 100_000, "record_bytes": {},
  }  # fmt: skip
  return run_plan.Plan(**(fields | changes))


def test_a_step_that_does_not_fit_reports_the_excess_and_the_settings():
  advice = plan_text.memory_advice(
    remat="dots", remat_name="base/transformer.WaltDenoiser.remat", batch_size=512,
    num_microbatches=1, fully_sharded=False,
  )  # fmt: skip
  report = tpu_report.TopologyReport(
    chips=4, hosts=1, fits=False, hbm_bytes_per_chip=int(23.56 * GIB),
    hbm_limit_bytes=int(15.75 * GIB), problem=REJECTION.splitlines()[0],
  )  # fmt: skip
  lines = plan_text.topology_lines(
    "v5e:2x2", dataclasses.asdict(report), plan(memory_advice=advice)
  )
  assert lines[1].strip() == (
    "DOES NOT FIT: the training step of 512 examples needs 23.6 GiB, more than the 15.75 GiB of a chip "
    "of v5e:2x2: 7.8 GiB too much"
  )
  text = "\n".join(lines)
  for flag in (
    "--gin.base/transformer.WaltDenoiser.remat=\"'full'\"",
    "--gin.NUM_MICROBATCHES=2",
    "gin/runs/fully_sharded.gin",
    "--topology",
    "--batch_size=256",
  ):
    assert f"try: {flag}" in text or f"'{flag}'" in text, flag
  unknown = dataclasses.asdict(dataclasses.replace(report, hbm_bytes_per_chip=None))
  assert REJECTION.splitlines()[0] in "\n".join(
    plan_text.topology_lines("v5e:2x2", unknown, plan())
  )


def test_nothing_is_advised_that_is_set_already():
  advice = plan_text.memory_advice(
    remat="full", remat_name="x", batch_size=6, num_microbatches=2, fully_sharded=True
  )
  assert not [line for line in advice if "remat" in line or "sharded" in line or "MICRO" in line]


def test_input_and_days_follow_from_the_step():
  report = tpu_report.TopologyReport(
    chips=64, hosts=16, fits=True, hbm_bytes_per_chip=GIB, hbm_limit_bytes=95 * GIB,
    estimated_step_seconds=0.5,
  )  # fmt: skip
  text = "\n".join(plan_text.topology_lines("v5p:4x4x4", dataclasses.asdict(report), plan()))
  # 1,024 examples per second of 100 kB over 16 hosts; 550,000 half seconds.
  assert "1024.0" in text and "102.4 MB/s: 6.4 from each of 16" in text and "3.2 days" in text


@pytest.mark.parametrize(
  ("steps", "shown"),
  [(60, "30.0 s"), (1_200, "10.0 minutes"), (18_000, "2.5 hours"), (172_800, "1.0 days")],
)
def test_a_short_run_is_not_zero_days(steps, shown):
  report = tpu_report.TopologyReport(
    chips=64, hosts=16, fits=True, hbm_bytes_per_chip=GIB, hbm_limit_bytes=95 * GIB,
    estimated_step_seconds=0.5,
  )  # fmt: skip
  short = dataclasses.replace(plan(), steps=steps)
  text = "\n".join(plan_text.topology_lines("v5p:4x4x4", dataclasses.asdict(report), short))
  assert shown in text


def test_search_leaves_out_what_cannot_fit_and_recommends_the_fastest():
  # Memory grows with rows and with what is kept; "dots" is fastest a row.
  kept = {"none": 8, "dots": 4, "full": 1}
  cost = {"none": 1.2, "dots": 1.0, "full": 1.5}
  tried = []

  def try_one(model, rows):
    remat = model.module.remat
    tried.append((rows, remat))
    needed = kept[remat] * rows * GIB
    return tpu_report.TopologyReport(
      chips=1, hosts=1, fits=needed <= 16 * GIB, hbm_bytes_per_chip=needed, hbm_limit_bytes=16 * GIB,
      estimated_step_seconds=0.1 + cost[remat] * rows,
    )  # fmt: skip

  variants = list(tpu_report.search(model(), batch_sizes=(4, 2, 8), try_one=try_one))
  assert tried == [
    *((2, remat) for remat in kept), *((4, remat) for remat in kept), (8, "dots"), (8, "full"),
  ]  # fmt: skip
  assert [v.fits for v in variants] == [True] * 3 + [False, True, True] + [False, False, True]
  best = tpu_report.recommended(variants)
  assert (best.remat, best.batch_size) == ("dots", 4)
  text = plan_text.search_table("v5e:2x2", variants, best)
  assert "recommended: remat = 'dots' with batch size 4," in text and "not tried" in text
  assert tpu_report.recommended([v for v in variants if not v.fits]) is None
