"""Properties of the cascade: noise by sample number, conditioning frames, consistent extensions, devices.

The tokenizer is replaced by a lossless one, so conditioning frames must be reproduced exactly; the denoisers are
small ones with random weights, and one that returns the true latents.
"""

import dataclasses
import functools
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.provenance import LatentStatistics, Provenance
from tests.generation import cascades
from tests.generation.perfect_denoiser import PerfectDenoiser, perfect_config
from tests.generation.random_cascade import random_params
from walt_t5x.diffusion.guidance import ConstantGuidance
from walt_t5x.generation import cascade as cascade_module
from walt_t5x.generation.cascade import Batch, Cascade
from walt_t5x.generation.conditioning_media import ConditioningMedia
from walt_t5x.generation.stage import StageInfo
from walt_t5x.generation.stage_sampler import mesh_for
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.sampling import SamplerConfig

FACTOR = 4  # Frames per latent frame: 17 frames are 5 latent frames.
PROMPTS = ["a red square", "a blue circle", "a green dot", "a sun"]


class _Packing:
  """A lossless causal tokenizer: four frames are concatenated along the channels, the first one is separate."""

  @dataclasses.dataclass
  class _Factors:
    temporal_factor: int = FACTOR
    spatial_factor: int = 1
    latent_channels: int = 3 * FACTOR

  vae = _Factors()

  def encode(self, frames):
    frames = np.concatenate([frames[:, :1]] * (FACTOR - 1) + [frames], axis=1)
    b, t, h, w, _ = frames.shape
    packed = frames.reshape(b, t // FACTOR, FACTOR, h, w, 3).transpose(0, 1, 3, 4, 2, 5)
    return packed.reshape(b, t // FACTOR, h, w, 3 * FACTOR).astype(np.float32) / 255

  def decode(self, latents):
    b, t, h, w, _ = latents.shape
    frames = latents.reshape(b, t, h, w, FACTOR, 3).transpose(0, 1, 4, 2, 3, 5)
    frames = frames.reshape(b, t * FACTOR, h, w, 3)[:, FACTOR - 1 :]
    return np.rint(np.clip(frames, 0, 1) * 255).astype(np.uint8)


class _Words:
  """A text encoder that encodes a caption's letters."""

  embedding_dim = 8

  def tokenize(self, texts, length):
    return [[ord(letter) for letter in text[:length]] for text in texts]

  def encode(self, tokens):
    return [np.sin(np.outer(ids, np.arange(1, 9))).astype(np.float32) for ids in tokens]


STATISTICS = LatentStatistics(channels=12, mean=[0.5] * 12, std=[0.25] * 12)
PROVENANCE = Provenance(
  fps=8.0,
  num_frames=17,
  vae={"fingerprint": "v"},
  text_encoder={"fingerprint": "t", "embedding_dim": 8},
  latents={cascades.BASE: STATISTICS, cascades.SR: STATISTICS},
  null_embedding=np.ones((1, 8), np.float32),
)


@functools.cache
def _params(name):
  (config,) = [c for c in _configs() if c.name == name]
  return random_params(config, text_length=8, seed=ord(name[0]), spread=0.1)


@functools.cache
def _configs():
  sr = {"patch_size": 2, "low_resolution_scale": 2, "pooled_text": False, "guidance": None}
  channels = {"latent_channels": 12}
  made = cascades.config(
    Path("/nowhere"), base=cascades.model(**channels), sr=cascades.model(**channels, **sr)
  )
  return made.stages


def _cascade(*, batch_size=2, mesh=None, configs=None, load=None, **options):
  infos = [
    StageInfo(config=config, checkpoint="", step=1, provenance=PROVENANCE)
    for config in configs or _configs()
  ]
  return Cascade(
    infos=infos,
    text_encoder=_Words(),
    text_length=8,
    codec=_Packing(),
    batch_size=batch_size,
    mesh=mesh,
    load=load or (lambda i: (_params(i.config.name), "f")),
    **options,
  )


@pytest.fixture(scope="module", autouse=True)
def quickly():
  """Compiled programs run only a few times here, so LLVM optimization is off."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def two():
  """A cascade that generates two clips at a time, compiled once for this file."""
  return _cascade()


def _batch(*indices, media=None):
  return Batch(indices=indices, prompts=[PROMPTS[i] for i in indices], media=[media] * len(indices))


def _samples(cascade, *batches, **options):
  determined = ("seed", "extensions", "decoded_conditioning")
  fields = {"seed": 3} | {name: options.pop(name) for name in determined if name in options}
  made = cascade.run([dataclasses.replace(batch, **fields) for batch in batches], **options)
  return [sample for batch in made for sample in batch]


def _clip(frames, *, side=8, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (frames, side, side, 3), np.uint8)


def _media(frames, count):
  return ConditioningMedia(path="x", sha256="s", frames=frames, conditioning_frames=count)


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(two):
  first, again, other = (_samples(two, _batch(0, 1), seed=seed)[0] for seed in (3, 3, 4))
  for name in ("base", "sr1"):
    assert first.videos[name].tobytes() == again.videos[name].tobytes()
    assert np.abs(first.latents[name] - other.latents[name]).max() > 0.1
  assert first.videos["sr1"].shape == (17, 8, 8, 3) and first.latents["base"].shape == (
    1, 5, 4, 4, 12,
  )  # fmt: skip


def test_a_sample_depends_on_its_number_and_prompt_not_on_its_batch(two):
  base = _configs()[:1]
  together = _samples(_cascade(batch_size=4, configs=base), _batch(0, 1, 2, 3))
  one = _cascade(batch_size=1, configs=base)
  alone = [_samples(one, _batch(i))[0] for i in range(4)]
  media = _media(_clip(9), 5)
  (goes_on,), (as_well, _) = (
    _samples(c, _batch(*i, media=media)) for c, i in ((one, [1]), (two, [1, 2]))
  )
  np.testing.assert_allclose(goes_on.latents["base"], as_well.latents["base"], atol=1e-5)
  pairs = _samples(two, _batch(1, 0), _batch(2))
  assert len(pairs) == 3  # The clip that padded the batch is not returned.
  for a, b in [*zip(together, alone), (together[1], pairs[0]), (together[2], pairs[2])]:
    assert a.index == b.index
    np.testing.assert_allclose(a.latents["base"], b.latents["base"], atol=1e-5)
  assert np.abs(together[0].latents["base"] - together[1].latents["base"]).max() > 0.1


def test_a_run_reports_its_progress(two):
  told = []
  _samples(two, _batch(0), _batch(1), extensions=1, progress=lambda *now: told.append(now))
  assert told == [(name, i) for _ in range(2) for name in ("base", "sr1") for i in (0, 1)]


def test_weights_are_read_once_and_identified_by_their_fingerprints():
  loads = []

  def load(info):
    loads.append(info.config.name)
    return ({}, info.config.name[0])

  cascade = _cascade(configs=[perfect_config(config) for config in _configs()], load=load)
  cascade._run_stage = lambda *_, **__: None
  for _ in range(2):
    _samples(cascade, _batch(0), _batch(1))
  assert loads == ["base", "sr1"] and cascade.fingerprints == {"base": "b", "sr1": "s"}


def test_a_short_batch_is_padded_with_its_last_clip_and_a_long_one_is_rejected():
  cascade, seen = _cascade(batch_size=5), []

  def run_stage(info, below, params, work, **_):
    seen.append(work)
    work.videos[info.config.name] = [np.zeros((1, 8, 8, 3), np.uint8)] * 5

  cascade._run_stage, cascade._weights = run_stage, lambda info: None
  batch = Batch(indices=[7, 8, 9], prompts=["a", "b", "c"], labels=[4, 5, 6])
  assert len(_samples(cascade, batch, stages=1)) == 3
  filled = seen[0].batch
  assert filled == Batch(
    indices=[7, 8, 9, 9, 9],
    prompts=["a", "b", "c", "c", "c"],
    labels=[4, 5, 6, 6, 6],
    seed=3,
    media=[],
  )
  low = np.arange(3.0).reshape(3, 1, 1, 1, 1)
  assert len(cascade.upscale("sr1", low, ["a", "b", "c"], seed=0, first_index=7)) == 3
  assert seen[1].batch.indices == filled.indices and seen[1].batch.prompts == filled.prompts
  assert seen[1].latents["base"][0].ravel().tolist() == [0, 1, 2, 2, 2]
  with pytest.raises(ValueError, match="got a batch of 6 clips, expected at most batch_size=5"):
    _samples(cascade, Batch(indices=range(6), prompts=[""] * 6))


def _shown(media, *, factor=4, extensions=0, **options):
  """One clip of a tokenizer that decodes 9 frames at a time, none of which equals its input."""
  cascade = _cascade(batch_size=1, configs=_configs()[:1])
  made = iter(range(100))

  def decode(latents):
    return np.full((1, 9, 4, 4, 3), 100 + next(made), np.uint8)

  cascade._weights = lambda info: None
  cascade._sample = lambda *_, **__: np.zeros((1, 3, 4, 4, 12))
  cascade.codec = types.SimpleNamespace(
    vae=_Packing._Factors(temporal_factor=factor), encode=lambda frames: None, decode=decode
  )
  (sample,) = _samples(cascade, _batch(0, media=media), extensions=extensions, **options)
  return sample


def test_each_extension_has_its_own_noise_and_the_last_frames_at_their_position():
  cascade, seen = _cascade(batch_size=3), {"base": [], "sr1": []}
  for name, size in (("base", 4), ("sr1", 8)):

    def sample(params, noise, conditioning, *, low_noise, null_text, name=name, size=size):
      seen[name].append((noise, low_noise, conditioning))
      return jnp.ones((3, 5, size, size, 12))

    cascade._samplers[name] = sample
  cascade._weights = lambda info: None
  _samples(cascade, _batch(0, 1, 2, media=_media(_clip(1), 1)), extensions=2)
  for name, calls in seen.items():
    for part in (0, 1) if name == "sr1" else (0,):
      noises = [np.asarray(call[part]) for call in calls]
      assert np.abs(noises[0] - noises[1]).max() > 1 < np.abs(noises[1] - noises[2]).max()
    for extension, (_, _, conditioning) in enumerate(calls):
      # The image is one latent frame, the last 1 + 4 frames of a part are two.
      count = 2 if extension else 1
      mask = [[i < count for i in range(5)]] * 3
      np.testing.assert_array_equal(conditioning.frame_mask, mask)
      assert not conditioning.frames[:, count:].any()
    # Latents of 1 are 0.5 + 0.25 of the tokenizer, in bytes of its pixels.
    np.testing.assert_allclose(calls[1][2].frames[:, :2], (191 / 255 - 0.5) / 0.25, atol=1e-5)


def test_a_conditioning_image_is_reconstructed_and_a_clip_is_kept():
  picture = _media(np.full((1, 4, 4, 3), 7, np.uint8), 1)
  frames = _shown(picture).videos["base"]
  assert len(frames) == 9 and not (frames == 7).any()
  for factor in (1, 4):
    clip = np.full((6, 4, 4, 3), 7, np.uint8)
    media = _media(clip, 1 + factor)
    frames = _shown(media, factor=factor).videos["base"]
    assert len(frames) == 6 + 9 - (1 + factor)
    np.testing.assert_array_equal((frames == 7).all((1, 2, 3)), [i < 6 for i in range(len(frames))])
    assert len(_shown(media, factor=factor, decoded_conditioning=True).videos["base"]) == 9
    longer = _shown(media, factor=factor, extensions=1).videos["base"]
    assert len(longer) == 6 + 2 * (9 - (1 + factor))


def test_the_time_of_a_batch_is_split_into_encoding_sampling_and_decoding(monkeypatch):
  clock = iter([0.0, 1.0, 3.0, 7.0, 10.0, 11.0, 13.0, 17.0])
  monkeypatch.setattr(cascade_module, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
  assert _shown(None, extensions=1).seconds["base"] == {"encode": 2, "sample": 4, "decode": 8}


def test_a_prompt_is_its_tokens_and_then_padding(two):
  text, mask = two.encode_text(["ab", "a red square"])
  assert text.shape == (2, 1, 8, 8) and mask.shape == (2, 1, 8)
  for row, letters in enumerate(("ab", "a red sq")):
    tokens = np.sin(np.outer([ord(x) for x in letters], np.arange(1, 9)))
    np.testing.assert_allclose(text[row, 0, : len(letters)], tokens, atol=1e-5)
    assert not text[row, 0, len(letters) :].any()
    assert mask[row, 0].tolist() == [i < len(letters) for i in range(8)]


def test_truncated_prompts_are_reported(two):
  # `_Words` makes one token per letter; the stages read 8.
  assert two.cut_prompts(["a red sq", "a red square", "b", "a red square"]) == {"a red square": 12}


def test_eight_devices_generate_the_same_as_one(two):
  assert jax.device_count() == 8
  mesh = mesh_for(2, jax.devices())
  assert mesh.shape == {"data": 2, "model": 4} and mesh_for(2, jax.devices()[:1]) is None
  spread = _cascade(mesh=mesh, configs=_configs()[:1])
  eight = _samples(spread, _batch(0, 1))
  weights = jax.tree.leaves(spread._weights(spread.infos[0]))
  assert {len(leaf.devices()) for leaf in weights} == {8}
  for a, b in zip(_samples(two, _batch(0, 1)), eight):
    np.testing.assert_allclose(a.latents["base"], b.latents["base"], atol=1e-5)


def test_an_image_is_the_first_frame_at_every_size(two):
  picture = _clip(1)
  for sample in _samples(two, _batch(0, 1, media=_media(picture, 1))):
    np.testing.assert_array_equal(sample.videos["sr1"][0], picture[0])
    halved = picture[0].reshape(4, 2, 4, 2, 3).mean((1, 3))
    np.testing.assert_allclose(sample.videos["base"][0], halved, atol=1)
    assert sample.videos["base"].shape[0] == 17
  # It affects the frames after it.
  other = _samples(two, _batch(0, 1, media=_media(_clip(1, seed=9), 1)))[0]
  assert np.abs(other.latents["base"][0, 1:] - sample.latents["base"][0, 1:]).max() > 0.01


def test_an_extension_continues_from_the_last_frames_of_the_previous_one(two):
  one, three = (_samples(two, _batch(0, 1), extensions=n)[0] for n in (0, 2))
  for name in ("base", "sr1"):
    assert len(one.videos[name]) == 17 and len(three.videos[name]) == 17 + 12 + 12
    np.testing.assert_array_equal(three.videos[name][:17], one.videos[name])
    for i in (1, 2):
      last = three.videos[name][: 17 + 12 * (i - 1)][-5:]
      first = two.codec.decode(three.latents[name][i][None])[0, :5]
      np.testing.assert_array_equal(first, last)


def test_a_clip_is_continued_after_its_own_frames(two):
  clip = _clip(7)
  sample = _samples(two, _batch(0, 1, media=_media(clip, 5)))[0]
  assert len(sample.videos["sr1"]) == 7 + 12
  np.testing.assert_array_equal(sample.videos["sr1"][:7], clip)
  np.testing.assert_array_equal(two.codec.decode(sample.latents["sr1"][0][None])[0, :5], clip[-5:])
  # Frame-prediction protocols need the conditioning frames as reconstructed by the tokenizer, and no others.
  decoded = _samples(two, _batch(0, 1, media=_media(clip, 5)), decoded_conditioning=True)[0]
  np.testing.assert_array_equal(decoded.videos["sr1"], sample.videos["sr1"][2:])
  # The first stages alone give the same result.
  alone = _samples(two, _batch(0, 1, media=_media(clip, 5)), stages=1)[0]
  assert list(alone.videos) == ["base"]
  np.testing.assert_array_equal(alone.videos["base"], sample.videos["base"])


def test_clips_of_different_lengths_are_continued_together(two):
  clips = [_clip(9, seed=1), _clip(6, seed=2)]
  media = [_media(clip, 5) for clip in clips]
  batch = Batch(indices=[0, 1], prompts=PROMPTS[:2], media=media)
  for i, sample in enumerate(_samples(two, batch)):
    np.testing.assert_array_equal(sample.videos["sr1"][: len(clips[i])], clips[i])
    assert len(sample.videos["sr1"]) == len(clips[i]) + 12
    (alone,) = _samples(two, _batch(i, media=media[i]))
    np.testing.assert_allclose(alone.latents["base"], sample.latents["base"], atol=1e-5)


@pytest.mark.parametrize("start", ["nothing", "picture", "clip"])
def test_with_an_oracle_three_extensions_are_the_complete_clip(start):
  clip, codec = _clip(53), _Packing()
  at = {"base": 4, "sr1": 8}
  windows, media = {}, None
  for name, side in at.items():
    frames = _media(clip, 1).at((side, side))
    parts = [frames[12 * i :][:17] for i in range(4)]
    windows[name] = (np.concatenate([codec.encode(part[None]) for part in parts]) - 0.5) / 0.25
  if start == "picture":
    media = _media(clip[:1], 1)
  elif start == "clip":
    media = _media(clip[:5], 5)
  configs = [perfect_config(config) for config in _configs()]
  cascade = _cascade(
    configs=configs,
    load=lambda i: ({"windows": windows[i.config.name]}, ""),
  )
  for sample in _samples(cascade, _batch(0, 1, media=media), extensions=3):
    for name, side in at.items():
      np.testing.assert_array_equal(sample.videos[name], _media(clip, 1).at((side, side)))


def test_a_single_stage_equals_that_of_the_cascade(two):
  made = _samples(two, _batch(1, 2))
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
  """Returns its inputs, one per channel: text, gamma and steps of the low resolution, its noise, x_t."""

  text_dim: int = 8

  def apply(self, variables, x_t, steps, self_condition, conditioning):
    mask = conditioning.text_mask[..., None]
    text = (conditioning.text * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))
    facts = [text, conditioning.low_resolution_gamma, conditioning.low_resolution_steps / 1000]
    planes = [jnp.broadcast_to(f[:, None, None, None], x_t.shape[:-1]) for f in facts]
    planes += [conditioning.low_resolution_noise[..., 0], x_t[..., 0]]
    planes += [conditioning.low_resolution[..., 0].repeat(2, 2).repeat(2, 3)]
    return jnp.stack([*planes, *[x_t[..., 0]] * 6], axis=-1)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_stage_gets_its_caption_and_a_low_resolution_with_its_own_noise(scale):
  """One step of a network that returns its inputs; guidance 0 leaves the null caption, 1 the prompt's."""
  base, sr = _configs()
  model = DenoiserModel(
    module=_Witness(latent_channels=12, low_resolution_scale=2),
    optimizer_def=None,
    prediction="x0",
    sampling_low_resolution_noise=0.15,
    sampler=SamplerConfig(num_steps=1, guidance=ConstantGuidance(scale)),
  )
  sr = dataclasses.replace(sr, model=model)
  load = lambda i: ({}, "")  # noqa: E731
  cascade = _cascade(configs=[base, sr], load=load)
  low = np.random.default_rng(0).normal(size=(2, 5, 4, 4, 12)).astype(np.float32)
  seen = []
  cascade.codec = types.SimpleNamespace(
    vae=_Packing.vae, decode=lambda z: seen.append((z - 0.5) / 0.25) or np.zeros((2, 17, 8, 8, 3))
  )
  cascade.upscale("sr1", low, PROMPTS[:2], seed=3)
  text, gamma, steps, low_noise, noise, given = np.moveaxis(seen[0][..., :6], -1, 0)
  for row, prompt in enumerate(PROMPTS[:2]):
    letters = np.sin(np.outer([ord(x) for x in prompt[:8]], np.arange(1, 9)))
    # The null caption has one token of ones.
    expected = 8.0 if scale == 0 else letters.sum() / len(letters)
    np.testing.assert_allclose(text[row], expected, atol=1e-4)
  np.testing.assert_allclose(steps, 0.15, atol=1e-5)
  np.testing.assert_allclose(gamma, model.schedule.gamma(jnp.array(150.0)), atol=1e-5)
  for values in (low_noise, noise):
    np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=0.15)
  assert abs(np.corrcoef(low_noise.ravel(), noise.ravel())[0, 1]) < 0.15
  expected = (low[..., 0].repeat(2, 2).repeat(2, 3) - 0.5) / 0.25
  np.testing.assert_allclose(given, expected, atol=1e-4)


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
  config = dataclasses.replace(_configs()[0], model=model)
  load = lambda i: ({}, "")  # noqa: E731
  cascade = _cascade(configs=[config], load=load)
  cascade.text_encoder = None
  batch = Batch(indices=[5, 6], prompts=["", ""], labels=[3, 7])
  for sample, label in zip(_samples(cascade, batch), (3, 7)):
    np.testing.assert_allclose(sample.latents["base"], 0.5 + 0.25 * label, atol=1e-6)


def test_nothing_is_recompiled_and_stages_one_at_a_time_give_the_same_result(two):
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **kwargs: compiled.append(event) if "backend_compile" in event else None
  )
  expected = _samples(two, _batch(0, 1), extensions=2)
  _samples(two, _batch(2, 3, media=_media(_clip(1), 1)), extensions=1)
  before = len(compiled)
  assert _samples(two, _batch(0, 2), _batch(3), extensions=1, seed=8)
  assert len(compiled) == before
  loads = []

  def load(info):
    loads.append(info.config.name)
    return (_params(info.config.name), "f")

  one = _cascade(one_at_a_time=True, load=load)
  one._samplers = two._samplers  # Already compiled.
  made = _samples(one, _batch(0, 1), _batch(2, 3), extensions=2)
  assert loads == ["base", "sr1"] and not one._loaded
  np.testing.assert_array_equal(made[1].videos["sr1"], expected[1].videos["sr1"])


def test_a_batch_without_a_seed_has_seed_0():
  assert Batch(indices=[0], prompts=["a"]).seed == 0
