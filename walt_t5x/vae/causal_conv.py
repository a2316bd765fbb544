"""Causal 3D convolution: k_t - 1 frames of padding in front, none at the end.

If the collection `STREAM` is mutable, a convolution stores the frames that the next group of a stream needs, and the
next call uses them as its padding; see `walt_t5x.vae.streaming`.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.partitioning import param_with_axes
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from walt_t5x.vae import initializers
from walt_t5x.vae.convolution import convolve, same_padding

# Name of the collection.
STREAM = "stream"


def pad_front(x: Float[Array, "B T H W C"], frames: int) -> Float[Array, "B T2 H W C"]:
  """Prepends `frames` copies of the first frame.

  Assumption: the paper says only that the padding is in front. We repeat the first frame rather
  than add zeros, so that a single image is to the network the same as the start of a still video.
  """
  if frames == 0:
    return x
  return jnp.concatenate([jnp.repeat(x[:, :1], frames, axis=1), x], axis=1)


class CausalConv(nn.Module):
  """y[t] = sum_i W[i] * x[s_t t + i - (k_t - 1)], SAME zero padding in space.

  T frames become (T - 1) // s_t + 1: output j depends on input frames up to s_t * j.
  Source: MAGVIT-v2 (2310.05737), section 3.2.

  Args:
    features: output channels.
    kernel_size: (k_t, k_h, k_w).
    strides: (s_t, s_h, s_w).
    use_bias: adds a bias per output channel.
    kernel_init: initializer of the kernel [k_t, k_h, k_w, in, out].
    dtype: activation dtype; parameters stay float32.
  """

  features: int
  kernel_size: Sequence[int] = (3, 3, 3)
  strides: Sequence[int] = (1, 1, 1)
  use_bias: bool = True
  kernel_init: Callable = initializers.plain
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
      self._with_context(x.astype(self.dtype), k_t=k_t, s_t=s_t),
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

  def _with_context(
    self, x: Float[Array, "B T H W C"], *, k_t: int, s_t: int
  ) -> Float[Array, "B T3 H W C"]:
    """Prepends the padding to `x`: its first frame repeated, or the stored frames of the previous group."""
    if k_t == 1 and s_t == 1:
      return x
    if self.has_variable(STREAM, "context"):
      x = jnp.concatenate([self.get_variable(STREAM, "context"), x], axis=1)
    else:
      x = pad_front(x, k_t - 1)
    if self.is_mutable_collection(STREAM) and not self.is_initializing():
      frames_out = (x.shape[1] - k_t) // s_t + 1
      self.put_variable(STREAM, "context", x[:, frames_out * s_t :])
    return x
