"""Video to latents: the causal 3D CNN encoder of MAGVIT-v2."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from walt_t5x.types import Video
from walt_t5x.vae import initializers
from walt_t5x.vae.causal_conv import CausalConv
from walt_t5x.vae.norm import GroupNorm
from walt_t5x.vae.resnet import res_blocks


class Encoder(nn.Module):
  """3^3 conv; per level ResBlocks and, except for the last, a strided conv; ResBlocks; head.

  The head is GN, swish, 1^3 conv, so its input, and at initialization the latents, have unit scale.
  Size at base 128, multipliers (1, 2, 2, 4), 4 ResBlocks, 8 channels: 150,316,168
  parameters (150.3M published). This count determines two details: 4x4x4 strided kernels even where
  time is not strided, and ResBlocks without bias.
  Source: MAGVIT-v2 (2310.05737), figure 2 and appendix.

  Args:
    out_channels: width of the head; twice the latent channels for a Gaussian posterior.
    base_channels: width of a level with multiplier 1.
    channel_multipliers: one per level.
    num_res_blocks: ResBlocks per level, and again at the bottom.
    temporal_downsample: after each level except the last, whether time is halved in addition to
      space.
    temporal_kernel: k_t of the 3^3 convolutions.
    down_kernel: kernel of the strided convolutions.
    dtype: activation dtype.
    remat: recompute each ResBlock in the backward pass.
  """

  out_channels: int
  base_channels: int
  channel_multipliers: Sequence[int]
  num_res_blocks: int
  temporal_downsample: Sequence[bool]
  temporal_kernel: int = 3
  down_kernel: Sequence[int] = (4, 4, 4)
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, video: Video) -> Float[Array, "B t h w C"]:
    blocks = functools.partial(
      res_blocks,
      count=self.num_res_blocks,
      temporal_kernel=self.temporal_kernel,
      dtype=self.dtype,
      remat=self.remat,
    )
    widths = [self.base_channels * m for m in self.channel_multipliers]
    # Pixels in [0, 1] to [-1, 1], the scale that the initialization expects.
    x = 2.0 * video.astype(self.dtype) - 1.0
    x = CausalConv(
      widths[0],
      kernel_size=(self.temporal_kernel, 3, 3),
      kernel_init=initializers.per_pixel,
      dtype=self.dtype,
      name="stem",
    )(x)
    for level, width in enumerate(widths):
      x = blocks(x, width, name=f"level_{level}")
      if level < len(widths) - 1:
        strides = (2 if self.temporal_downsample[level] else 1, 2, 2)
        x = CausalConv(
          width,
          kernel_size=self.down_kernel,
          strides=strides,
          kernel_init=initializers.average_pool(strides),
          dtype=self.dtype,
          name=f"level_{level}_down",
        )(x)
    x = blocks(x, widths[-1], name="bottom")
    x = nn.swish(GroupNorm(dtype=self.dtype, name="head_norm")(x))
    return CausalConv(self.out_channels, kernel_size=(1, 1, 1), dtype=self.dtype, name="head")(x)
