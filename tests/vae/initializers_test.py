"""The structured part of each initializer is the named operation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt_t5x.vae import initializers
from walt_t5x.vae.convolution import CausalConv
from walt_t5x.vae.encoder_decoder import depth_to_space


@pytest.fixture(autouse=True)
def _no_random_part(monkeypatch):
  monkeypatch.setattr(initializers, "SMOOTH", 1.0)


def _apply(kernel, x, strides=(1, 1, 1)):
  layer = CausalConv(
    kernel.shape[-1], kernel_size=kernel.shape[:3], strides=strides, use_bias=False
  )
  return layer.apply({"params": {"kernel": kernel}}, x)


def _clip():
  return jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 4, 4, 3)), jnp.float32)


@pytest.mark.parametrize("kernel_size, strides", [((4, 4, 4), (2, 2, 2)), ((1, 3, 3), (1, 2, 2))])
def test_average_pool(kernel_size, strides):
  init = initializers.average_pool(strides)
  y = _apply(init(jax.random.key(0), (*kernel_size, 3, 3)), _clip(), strides)
  s_t = strides[0]
  # Copies of the first frame complete the first temporal block.
  frames = np.concatenate([np.asarray(_clip()[:, :1])] * (s_t - 1) + [np.asarray(_clip())], axis=1)
  expected = frames.reshape(1, -1, s_t, 2, 2, 2, 2, 3).mean((2, 4, 6))
  np.testing.assert_allclose(y, expected, atol=1e-6)


def test_nearest_upsampling():
  y = _apply(initializers.nearest_upsampling(jax.random.key(0), (3, 3, 3, 3, 24)), _clip())
  y = depth_to_space(y, (2, 2, 2))
  expected = np.repeat(np.repeat(np.repeat(_clip(), 2, axis=1)[:, 1:], 2, axis=2), 2, axis=3)
  np.testing.assert_allclose(y, expected, atol=1e-6)


def test_per_pixel():
  kernel = initializers.per_pixel(jax.random.key(0), (3, 3, 3, 3, 8))
  np.testing.assert_allclose(_apply(kernel, _clip()), _clip() @ kernel[2, 1, 1], atol=1e-5)
