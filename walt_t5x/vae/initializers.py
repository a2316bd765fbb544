"""Initializers that make the untrained autoencoder approximately a chain of average pooling and
nearest upsampling.

Assumption: the paper does not specify the initialization. With random kernels in all of the about
twenty layers, the latents of a tiny model do not preserve position and color of a shape, and its
loss does not decrease for hundreds of steps. Here each resampling convolution starts near average
pooling or nearest upsampling, the outer convolutions near per-pixel maps, and every ResBlock near
its shortcut. A tenth of the variance is random, which breaks the symmetry.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from walt_t5x.vae.convolution import same_padding

SMOOTH = 0.9  # fraction of the variance in the structured part
RESIDUAL_SCALE = 0.01  # of the last convolution of a ResBlock

plain = nn.initializers.lecun_normal()
residual = nn.initializers.variance_scaling(RESIDUAL_SCALE**2, "fan_in", "truncated_normal")


def _blend(key, structured, shape, dtype) -> jax.Array:
  return SMOOTH**0.5 * structured + (1.0 - SMOOTH) ** 0.5 * plain(key, shape, dtype)


def per_pixel(key, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
  """A random map of channels at the last, central tap, plus small random values at all taps."""
  k_t, k_h, k_w, channels_in, channels_out = shape
  centre_key, rest_key = jax.random.split(key)
  taps = jnp.zeros(shape, dtype)
  centre = plain(centre_key, (channels_in, channels_out), dtype)
  taps = taps.at[k_t - 1, (k_h - 1) // 2, (k_w - 1) // 2].set(centre)
  return _blend(rest_key, taps, shape, dtype)


def average_pool(strides: Sequence[int]) -> Callable:
  """Approximately the mean of each channel over (s_t, s_h, s_w) blocks; the last s_t frames in time."""

  def init(key, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
    s_t, s_h, s_w = strides
    k_t, k_h, k_w, channels_in, channels_out = shape
    top, left = same_padding(k_h, s_h)[0], same_padding(k_w, s_w)[0]
    block = jnp.eye(channels_in, channels_out, dtype=dtype) / (s_t * s_h * s_w)
    taps = jnp.zeros(shape, dtype)
    taps = taps.at[k_t - s_t :, top : top + s_h, left : left + s_w].set(block)
    return _blend(key, taps, shape, dtype)

  return init


def nearest_upsampling(key, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
  """For use before depth-to-space: approximately copies each channel of a position to every new pixel."""
  k_t, k_h, k_w, channels_in, channels_out = shape
  copies = jnp.tile(jnp.eye(channels_in, dtype=dtype), (1, channels_out // channels_in))
  taps = jnp.zeros(shape, dtype)
  taps = taps.at[k_t - 1, (k_h - 1) // 2, (k_w - 1) // 2].set(copies)
  return _blend(key, taps, shape, dtype)
