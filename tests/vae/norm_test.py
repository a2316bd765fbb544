"""Per-frame group normalization compared with torch, adaptive normalization with its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from walt_t5x.vae.norm import AdaptiveGroupNorm, GroupNorm, latent_frame_of, num_groups


@pytest.mark.parametrize(
  "channels, groups", [(128, 32), (256, 32), (512, 32), (16, 4), (24, 6), (20, 5), (4, 1), (3, 1)]
)
def test_groups(channels, groups):
  assert num_groups(channels) == groups


def test_equals_torch_on_each_frame():
  x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 16))
  params = {"scale": jnp.linspace(0.5, 2.0, 16), "bias": jnp.linspace(-1.0, 1.0, 16)}
  y = GroupNorm().apply({"params": params}, x)
  for frame in range(3):
    expected = torch.nn.functional.group_norm(
      torch.from_numpy(np.asarray(x[:, frame]).transpose(0, 3, 1, 2).copy()),
      4,
      torch.from_numpy(np.asarray(params["scale"]).copy()),
      torch.from_numpy(np.asarray(params["bias"]).copy()),
      eps=1e-6,
    ).numpy()
    np.testing.assert_allclose(y[:, frame], expected.transpose(0, 2, 3, 1), atol=1e-5)


def test_latent_frame_of_each_feature_frame():
  assert latent_frame_of(1, 1) == [0]
  assert latent_frame_of(3, 3) == [0, 1, 2]
  assert latent_frame_of(9, 3) == [0, 1, 1, 1, 1, 2, 2, 2, 2]
  with pytest.raises(ValueError, match="got 8 feature frames for 3 latent frames"):
    latent_frame_of(8, 3)


def test_adaptive_scale_is_the_latents_std_and_shift_their_mean():
  x = jax.random.normal(jax.random.key(0), (1, 5, 4, 4, 8))
  z = jnp.asarray([1.0, 2.0, 5.0]).reshape(1, 3, 1, 1, 1) * jax.random.normal(
    jax.random.key(1), (1, 3, 4, 4, 2)
  )
  params = {
    "scale_kernel": jnp.ones((2, 8)),
    "scale_bias": jnp.zeros(8),
    "shift_kernel": jnp.ones((2, 8)),
    "shift_bias": jnp.zeros(8),
  }
  y = AdaptiveGroupNorm().apply({"params": params}, x, z)
  frame, latent_frame = 3, np.asarray(z[0, 2])
  # Two groups of four channels.
  grouped = np.asarray(x[0, frame]).reshape(16, 2, 4)
  unit = (grouped - grouped.mean((0, 2), keepdims=True)) / grouped.std((0, 2), keepdims=True)
  scale, shift = latent_frame.std((0, 1)).sum(), latent_frame.mean((0, 1)).sum()
  np.testing.assert_allclose(
    y[0, frame], unit.reshape(4, 4, 8) * scale + shift, atol=1e-4, rtol=1e-4
  )
