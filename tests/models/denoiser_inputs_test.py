"""Normalization uses each feature's moments, is idempotent, and is not left out silently."""

import ml_dtypes
import numpy as np
import pytest

from walt_t5x.models.denoiser_inputs import unpack_and_normalize


def test_latents_use_their_own_moments_and_normalizing_is_idempotent():
  random = np.random.default_rng(0)
  batch, moments = {}, {}
  for name, size in (("latents", 4), ("low_resolution", 2)):
    batch[name] = random.normal(size=(2, 3, size, size, 5)).astype(ml_dtypes.bfloat16)
    moments[name] = random.uniform(0.5, 2, (2, 5)).astype(np.float32)
  once = unpack_and_normalize(batch, moments)
  assert set(once) == {"latents", "low_resolution"}
  for name, values in once.items():
    mean, std = moments[name]
    expected = (batch[name].astype(np.float32) - mean) / std
    np.testing.assert_allclose(values, expected, rtol=1e-6)
  twice = unpack_and_normalize(once, moments)
  for name, values in once.items():
    np.testing.assert_array_equal(twice[name], values)


def test_latents_of_a_cache_are_not_used_without_their_statistics():
  batch = {"latents": np.zeros((1, 3, 2, 2, 5), ml_dtypes.bfloat16)}
  with pytest.raises(ValueError, match=r"latents: .* bind DenoiserModel\.corpus"):
    unpack_and_normalize(batch, {})
