"""Clips start from an image or a clip, and extensions from the last frames before them."""

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
  samples_of,
  shown,
  stage_configs,
)
from tests.generation.perfect_denoiser import perfect_config
from walt_t5x.generation.cascade import Batch


def test_an_image_is_the_first_frame_at_every_size(two):
  picture = make_clip(1)
  for sample in samples_of(two, make_batch(0, 1, media=make_media(picture, 1))):
    np.testing.assert_array_equal(sample.videos["sr1"][0], picture[0])
    halved = picture[0].reshape(4, 2, 4, 2, 3).mean((1, 3))
    np.testing.assert_allclose(sample.videos["base"][0], halved, atol=1)
    assert sample.videos["base"].shape[0] == 17
  # It affects the frames after it.
  other = samples_of(two, make_batch(0, 1, media=make_media(make_clip(1, seed=9), 1)))[0]
  assert np.abs(other.latents["base"][0, 1:] - sample.latents["base"][0, 1:]).max() > 0.01


def test_a_conditioning_image_is_reconstructed_and_a_clip_is_kept():
  picture = make_media(np.full((1, 4, 4, 3), 7, np.uint8), 1)
  frames = shown(picture).videos["base"]
  assert len(frames) == 9 and not (frames == 7).any()
  for factor in (1, 4):
    clip = np.full((6, 4, 4, 3), 7, np.uint8)
    media = make_media(clip, 1 + factor)
    frames = shown(media, factor=factor).videos["base"]
    assert len(frames) == 6 + 9 - (1 + factor)
    np.testing.assert_array_equal((frames == 7).all((1, 2, 3)), [i < 6 for i in range(len(frames))])
    assert len(shown(media, factor=factor, decoded_conditioning=True).videos["base"]) == 9
    longer = shown(media, factor=factor, extensions=1).videos["base"]
    assert len(longer) == 6 + 2 * (9 - (1 + factor))


def test_an_extension_continues_from_the_last_frames_of_the_previous_one(two):
  one, three = (samples_of(two, make_batch(0, 1), extensions=n)[0] for n in (0, 2))
  for name in ("base", "sr1"):
    assert len(one.videos[name]) == 17 and len(three.videos[name]) == 17 + 12 + 12
    np.testing.assert_array_equal(three.videos[name][:17], one.videos[name])
    for i in (1, 2):
      last = three.videos[name][: 17 + 12 * (i - 1)][-5:]
      first = two.codec.decode(three.latents[name][i][None])[0, :5]
      np.testing.assert_array_equal(first, last)


def test_each_extension_has_its_own_noise_and_the_last_frames_at_their_position():
  cascade, seen = make_cascade(batch_size=3), {"base": [], "sr1": []}
  for name, size in (("base", 4), ("sr1", 8)):

    def sample(params, noise, conditioning, *, low_noise, null_text, name=name, size=size):
      seen[name].append((noise, low_noise, conditioning))
      return jnp.ones((3, 5, size, size, 12))

    cascade._samplers[name] = sample
  cascade._weights = lambda info: None
  samples_of(cascade, make_batch(0, 1, 2, media=make_media(make_clip(1), 1)), extensions=2)
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


def test_a_clip_is_continued_after_its_own_frames(two):
  clip = make_clip(7)
  sample = samples_of(two, make_batch(0, 1, media=make_media(clip, 5)))[0]
  assert len(sample.videos["sr1"]) == 7 + 12
  np.testing.assert_array_equal(sample.videos["sr1"][:7], clip)
  np.testing.assert_array_equal(two.codec.decode(sample.latents["sr1"][0][None])[0, :5], clip[-5:])
  # Frame-prediction protocols need the conditioning frames as reconstructed by the tokenizer, and no others.
  decoded = samples_of(two, make_batch(0, 1, media=make_media(clip, 5)), decoded_conditioning=True)[
    0
  ]
  np.testing.assert_array_equal(decoded.videos["sr1"], sample.videos["sr1"][2:])
  # The first stages alone give the same result.
  alone = samples_of(two, make_batch(0, 1, media=make_media(clip, 5)), stages=1)[0]
  assert list(alone.videos) == ["base"]
  np.testing.assert_array_equal(alone.videos["base"], sample.videos["base"])


def test_clips_of_different_lengths_are_continued_together(two):
  clips = [make_clip(9, seed=1), make_clip(6, seed=2)]
  media = [make_media(clip, 5) for clip in clips]
  batch = Batch(indices=[0, 1], prompts=PROMPTS[:2], media=media)
  for i, sample in enumerate(samples_of(two, batch)):
    np.testing.assert_array_equal(sample.videos["sr1"][: len(clips[i])], clips[i])
    assert len(sample.videos["sr1"]) == len(clips[i]) + 12
    (alone,) = samples_of(two, make_batch(i, media=media[i]))
    np.testing.assert_allclose(alone.latents["base"], sample.latents["base"], atol=1e-5)


@pytest.mark.parametrize("start", ["nothing", "picture", "clip"])
def test_with_an_oracle_three_extensions_are_the_complete_clip(start):
  clip, codec = make_clip(53), Packing()
  at = {"base": 4, "sr1": 8}
  windows, media = {}, None
  for name, side in at.items():
    frames = make_media(clip, 1).at((side, side))
    parts = [frames[12 * i :][:17] for i in range(4)]
    windows[name] = (np.concatenate([codec.encode(part[None]) for part in parts]) - 0.5) / 0.25
  if start == "picture":
    media = make_media(clip[:1], 1)
  elif start == "clip":
    media = make_media(clip[:5], 5)
  configs = [perfect_config(config) for config in stage_configs()]
  cascade = make_cascade(
    configs=configs,
    load=lambda i: ({"windows": windows[i.config.name]}, ""),
  )
  for sample in samples_of(cascade, make_batch(0, 1, media=media), extensions=3):
    for name, side in at.items():
      np.testing.assert_array_equal(sample.videos[name], make_media(clip, 1).at((side, side)))
