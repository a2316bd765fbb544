"""The figures of `python -m walt_t5x.plan` for the published runs."""

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

import gin
from tests import programs
from walt_t5x import engine
from walt_t5x.config import gin_config
from walt_t5x.denoiser.transformer import WaltDenoiser
from walt_t5x.engine import flops
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.planning.run_plan import plan_gin, plan_model

ROOT = Path(__file__).resolve().parents[2]
# Published sizes by the paper's arithmetic; those given to three decimals of a million are within 0.05M.
PUBLISHED = {
  "walt_l_ucf101": (313_238_408, 0),
  "ablations/adaln_rank_4": (313_582_000, 50_000),
  "ablations/adaln_rank_16": (315_647_000, 50_000),
  "ablations/adaln_rank_64": (323_904_000, 50_000),
  "ablations/adaln_rank_256": (356_935_000, 50_000),
  "ablations/adaln_separate": (457_739_000, 50_000),
  "walt_xl_ucf101": (460_019_080, 0),
  "walt_l_k600": (313_143_176, 0),
  "walt_l_imagenet": (459_815_000, 50_000),
  "walt_l_t2v": (419_153_800, 0),
  "walt_l_t2v_video_only": (419_153_800, 0),
  "walt_sr_256x448": (1_296_343_616, 0),
  "walt_sr_512x896": (418_609_696, 0),
  "walt_sr_512x896_p2": (419_482_048, 0),
  "walt_3b": (2_940_118_024, 0),
}


PLANS = {}


@pytest.fixture
def planned(monkeypatch):
  """A function: name of a gin file -> its plan, made once; the file remains parsed."""
  monkeypatch.setattr(sys.modules["__main__"], "train", engine.train, raising=False)
  # Another test covers the FLOPs; their count takes longer than all other figures.
  monkeypatch.setattr(flops, "count_flops_of", lambda *_: 0)
  gin.clear_config()

  def plan(name):
    gin_config.parse([str(ROOT / f"gin/{name}.gin")], [], [str(ROOT)], finalize=False)
    if name not in PLANS:
      PLANS[name] = plan_gin()
    return PLANS[name]

  yield plan
  gin.clear_config()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_gin_file_has_the_published_size(name, planned):
  expected, tolerance = PUBLISHED[name]
  plan = planned(name)
  assert abs(plan.parameters - expected) <= tolerance
  assert plan.parameters == sum(plan.parameters_by_module.values())
  tokens = {
    "walt_l_imagenet": 1024,
    "walt_sr_256x448": 2240,
    "walt_sr_512x896": 2240,
    "walt_sr_512x896_p2": 8960,
  }
  assert plan.tokens_per_row == tokens.get(name, 1280)
  # The steps of Tables 1 and 2.
  steps = {"walt_l_imagenet": 437_000, "walt_l_ucf101": 60_000, "walt_xl_ucf101": 60_000}
  assert plan.steps == steps.get(name, plan.steps)


def test_flops_equal_the_closed_form_of_a_stack():
  width, layers, mlp, heads, rows = 32, 4, 128, 4, 3
  module = WaltDenoiser(
    num_layers=layers,
    width=width,
    num_heads=heads,
    mlp_dim=mlp,
    latent_channels=4,
    spatial_window=(1, 4, 4),
    spatiotemporal_window=(3, 2, 2),
    scan_layers=True,
    remat="full",
    dtype=jnp.float32,
  )

  def counted(p_sc):
    model = DenoiserModel(
      module=module, optimizer_def=None, rows="videos", self_conditioning_probability=p_sc
    )
    return plan_model(model, batch_size=rows, field="latents/3x4x4").train_flops_per_step

  tokens = 48
  per_token = layers * (2 * 4 * width**2 + 2 * 2 * width * mlp)
  windows = layers // 2 * (4 * 16 * width + 4 * 12 * width)
  layer_forward = tokens * (per_token + windows)
  backward = 2 * layer_forward
  # Embeddings, AdaLN and the output add a small amount to the stack.
  stack = rows * (layer_forward + backward)
  assert stack < counted(0.0) < 1.15 * stack
  # The self-conditioning pass is one additional forward pass.
  assert rows * layer_forward < counted(0.9) - counted(0.0) < 1.15 * rows * layer_forward


def test_a_video_record_is_larger_by_the_bytes_of_its_additional_frames(planned):
  plan = planned("walt_3b")
  more = plan.record_bytes["video"] - plan.record_bytes["image"]
  # bfloat16 latents; lengths in the record's frames take a few more bytes.
  assert 0 <= more - 2 * (5 - 1) * 16 * 16 * 8 < 16
  # 24 tokens of 2048 int8 values, a scale of 4 bytes and 256 steps each.
  assert plan.record_bytes["image"] > 2 * 16 * 16 * 8 + 24 * (2048 + 4 + 256)
  assert plan.bytes_per_row > 2 * 5 * 16 * 16 * 8 + 5 * 64 * (2048 + 4 + 256)


def test_advice_uses_the_names_of_the_files_bindings(planned):
  (advice,) = [line for line in planned("walt_3b").memory_advice if "remat" in line]
  assert advice.startswith("--gin.base/")
  gin_config.parse(
    [], [advice.split(" ")[0].removeprefix("--gin.").replace('"', "")], [], finalize=False
  )
  assert gin_config.macro_value("MODEL").module.remat == "full"


def test_the_program_prints_json_and_names_errors():
  result = programs.run(
    "walt_t5x.plan", "--gin_file=gin/tiny/base.gin", "--json", "--gin.BATCH_SIZE=4"
  )
  plan = json.loads(result.stdout)
  assert plan["batch_size"] == 4 and plan["tokens_per_row"] == 48 and result.returncode == 0
  wrong = programs.run(
    "walt_t5x.plan",
    "--gin_file=gin/tiny/base.gin",
    "--gin.base/transformer.WaltDenoiser.num_layers=5",
  )
  assert wrong.returncode != 0 and "num_layers=5" in wrong.stderr
  assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
  ("file", "cure"),
  [
    ("gin/tiny/generate.gin", "walt_t5x.plan_sampling` prints its cost"),
    ("gin/tiny/eval_base.gin", "T5X's eval.py runs it"),
  ],
)
def test_a_file_of_another_program_is_answered_with_that_program(file, cure):
  result = programs.run("walt_t5x.plan", f"--gin_file={file}")
  assert result.returncode != 0 and f"{file}: a configuration for another program" in result.stderr
  assert cure in result.stderr and "Traceback" not in result.stderr
