"""Causal 3D convolution: k_t - 1 frames of padding in front, none behind."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.partitioning import param_with_axes
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from walt_t5x.vae import initialisers
from walt_t5x.vae.convolution import convolve, same_padding


def pad_front(x: Float[Array, "B T H W C"], frames: int) -> Float[Array, "B T2 H W C"]:
  """Repeats the first frame `frames` times in front.

  Assumption: the paper says only that the padding is in front; we replicate the first frame rather
  than add zeros, so that a lone image looks to the network exactly like the start of a video at
  rest.
  """
  if frames == 0:
    return x
  return jnp.concatenate([jnp.repeat(x[:, :1], frames, axis=1), x], axis=1)


class CausalConv(nn.Module):
  """y[t] = sum_i W[i] * x[s_t t + i - (k_t - 1)], SAME zero padding in space.

  T frames become (T - 1) // s_t + 1: output j ends at input frame s_t * j, and sees nothing after
  it.
  Source: MAGVIT-v2 (2310.05737), section 3.2.

  Args:
    features: output channels.
    kernel_size: (k_t, k_h, k_w).
    strides: (s_t, s_h, s_w).
    use_bias: adds a bias per output channel.
    kernel_init: initialiser of the kernel [k_t, k_h, k_w, in, out].
    dtype: activation dtype; parameters stay float32.
  """

  features: int
  kernel_size: Sequence[int] = (3, 3, 3)
  strides: Sequence[int] = (1, 1, 1)
  use_bias: bool = True
  kernel_init: Callable = initialisers.plain
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 C2"]:
    k_t, k_h, k_w = self.kernel_size
    s_t, s_h, s_w = self.strides
    kernel = param_with_axes(
      "kernel",
      self.kernel_init,
      (k_t, k_h, k_w, x.shape[-1], self.features),
      jnp.float32,
      axes=("conv_t", "conv_h", "conv_w", "conv_in", "conv_out"),
      module=self,
    )
    y = convolve(
      pad_front(x.astype(self.dtype), k_t - 1),
      kernel,
      strides=(s_t, s_h, s_w),
      padding=((0, 0), same_padding(k_h, s_h), same_padding(k_w, s_w)),
    )
    if self.use_bias:
      bias = param_with_axes(
        "bias",
        nn.initializers.zeros_init(),
        (self.features,),
        jnp.float32,
        axes=("conv_out",),
        module=self,
      )
      y = y + bias.astype(self.dtype)
    return y
