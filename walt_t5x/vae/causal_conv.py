"""Causal 3D convolution: k_t - 1 frames of padding in front, none at the end.

If the collection `STREAM` is mutable, a convolution stores the frames that the next group of a stream needs, and the
next call uses them as its padding; see `walt_t5x.vae.streaming`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from walt_t5x.vae.convolution import Convolution, Padding

# Name of the collection.
STREAM = "stream"


class CausalConv(Convolution):
  """y[t] = sum_i W[i] * x[s_t t + i - (k_t - 1)], SAME zero padding in space.

  T frames become (T - 1) // s_t + 1: output j depends on input frames up to s_t * j.
  Source: MAGVIT-v2 (2310.05737), section 3.2.

  Assumption: the paper says only that the padding is in front. We repeat the first frame rather
  than add zeros, so that a single image is to the network the same as the start of a still video.
  """

  def pad_time(self, x: Float[Array, "B T H W C"]) -> tuple[Float[Array, "B T3 H W C"], Padding]:
    """Prepends the padding to `x`: its first frame repeated, or the stored frames of the previous group."""
    k_t, s_t = self.kernel_size[0], self.strides[0]
    if k_t == 1 and s_t == 1:
      return x, (0, 0)
    if self.has_variable(STREAM, "context"):
      front = self.get_variable(STREAM, "context")
    else:
      front = jnp.repeat(x[:, :1], k_t - 1, axis=1)
    x = jnp.concatenate([front, x], axis=1)
    if self.is_mutable_collection(STREAM) and not self.is_initializing():
      frames_out = (x.shape[1] - k_t) // s_t + 1
      self.put_variable(STREAM, "context", x[:, frames_out * s_t :])
    return x, (0, 0)
