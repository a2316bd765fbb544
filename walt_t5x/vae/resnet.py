"""The residual block that encoder and decoder share."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from walt_t5x.vae import initialisers
from walt_t5x.vae.causal_conv import CausalConv
from walt_t5x.vae.norm import GroupNorm


class ResBlock(nn.Module):
  """shortcut(x) + conv(swish(GN(conv(swish(GN(x)))))), 3^3 causal convolutions without bias.

  The shortcut is a 1^3 convolution where the width changes, else the identity. The convolutions
  have no bias: the normalisation after each would remove most of it, and only so do the published
  parameter counts come out.

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
    y = conv("conv_0", initialisers.plain)(y)
    y = nn.swish(GroupNorm(dtype=self.dtype, name="norm_1")(y))
    y = conv("conv_1", initialisers.residual)(y)
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
  """Blocks `<name>_block_0`, ... of the module that calls this in its compact `__call__`.

  Args:
    x: their input.
    features: output channels of each.
    count: how many.
    temporal_kernel, dtype: as of `ResBlock`.
    remat: recompute each in the backward pass.
    name: of the group.
  """
  block = nn.remat(ResBlock) if remat else ResBlock
  for i in range(count):
    x = block(features, temporal_kernel=temporal_kernel, dtype=dtype, name=f"{name}_block_{i}")(x)
  return x
