"""The 3D StyleGAN discriminator: one logit per clip."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.partitioning import param_with_axes
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from walt_t5x.types import Video
from walt_t5x.vae.convolution import Convolution

LEAKY_SLOPE = 0.2
# Preserves the variance through a convolution followed by the leaky ReLU.
leaky_init = nn.initializers.variance_scaling(
  2.0 / (1.0 + LEAKY_SLOPE**2), "fan_in", "truncated_normal"
)


def leaky_conv(x: jax.Array, features: int, *, dtype: DTypeLike, name: str) -> jax.Array:
  """3^3 convolution and leaky ReLU; a discriminator sees complete clips and need not be causal."""
  conv = Convolution(features, kernel_init=leaky_init, dtype=dtype, name=name)
  return jax.nn.leaky_relu(conv(x), LEAKY_SLOPE)


def blur_pool(x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 C"]:
  """Halves T, H and W (rounding up) after the separable low-pass filter [1, 3, 3, 1] / 8.

  Borders are padded with the edge values, so a constant input is preserved.
  """
  for axis in (1, 2, 3):
    size = x.shape[axis]
    out = -(-size // 2)
    behind = 2 * out + 1 - size
    pad = [(0, 0)] * x.ndim
    pad[axis] = (1, behind)
    padded = jnp.pad(x, pad, mode="edge")
    taps = [jax.lax.slice_in_dim(padded, i, i + 2 * out - 1, stride=2, axis=axis) for i in range(4)]
    x = (taps[0] + 3 * taps[1] + 3 * taps[2] + taps[3]) / 8
  return x


class Dense(nn.Module):
  """x W + b over the last axis."""

  features: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B C"]) -> Float[Array, "B C2"]:
    shape = (x.shape[-1], self.features)
    axes = ("conv_in", "conv_out")
    init, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros_init()
    kernel = param_with_axes("kernel", init, shape, jnp.float32, axes=axes)
    bias = param_with_axes("bias", zeros, shape[1:], jnp.float32, axes=axes[1:])
    return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


class DownBlock(nn.Module):
  """(main(x) + skip(x)) / sqrt(2) at half the size. main: 3^3 conv, blur pool, 3^3 conv; skip: blur
  pool, 1^3 conv.

  Assumption: the first convolution keeps the width and the second, after the pooling, changes it, as
  in StyleGAN2.
  """

  features: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 C2"]:
    y = leaky_conv(x, x.shape[-1], dtype=self.dtype, name="conv_0")
    y = leaky_conv(blur_pool(y), self.features, dtype=self.dtype, name="conv_1")
    skip = Convolution(
      self.features, kernel_size=(1, 1, 1), use_bias=False, dtype=self.dtype, name="skip"
    )
    return (y + skip(blur_pool(x))) / jnp.sqrt(2.0).astype(self.dtype)


class Discriminator(nn.Module):
  """3^3 conv; residual blocks that halve time and space; 3^3 conv; flatten; dense; one logit.

  Size at base 128, multipliers (2, 4, 4, 4, 4) and 17x128x128 clips (1x4x4x512 before flattening):
  61.3M, as published. Because of the flattening, a set of parameters accepts only one clip size.
  Source: MAGVIT (2212.05199), appendix; StyleGAN2 (1912.04958).

  There is one multiplier per residual block. The logit is float32 for any activation `dtype`.
  """

  base_channels: int = 128
  channel_multipliers: Sequence[int] = (2, 4, 4, 4, 4)
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, video: Video) -> Float[Array, " B"]:
    x = 2.0 * video.astype(self.dtype) - 1.0
    x = leaky_conv(x, self.base_channels, dtype=self.dtype, name="stem")
    for i, multiplier in enumerate(self.channel_multipliers):
      x = DownBlock(self.base_channels * multiplier, dtype=self.dtype, name=f"block_{i}")(x)
    width = x.shape[-1]
    x = leaky_conv(x, width, dtype=self.dtype, name="last_conv")
    x = Dense(width, dtype=self.dtype, name="dense")(x.reshape(x.shape[0], -1))
    x = jax.nn.leaky_relu(x, LEAKY_SLOPE)
    return Dense(1, dtype=jnp.float32, name="logit")(x)[:, 0]
