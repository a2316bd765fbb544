"""Initial kernels under which the untrained autoencoder is nearly a chain of average pools and
copies.

Assumption: the paper names no initialisation. With plain random kernels everywhere the position and
colour of a shape are scrambled by some twenty random layers, and a tiny model stands still for
hundreds of steps. Here each resampling convolution starts near average pooling or nearest
upsampling, the outer convolutions near per-pixel maps, and every ResBlock near its shortcut. Each
keeps a tenth of its variance random, which breaks the symmetry.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from walt_t5x.vae.convolution import same_padding

SMOOTH = 0.9  # share of the variance in the structured part
RESIDUAL_SCALE = 0.01  # of the last convolution of a ResBlock

plain = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
residual = nn.initializers.variance_scaling(RESIDUAL_SCALE**2, "fan_in", "truncated_normal")


def _blend(key, structured, shape, dtype) -> jax.Array:
  return SMOOTH**0.5 * structured + (1.0 - SMOOTH) ** 0.5 * plain(key, shape, dtype)


def per_pixel(key, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
  """A random map of channels at the newest, central tap, and a little of every other tap."""
  k_t, k_h, k_w, channels_in, channels_out = shape
  centre_key, rest_key = jax.random.split(key)
  taps = jnp.zeros(shape, dtype)
  centre = plain(centre_key, (channels_in, channels_out), dtype)
  taps = taps.at[k_t - 1, (k_h - 1) // 2, (k_w - 1) // 2].set(centre)
  return _blend(rest_key, taps, shape, dtype)


def average_pool(strides: Sequence[int]) -> Callable:
  """Near the mean over each (s_t, s_h, s_w) block, channel by channel; the newest s_t frames in time."""

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
  """Before a depth-to-space: near a copy of the cell into every new pixel, channel by channel."""
  k_t, k_h, k_w, channels_in, channels_out = shape
  copies = jnp.tile(jnp.eye(channels_in, dtype=dtype), (1, channels_out // channels_in))
  taps = jnp.zeros(shape, dtype)
  taps = taps.at[k_t - 1, (k_h - 1) // 2, (k_w - 1) // 2].set(copies)
  return _blend(key, taps, shape, dtype)
