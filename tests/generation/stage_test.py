"""Incompatible stages are rejected by name before a weight is read; noise depends on the sample, not on its batch."""

import dataclasses

import numpy as np
import pytest

from data.provenance import LatentStatistics, Provenance
from tests.generation import cascades
from walt_t5x.generation import checks
from walt_t5x.generation.stage import StageConfig, StageInfo
from walt_t5x.generation.stage_sampler import noise_for

STATISTICS = LatentStatistics(channels=2, mean=[1.0, -1.0], std=[2.0, 0.5])


def _info(name, latents, low_resolution=None, *, vae="v", text="t", statistics=STATISTICS, **model):
  kept = Provenance(
    fps=8.0,
    num_frames=9,
    vae={"fingerprint": vae},
    text_encoder={"fingerprint": text, "embedding_dim": 8},
    latents={field: statistics for field in (latents, low_resolution) if field},
  )
  scale = 2 if low_resolution else 0
  config = StageConfig(
    name=name,
    model=cascades.model(**({"low_resolution_scale": scale} | model)),
    checkpoint="",
    latents=latents,
    low_resolution=low_resolution,
  )
  return StageInfo(config=config, checkpoint="", step=1, provenance=kept)


BASE = _info("base", "latents/3x8x8")
SR = _info("sr1", "latents/3x16x16", "latents/3x8x8")


def _check(infos):
  checks.check_order([info.config for info in infos], cascades.vae())
  checks.check_provenance(infos)


def test_a_compatible_cascade_is_accepted():
  _check([BASE])
  _check([BASE, SR])


@pytest.mark.parametrize(
  "infos, message",
  [
    ([SR], "base stage first"),
    (
      [BASE, _info("sr1", "latents/3x32x32", "latents/3x16x16")],
      "'sr1' takes 'latents/3x16x16' but stage 'base' makes 'latents/3x8x8'",
    ),
    (
      [BASE, _info("sr1", "latents/3x32x32", "latents/3x8x8")],
      "upscales by a factor of 2: expected 'latents/3x16x16'",
    ),
    ([_info("base", "latents/3x8x8", latent_channels=8)], "8 latent channels, the tokenizer 4"),
    ([_info("base", "latents/3x8x8", text_dim=16)], "text of width 16, its training data had 8"),
    (
      [BASE, _info("sr1", "latents/3x16x16", "latents/3x8x8", vae="w")],
      "different vae weights: v and w",
    ),
    (
      [BASE, _info("sr1", "latents/3x16x16", "latents/3x8x8", text="u")],
      "text_encoder weights: t and u",
    ),
    (
      [
        BASE,
        _info(
          "sr1",
          "latents/3x16x16",
          "latents/3x8x8",
          statistics=dataclasses.replace(STATISTICS, std=[2.0, 0.8]),
        ),
      ],
      r"another std: \[2.0, 0.5\] and \[2.0, 0.8\]",
    ),
  ],
)
def test_an_incompatible_cascade_is_rejected(infos, message):
  with pytest.raises(ValueError, match=message):
    _check(infos)


@pytest.mark.parametrize("names", [["sr1"], ["sr1", "base"], ["base", "sr2"]])
def test_another_order_of_stages_is_rejected(names):
  configs = [BASE.config, SR.config]
  assert checks.choose_stages(configs, []) == configs
  assert checks.choose_stages(configs, ["base"]) == configs[:1]
  with pytest.raises(ValueError, match="expected one of 'base', 'base,sr1'"):
    checks.choose_stages(configs, names)
  with pytest.raises(ValueError, match="no stages to run"):
    checks.choose_stages([], [])


def test_frames_are_given_only_to_stages_trained_with_them():
  without = _info("base", "latents/3x8x8", frame_prediction=False).config
  with pytest.raises(ValueError, match="--image gives past frames, but stage 'base' has no input"):
    checks.check_conditioning_frames([without], 1, "--image")
  BASE.config.model.frame_prediction_counts = (2,)
  try:
    checks.check_conditioning_frames([BASE.config], 2, "--video")
    with pytest.raises(ValueError, match=r"gives 1 latent frames, but .* trained with \[2\]"):
      checks.check_conditioning_frames([BASE.config], 1, "--image")
  finally:
    BASE.config.model.frame_prediction_counts = (1, 2)


def test_normalization_is_inverted():
  z = np.random.default_rng(0).normal(size=(2, 3, 8, 8, 2)).astype(np.float32)
  normalized = BASE.normalize(z, "latents/3x8x8")
  np.testing.assert_allclose(normalized[..., 0], (z[..., 0] - 1) / 2, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(BASE.denormalize(normalized, "latents/3x8x8"), z, rtol=1e-4, atol=1e-5)


def test_noise_depends_only_on_seed_stage_and_index():
  together = noise_for(1, "base", np.array([4, 5, 6]), (3, 2))
  np.testing.assert_array_equal(together[1], noise_for(1, "base", np.array([5]), (3, 2))[0])
  assert np.abs(together[1] - noise_for(1, "sr1", np.array([5]), (3, 2))[0]).max() > 0.1
  assert np.abs(together[1] - noise_for(2, "base", np.array([5]), (3, 2))[0]).max() > 0.1
  assert (
    np.abs(together[1] - noise_for(1, "base", np.array([5]), (3, 2), extension=1)[0]).max() > 0.1
  )
  # The same letters in another order are another stage.
  assert np.abs(together[1] - noise_for(1, "sabe", np.array([5]), (3, 2))[0]).max() > 0.1
  many = noise_for(0, "base", np.arange(2000), (4,))
  np.testing.assert_allclose([many.mean(), many.std()], [0, 1], atol=0.05)
