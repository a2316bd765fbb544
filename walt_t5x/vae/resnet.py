"""The residual block of the encoder and the decoder."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
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
  temporal_kernel: int = 3
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C2"]:
    kernel_size = (self.temporal_kernel, 3, 3)

    def conv(name: str, kernel_init: Callable) -> CausalConv:
      return CausalConv(
        self.features,
        kernel_size=kernel_size,
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


def res_blocks(
  x: Float[Array, "B T H W C"],
  features: int,
  *,
  count: int,
  temporal_kernel: int,
  dtype: DTypeLike,
  remat: bool,
  name: str,
) -> Float[Array, "B T H W C2"]:
  """Applies `<name>_block_0`, ...; call it in the compact `__call__` of the module that owns them.

  Args:
    x: input of the first block.
    features: output channels of each block.
    count: number of blocks.
    temporal_kernel, dtype: as in `ResBlock`.
    remat: recompute each block in the backward pass.
    name: prefix of the block names.
  """
  block = nn.remat(ResBlock) if remat else ResBlock
  for i in range(count):
    x = block(features, temporal_kernel=temporal_kernel, dtype=dtype, name=f"{name}_block_{i}")(x)
  return x
