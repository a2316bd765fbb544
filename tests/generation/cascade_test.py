"""Properties of the cascade: noise by sample number, batches, captions, weights, stages, devices.

The denoisers are small ones with random weights, and ones that return their inputs.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.lossless_cascade import (
  PROMPTS,
  Packing,
  make_batch,
  make_cascade,
  make_clip,
  make_media,
  params_of,
  samples_of,
  shown,
  stage_configs,
)
from tests.generation.perfect_denoiser import PerfectDenoiser, perfect_config
from walt_t5x.diffusion.guidance import ConstantGuidance
from walt_t5x.generation import cascade as cascade_module
from walt_t5x.generation.cascade import Batch
from walt_t5x.generation.stage_sampler import mesh_for
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.sampling import SamplerConfig


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(two):
  first, again, other = (samples_of(two, make_batch(0, 1), seed=seed)[0] for seed in (3, 3, 4))
  for name in ("base", "sr1"):
    assert first.videos[name].tobytes() == again.videos[name].tobytes()
    assert np.abs(first.latents[name] - other.latents[name]).max() > 0.1
  assert first.videos["sr1"].shape == (17, 8, 8, 3) and first.latents["base"].shape == (
    1, 5, 4, 4, 12,
  )  # fmt: skip


def test_a_sample_depends_on_its_number_and_prompt_not_on_its_batch(two):
  base = stage_configs()[:1]
  together = samples_of(make_cascade(batch_size=4, configs=base), make_batch(0, 1, 2, 3))
  one = make_cascade(batch_size=1, configs=base)
  alone = [samples_of(one, make_batch(i))[0] for i in range(4)]
  media = make_media(make_clip(9), 5)
  (goes_on,), (as_well, _) = (
    samples_of(c, make_batch(*i, media=media)) for c, i in ((one, [1]), (two, [1, 2]))
  )
  np.testing.assert_allclose(goes_on.latents["base"], as_well.latents["base"], atol=1e-5)
  pairs = samples_of(two, make_batch(1, 0), make_batch(2))
  assert len(pairs) == 3  # The clip that padded the batch is not returned.
  for a, b in [*zip(together, alone), (together[1], pairs[0]), (together[2], pairs[2])]:
    assert a.index == b.index
    np.testing.assert_allclose(a.latents["base"], b.latents["base"], atol=1e-5)
  assert np.abs(together[0].latents["base"] - together[1].latents["base"]).max() > 0.1


def test_a_run_reports_its_progress(two):
  told = []
  samples_of(
    two, make_batch(0), make_batch(1), extensions=1, progress=lambda *now: told.append(now)
  )
  assert told == [(name, i) for _ in range(2) for name in ("base", "sr1") for i in (0, 1)]


def test_weights_are_read_once_and_identified_by_their_fingerprints():
  loads = []

  def load(info):
    loads.append(info.config.name)
    return ({}, info.config.name[0])

  cascade = make_cascade(configs=[perfect_config(config) for config in stage_configs()], load=load)
  cascade._run_stage = lambda *_, **__: None
  for _ in range(2):
    samples_of(cascade, make_batch(0), make_batch(1))
  assert loads == ["base", "sr1"] and cascade.fingerprints == {"base": "b", "sr1": "s"}


def test_a_short_batch_is_padded_with_its_last_clip_and_a_long_one_is_rejected():
  cascade, seen = make_cascade(batch_size=5), []

  def run_stage(info, below, params, work, **_):
    seen.append(work)
    work.videos[info.config.name] = [np.zeros((1, 8, 8, 3), np.uint8)] * 5

  cascade._run_stage, cascade._weights = run_stage, lambda info: None
  batch = Batch(indices=[7, 8, 9], prompts=["a", "b", "c"], labels=[4, 5, 6])
  assert len(samples_of(cascade, batch, stages=1)) == 3
  filled = seen[0].batch
  assert filled == Batch(
    indices=[7, 8, 9, 9, 9],
    prompts=["a", "b", "c", "c", "c"],
    labels=[4, 5, 6, 6, 6],
    seeds=[],
    seed=3,
    media=[],
  )
  low = np.arange(3.0).reshape(3, 1, 1, 1, 1)
  assert len(cascade.upscale("sr1", low, ["a", "b", "c"], seed=0, first_index=7)) == 3
  assert seen[1].batch.indices == filled.indices and seen[1].batch.prompts == filled.prompts
  assert seen[1].latents["base"][0].ravel().tolist() == [0, 1, 2, 2, 2]
  with pytest.raises(ValueError, match="got a batch of 6 clips, expected at most batch_size=5"):
    samples_of(cascade, Batch(indices=range(6), prompts=[""] * 6))


def test_the_time_of_a_batch_is_split_into_encoding_sampling_and_decoding(monkeypatch):
  clock = iter([0.0, 1.0, 3.0, 7.0, 10.0, 11.0, 13.0, 17.0])
  monkeypatch.setattr(cascade_module, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
  assert shown(None, extensions=1).seconds["base"] == {"encode": 2, "sample": 4, "decode": 8}


def test_a_prompt_is_its_tokens_and_then_padding(two):
  text, mask = two.encode_text(["ab", "a red square"])
  assert text.shape == (2, 1, 8, 8) and mask.shape == (2, 1, 8)
  for row, letters in enumerate(("ab", "a red sq")):
    tokens = np.sin(np.outer([ord(x) for x in letters], np.arange(1, 9)))
    np.testing.assert_allclose(text[row, 0, : len(letters)], tokens, atol=1e-5)
    assert not text[row, 0, len(letters) :].any()
    assert mask[row, 0].tolist() == [i < len(letters) for i in range(8)]


def test_truncated_prompts_are_reported(two):
  # `Words` makes one token per letter; the stages read 8.
  assert two.cut_prompts(["a red sq", "a red square", "b", "a red square"]) == {"a red square": 12}


def test_eight_devices_generate_the_same_as_one(two):
  assert jax.device_count() == 8
  mesh = mesh_for(2, jax.devices())
  assert mesh.shape == {"data": 2, "model": 4} and mesh_for(2, jax.devices()[:1]) is None
  spread = make_cascade(mesh=mesh, configs=stage_configs()[:1])
  eight = samples_of(spread, make_batch(0, 1))
  weights = jax.tree.leaves(spread._weights(spread.infos[0]))
  assert {len(leaf.devices()) for leaf in weights} == {8}
  for a, b in zip(samples_of(two, make_batch(0, 1)), eight):
    np.testing.assert_allclose(a.latents["base"], b.latents["base"], atol=1e-5)


def test_a_single_stage_equals_that_of_the_cascade(two):
  made = samples_of(two, make_batch(1, 2))
  low = np.concatenate([sample.latents["base"] for sample in made])
  alone = two.upscale("sr1", low, [s.prompt for s in made], seed=3, first_index=1)
  np.testing.assert_array_equal(alone, [sample.videos["sr1"] for sample in made])
  numbered = two.upscale("sr1", low, [s.prompt for s in made], seed=3, first_index=0)
  np.testing.assert_array_equal(two.upscale("sr1", low, [s.prompt for s in made], seed=3), numbered)
  assert (numbered != alone).any()
  short = two.upscale("sr1", low[:1], [made[0].prompt], seed=3, first_index=1)
  np.testing.assert_array_equal(short, alone[:1])
  with pytest.raises(ValueError, match=r"'base': expected one of \['sr1'\]"):
    two.upscale("base", low, ["a", "b"], seed=3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Witness(PerfectDenoiser):
  """Returns its inputs, one per channel: text, steps of the low resolution's noise, x_t, the noised low resolution."""

  text_dim: int = 8

  def apply(self, variables, x_t, steps, self_condition, conditioning):
    mask = conditioning.text_mask[..., None]
    text = (conditioning.text * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))
    facts = [text, conditioning.low_resolution_steps / 1000]
    planes = [jnp.broadcast_to(f[:, None, None, None], x_t.shape[:-1]) for f in facts]
    planes += [x_t[..., 0], conditioning.low_resolution[..., 0].repeat(2, 2).repeat(2, 3)]
    return jnp.stack([*planes, *[x_t[..., 0]] * 8], axis=-1)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_stage_gets_its_caption_and_a_low_resolution_with_its_own_noise(scale):
  """One step of a network that returns its inputs; guidance 0 leaves the null caption, 1 the prompt's."""
  base, sr = stage_configs()
  model = DenoiserModel(
    module=_Witness(latent_channels=12, low_resolution_scale=2),
    optimizer_def=None,
    prediction="x0",
    sampling_low_resolution_noise=0.15,
    sampler=SamplerConfig(num_steps=1, guidance=ConstantGuidance(scale)),
  )
  sr = dataclasses.replace(sr, model=model)
  load = lambda i: ({}, "")  # noqa: E731
  cascade = make_cascade(configs=[base, sr], load=load)
  low = np.random.default_rng(0).normal(size=(2, 5, 4, 4, 12)).astype(np.float32)
  seen = []
  cascade.codec = types.SimpleNamespace(
    vae=Packing.vae, decode=lambda z: seen.append((z - 0.5) / 0.25) or np.zeros((2, 17, 8, 8, 3))
  )
  cascade.upscale("sr1", low, PROMPTS[:2], seed=3)
  text, steps, noise, given = np.moveaxis(seen[0][..., :4], -1, 0)
  for row, prompt in enumerate(PROMPTS[:2]):
    letters = np.sin(np.outer([ord(x) for x in prompt[:8]], np.arange(1, 9)))
    # The null caption has one token of ones.
    expected = 8.0 if scale == 0 else letters.sum() / len(letters)
    np.testing.assert_allclose(text[row], expected, atol=1e-4)
  np.testing.assert_allclose(steps, 0.15, atol=1e-5)
  gamma = float(model.schedule.gamma(jnp.array(150.0)))
  clean = (low[..., 0] - 0.5) / 0.25
  low_noise = (given[:, :, ::2, ::2] - np.sqrt(gamma) * clean) / np.sqrt(1 - gamma)
  for values in (low_noise, noise):
    np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=0.15)
  assert abs(np.corrcoef(low_noise.ravel(), noise[:, :, ::2, ::2].ravel())[0, 1]) < 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Labels(PerfectDenoiser):
  """Returns its example's label everywhere; reads no text."""

  num_classes: int = 10
  frame_prediction: bool = False

  def apply(self, variables, x_t, steps, self_condition, conditioning):
    assert conditioning.text is None and conditioning.frames is None
    return jnp.zeros_like(x_t) + conditioning.labels[:, :, None, None, None].astype(jnp.float32)


def test_classes_are_passed_to_the_network_without_text():
  sampler = SamplerConfig(num_steps=2, guidance=None)
  model = DenoiserModel(
    module=_Labels(latent_channels=12),
    optimizer_def=None,
    prediction="x0",
    rows="videos",
    sampler=sampler,
  )
  config = dataclasses.replace(stage_configs()[0], model=model)
  load = lambda i: ({}, "")  # noqa: E731
  cascade = make_cascade(configs=[config], load=load)
  cascade.text_encoder = None
  batch = Batch(indices=[5, 6], prompts=["", ""], labels=[3, 7])
  for sample, label in zip(samples_of(cascade, batch), (3, 7)):
    np.testing.assert_allclose(sample.latents["base"], 0.5 + 0.25 * label, atol=1e-6)


def test_nothing_is_recompiled_and_stages_one_at_a_time_give_the_same_result(two):
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **kwargs: compiled.append(event) if "backend_compile" in event else None
  )
  expected = samples_of(two, make_batch(0, 1), extensions=2)
  samples_of(two, make_batch(2, 3, media=make_media(make_clip(1), 1)), extensions=1)
  before = len(compiled)
  assert samples_of(two, make_batch(0, 2), make_batch(3), extensions=1, seed=8)
  assert len(compiled) == before
  loads = []

  def load(info):
    loads.append(info.config.name)
    return (params_of(info.config.name), "f")

  one = make_cascade(one_at_a_time=True, load=load)
  one._samplers = two._samplers  # Already compiled.
  made = samples_of(one, make_batch(0, 1), make_batch(2, 3), extensions=2)
  assert loads == ["base", "sr1"] and not one._loaded
  np.testing.assert_array_equal(made[1].videos["sr1"], expected[1].videos["sr1"])


def test_a_batch_without_a_seed_has_seed_0():
  assert Batch(indices=[0], prompts=["a"]).seed == 0
