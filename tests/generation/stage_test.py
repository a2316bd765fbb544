"""Stages that do not fit are refused by name; noise belongs to the sample, not to its batch."""

import numpy as np
import pytest

from data.provenance import LatentStatistics, Provenance
from walt_t5x.generation.stage import Stage, StageConfig, check_cascade, noise_for


def _stage(name, latents, low_resolution=None, *, vae="v", text="t"):
  statistics = LatentStatistics(channels=2, mean=[1.0, -1.0], std=[2.0, 0.5])
  kept = Provenance(
    fps=8.0,
    num_frames=9,
    vae={"fingerprint": vae},
    text_encoder={"fingerprint": text},
    latents={field: statistics for field in (latents, low_resolution) if field},
  )
  config = StageConfig(
    name=name, model=None, checkpoint="", latents=latents, low_resolution=low_resolution
  )
  return Stage(config=config, params={}, step=1, provenance=kept)


BASE = _stage("base", "latents/3x8x8")


def test_a_cascade_that_fits_is_accepted():
  check_cascade([BASE])
  check_cascade([BASE, _stage("sr1", "latents/3x16x16", "latents/3x8x8")])


@pytest.mark.parametrize(
  "stages, message",
  [
    ([], "no stages"),
    ([_stage("sr1", "latents/3x16x16", "latents/3x8x8")], "base stage first"),
    (
      [BASE, _stage("sr1", "latents/3x32x32", "latents/3x16x16")],
      "'sr1' takes 'latents/3x16x16' but stage 'base' makes 'latents/3x8x8'",
    ),
    (
      [BASE, _stage("sr1", "latents/3x16x16", "latents/3x8x8", vae="w")],
      "different vae weights: v and w",
    ),
    (
      [BASE, _stage("sr1", "latents/3x16x16", "latents/3x8x8", text="u")],
      "text_encoder weights: t and u",
    ),
  ],
)
def test_a_cascade_that_does_not_fit_is_refused(stages, message):
  with pytest.raises(ValueError, match=message):
    check_cascade(stages)


def test_normalising_is_undone():
  z = np.random.default_rng(0).normal(size=(2, 3, 8, 8, 2)).astype(np.float32)
  normalised = BASE.normalise(z, "latents/3x8x8")
  np.testing.assert_allclose(normalised[..., 0], (z[..., 0] - 1) / 2, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(BASE.denormalise(normalised, "latents/3x8x8"), z, rtol=1e-4, atol=1e-5)


def test_noise_depends_on_seed_stage_and_index_alone():
  together = noise_for(1, "base", np.array([4, 5, 6]), (3, 2))
  np.testing.assert_array_equal(together[1], noise_for(1, "base", np.array([5]), (3, 2))[0])
  assert np.abs(together[1] - noise_for(1, "sr1", np.array([5]), (3, 2))[0]).max() > 0.1
  assert np.abs(together[1] - noise_for(2, "base", np.array([5]), (3, 2))[0]).max() > 0.1
  many = noise_for(0, "base", np.arange(2000), (4,))
  np.testing.assert_allclose([many.mean(), many.std()], [0, 1], atol=0.05)
