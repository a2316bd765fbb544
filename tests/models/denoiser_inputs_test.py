"""Completing a batch uses each feature's moments and is idempotent."""

import numpy as np

from walt_t5x.models.denoiser_inputs import unpack_and_normalize


def test_latents_use_their_own_moments_and_finishing_is_idempotent():
  random = np.random.default_rng(0)
  batch = {}
  for name, size in (("latents", 4), ("low_resolution", 2)):
    batch[name] = random.normal(size=(2, 3, size, size, 5)).astype(np.float32)
    batch[f"{name}_moments"] = random.uniform(0.5, 2, (2, 2, 5)).astype(np.float32)
  once = unpack_and_normalize(batch)
  assert set(once) == {"latents", "low_resolution"}
  for name, values in once.items():
    for row in range(2):
      mean, std = batch[f"{name}_moments"][row]
      np.testing.assert_allclose(values[row], (batch[name][row] - mean) / std, rtol=1e-5, atol=1e-6)
  twice = unpack_and_normalize(once)
  for name, values in once.items():
    np.testing.assert_array_equal(twice[name], values)
