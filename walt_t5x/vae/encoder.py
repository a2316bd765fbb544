"""Video to latents: the causal 3D CNN encoder of MAGVIT-v2."""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from walt_t5x.types import Video
from walt_t5x.vae import initializers
from walt_t5x.vae.causal_conv import CausalConv
from walt_t5x.vae.norm import GroupNorm
from walt_t5x.vae.resnet import CausalResNet


class Encoder(CausalResNet):
  """3^3 conv; per level ResBlocks and, except for the last, a strided conv; ResBlocks; head.

  The head is GN, swish, 1^3 conv, so its input, and at initialization the latents, have unit scale.
  Size at base 128, multipliers (1, 2, 2, 4), 4 ResBlocks, 8 channels: 150,316,168
  parameters (150.3M published). This count determines two details: 4x4x4 strided kernels even where
  time is not strided, and ResBlocks without bias.
  Source: MAGVIT-v2 (2310.05737), figure 2 and appendix.

  Args:
    out_channels: width of the head; twice the latent channels for a Gaussian posterior.
    down_kernel: kernel of the strided convolutions.
  """

  out_channels: int
  down_kernel: Sequence[int]

  @nn.compact
  def __call__(self, video: Video) -> Float[Array, "B t h w C"]:
    # Pixels in [0, 1] to [-1, 1], the scale that the initialization expects.
    x = 2.0 * video.astype(self.dtype) - 1.0
    x = self.conv(self.widths[0], name="stem")(x)
    for level, width in enumerate(self.widths):
      x = self.blocks(x, width, name=f"level_{level}")
      if level < len(self.strides):
        strides = self.strides[level]
        x = CausalConv(
          width,
          kernel_size=self.down_kernel,
          strides=strides,
          kernel_init=initializers.average_pool(strides),
          dtype=self.dtype,
          name=f"level_{level}_down",
        )(x)
    x = self.blocks(x, self.widths[-1], name="bottom")
    x = nn.swish(GroupNorm(dtype=self.dtype, name="head_norm")(x))
    return CausalConv(self.out_channels, kernel_size=(1, 1, 1), dtype=self.dtype, name="head")(x)
