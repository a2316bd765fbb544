"""The causal 3D CNN encoder and decoder of MAGVIT-v2.

Source: MAGVIT-v2 (2310.05737), figure 2 and appendix.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from walt_t5x.types import Latents, Video
from walt_t5x.vae import initializers
from walt_t5x.vae.convolution import CausalConv
from walt_t5x.vae.norm import AdaptiveGroupNorm, GroupNorm


class ResBlock(nn.Module):
  """shortcut(x) + conv(swish(GN(conv(swish(GN(x)))))), 3^3 causal convolutions without bias.

  The shortcut is a 1^3 convolution if the width changes, else the identity. The convolutions have no
  bias: the normalization after each would remove most of it, and only this matches the published
  parameter counts.
  """

  features: int
  temporal_kernel: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C2"]:
    def conv(name: str, kernel_init: Callable) -> CausalConv:
      return CausalConv(
        self.features,
        kernel_size=(self.temporal_kernel, 3, 3),
        use_bias=False,
        kernel_init=kernel_init,
        dtype=self.dtype,
        name=name,
      )

    y = nn.swish(GroupNorm(dtype=self.dtype, name="norm_0")(x))
    y = conv("conv_0", initializers.plain)(y)
    y = nn.swish(GroupNorm(dtype=self.dtype, name="norm_1")(y))
    y = conv("conv_1", initializers.residual)(y)
    if x.shape[-1] != self.features:
      x = CausalConv(
        self.features, kernel_size=(1, 1, 1), use_bias=False, dtype=self.dtype, name="shortcut"
      )(x)
    return x + y


class CausalResNet(nn.Module):
  """What the encoder and the decoder share; the fields are those of `CausalVae`."""

  base_channels: int
  channel_multipliers: Sequence[int]
  num_res_blocks: int
  temporal_downsample: Sequence[bool]
  temporal_kernel: int
  dtype: DTypeLike
  remat: bool

  @property
  def widths(self) -> list[int]:
    """Channels of each level."""
    return [self.base_channels * m for m in self.channel_multipliers]

  @property
  def strides(self) -> list[tuple[int, int, int]]:
    """(s_t, s_h, s_w) of each transition between levels."""
    return [(2 if halved else 1, 2, 2) for halved in self.temporal_downsample]

  def conv(
    self, features: int, *, name: str, kernel_init: Callable = initializers.per_pixel
  ) -> CausalConv:
    """A 3^3 convolution."""
    return CausalConv(
      features,
      kernel_size=(self.temporal_kernel, 3, 3),
      kernel_init=kernel_init,
      dtype=self.dtype,
      name=name,
    )

  def blocks(
    self, x: Float[Array, "B T H W C"], features: int, *, name: str
  ) -> Float[Array, "B T H W C2"]:
    """Applies `<name>_block_0`, ...; for use in a compact method."""
    block = nn.remat(ResBlock) if self.remat else ResBlock
    for i in range(self.num_res_blocks):
      x = block(features, self.temporal_kernel, self.dtype, name=f"{name}_block_{i}")(x)
    return x


class Encoder(CausalResNet):
  """3^3 conv; per level ResBlocks and, except for the last, a strided conv; ResBlocks; head.

  The head is GN, swish, 1^3 conv, so its input, and at initialization the latents, have unit scale.
  Size at base 128, multipliers (1, 2, 2, 4), 4 ResBlocks, 8 channels: 150,316,168
  parameters (150.3M published). This count determines two details: 4x4x4 strided kernels even where
  time is not strided, and ResBlocks without bias.

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


def depth_to_space(
  x: Float[Array, "B T H W C"], strides: tuple[int, int, int], *, continues: bool = False
) -> Float[Array, "B T2 H2 W2 C2"]:
  """Unfolds channels (s_t, s_h, s_w, C2) into s_t T - (s_t - 1) frames of s_h H x s_w W.

  The first s_t - 1 frames are dropped, so that latent frame 0 gives one frame: 5 -> 9 -> 17 frames. A group that
  continues a stream keeps all s_t T frames. Raises ValueError if the strides do not divide the channels.
  """
  s_t, s_h, s_w = strides
  b, t, h, w, c = x.shape
  if c % (s_t * s_h * s_w):
    raise ValueError(
      f"depth_to_space: got {c} channels, expected a multiple of {s_t * s_h * s_w} for {strides=}."
    )
  x = x.reshape(b, t, h, w, s_t, s_h, s_w, c // (s_t * s_h * s_w))
  x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
  return x.reshape(b, t * s_t, h * s_h, w * s_w, -1)[:, 0 if continues else s_t - 1 :]


class Decoder(CausalResNet):
  """3^3 conv; ResBlocks; per level, deepest first, adaptive GN, ResBlocks, upsampling; head.

  Upsampling is a 3^3 convolution to 4C or 8C channels, then depth-to-space. The head is GN, swish,
  3^3 conv to RGB.
  Assumption: the output is linear, without a final nonlinearity. Values are near [0, 1]; callers
  clip them. Size at base 128, multipliers (1, 2, 2, 4), 4 ResBlocks, 8 channels: 225,513,091
  parameters (225.5M published).
  """

  @nn.compact
  def __call__(self, latents: Latents, *, continues: bool = False) -> Video:
    """Decodes to 1 + (t - 1) s frames of a clip, or to t s frames of a group that continues a stream."""
    x = self.conv(self.widths[-1], name="stem")(latents)
    x = self.blocks(x, self.widths[-1], name="bottom")
    for level, width in reversed(list(enumerate(self.widths))):
      x = AdaptiveGroupNorm(dtype=self.dtype, name=f"level_{level}_adaptive_norm")(
        x, latents, continues=continues
      )
      x = self.blocks(x, width, name=f"level_{level}")
      if level > 0:
        s_t, s_h, s_w = self.strides[level - 1]
        x = self.conv(
          width * s_t * s_h * s_w,
          kernel_init=initializers.nearest_upsampling,
          name=f"level_{level}_up",
        )(x)
        x = depth_to_space(x, (s_t, s_h, s_w), continues=continues)
    x = nn.swish(GroupNorm(dtype=self.dtype, name="head_norm")(x))
    x = self.conv(3, name="head")(x)
    return 0.5 * (x + 1.0)
