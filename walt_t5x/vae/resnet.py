"""The residual block, and what the encoder and the decoder share."""

from collections.abc import Callable, Sequence

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from walt_t5x.vae import initializers
from walt_t5x.vae.causal_conv import CausalConv
from walt_t5x.vae.norm import GroupNorm


class ResBlock(nn.Module):
  """shortcut(x) + conv(swish(GN(conv(swish(GN(x)))))), 3^3 causal convolutions without bias.

  The shortcut is a 1^3 convolution if the width changes, else the identity. The convolutions have no
  bias: the normalization after each would remove most of it, and only this matches the published
  parameter counts.

  Args:
    features: output channels.
    temporal_kernel: k_t of both convolutions; 1 in an image tokenizer.
    dtype: activation dtype.
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
  """What the encoder and the decoder share.

  Args:
    base_channels: width of a level with multiplier 1.
    channel_multipliers: one per level.
    num_res_blocks: ResBlocks per level, and again at the bottom.
    temporal_downsample: for each transition between levels, in the encoder's order, whether time is
      halved in addition to space.
    temporal_kernel: k_t of the 3^3 convolutions; 1 in an image tokenizer.
    dtype: activation dtype.
    remat: recompute each ResBlock in the backward pass.
  """

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
