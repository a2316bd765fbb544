"""The comparison of a super-resolution stage with bicubic upscaling, and the plan of sampling."""

import dataclasses
import itertools
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.generation import cascades
from walt_t5x import compare_upscaling, plan_sampling
from walt_t5x.diffusion.guidance import ConstantGuidance, IntervalGuidance
from walt_t5x.diffusion.samplers.caching import EveryNth
from walt_t5x.models.sampling import SamplerConfig


def _network(clips, *, batch_size):
  """Features: mean and standard deviation of each half of a clip."""
  halves = np.split(clips.astype(np.float32).reshape(len(clips), -1) / 255, 2, axis=1)
  return {"f": np.stack([f(x, axis=1) for x in halves for f in (np.mean, np.std)], axis=1)}


def test_the_closer_clips_have_the_smaller_distance_and_the_larger_psnr():
  rng = np.random.default_rng(0)
  truth = rng.integers(0, 256, (12, 5, 8, 8, 3), np.uint8)
  noise = rng.normal(size=truth.shape)
  made = {
    name: np.clip(truth + spread * noise, 0, 255).astype(np.uint8)
    for name, spread in (("same", 0), ("near", 5), ("far", 60))
  }
  found = compare_upscaling.compare(
    made,
    truth,
    _network,
    layer="f",
    batch_size=5,
    lpips=lambda x, y: np.abs(np.asarray(x) - np.asarray(y)).mean((1, 2, 3, 4)),
  )
  assert found["same"]["frechet"] == pytest.approx(0, abs=1e-6) and found["same"]["psnr"] == 100
  assert found["near"]["frechet"] < found["far"]["frechet"]
  error = np.mean((made["near"].astype(float) - truth) ** 2, axis=(1, 2, 3, 4)) / 255**2
  np.testing.assert_allclose(found["near"]["psnr"], np.mean(-10 * np.log10(error)), rtol=1e-4)
  apart = np.abs(made["far"].astype(float) - truth).mean() / 255
  np.testing.assert_allclose(found["far"]["lpips"], apart, rtol=1e-5)


def test_a_stage_wins_a_comparison_only_with_the_smaller_distance():
  bicubic = {"frechet": 5.0, "lpips": 0.2, "psnr": 30.0}
  ways = {
    compare_upscaling.STAGE: {"frechet": 4.0, "lpips": 0.3, "psnr": 20.0},
    compare_upscaling.BICUBIC_LATENTS: bicubic | {"lpips": 0.4},
    compare_upscaling.BICUBIC: bicubic | {"frechet": 1.0},
  }
  assert compare_upscaling.wins(ways) == {
    "frechet, bicubic latents": True,
    "lpips, bicubic latents": True,
    "lpips, bicubic": False,
  }


def test_latents_are_enlarged_as_pillow_enlarges_each_channel():
  latents = np.random.default_rng(0).normal(size=(1, 2, 4, 4, 3)).astype(np.float32)
  got = compare_upscaling.enlarge_latents(latents, (8, 8))
  for t, c in itertools.product(range(2), range(3)):
    image = Image.fromarray(latents[0, t, :, :, c])
    expected = np.asarray(image.resize((8, 8), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(got[0, t, :, :, c], expected, atol=1e-5)


def test_each_way_gets_only_its_inputs():
  held = compare_upscaling.HeldOut(
    small=np.full((3, 5, 4, 4, 3), 100, np.uint8),
    large=np.full((3, 5, 8, 8, 3), 40, np.uint8),
    prompts=["a", "b", "c"],
  )
  asked = []

  def upscale(stage, low, prompts, *, seed, first_index):
    asked.append((stage, list(prompts), first_index, low.shape))
    return np.zeros((len(low), 5, 8, 8, 3), np.uint8)

  codec = types.SimpleNamespace(
    encode=lambda x: x.astype(np.float32),
    decode=lambda z: (z + 1).astype(np.uint8),
    vae=types.SimpleNamespace(spatial_factor=1),
  )
  cascade = types.SimpleNamespace(codec=codec, upscale=upscale)
  made = compare_upscaling.make_clips(cascade, held, stage="sr1", batch_size=2, seed=0)
  assert [a[1:3] for a in asked] == [(["a", "b"], 0), (["c"], 2)]
  assert {name: int(clips.mean()) for name, clips in made.items()} == {
    compare_upscaling.STAGE: 0,
    compare_upscaling.BICUBIC_LATENTS: 101,
    compare_upscaling.BICUBIC: 101,
    compare_upscaling.ORIGINAL: 100,
    compare_upscaling.TOKENIZER: 41,
  }
  with pytest.raises(FileNotFoundError, match=r"no validation.tfrecord-\* in /nowhere"):
    compare_upscaling.read_held_out("/nowhere", "validation", ("a", "b"), 2)


def test_a_plan_of_sampling_counts_branches_steps_and_bytes():
  (config,) = cascades.config(Path("/nowhere"), stages=("base",)).stages

  def plan(**sampler):
    model = cascades.model()
    model.sampler = SamplerConfig(**sampler)
    changed = dataclasses.replace(config, model=model, weights_dtype="bfloat16")
    return plan_sampling.plan_stage(changed, text_length=8, batch_size=1)

  alone = plan(num_steps=1, guidance=None)
  guided = plan(num_steps=5, guidance=ConstantGuidance(2.0), frame_guidance=ConstantGuidance(3.0))
  assert guided.flops_per_sample == 15 * alone.flops_per_sample > 0
  assert (guided.network_rows, guided.network_calls, guided.tokens_per_row) == (3, 5, 5 * 4 * 4)
  # At t = 1 and 1/5, outside of the interval, only the condition counts.
  inside = plan(num_steps=5, guidance=IntervalGuidance(2.0, 0.3, 0.9))
  assert inside.flops_per_sample == 8 * alone.flops_per_sample and inside.network_rows == 1.6
  # Of five calls, three compute; the others embed and project.
  cached = plan(num_steps=5, guidance=ConstantGuidance(2.0), cache=EveryNth(2))
  assert (cached.network_rows, cached.network_calls) == (2, 3)
  assert 6 < cached.flops_per_sample / alone.flops_per_sample < 6.5
  assert alone.weight_bytes == 2 * alone.parameters > 0
  assert "base" in plan_sampling.table([guided], batch_size=1)
