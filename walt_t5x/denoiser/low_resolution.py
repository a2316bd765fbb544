"""The low-resolution input of a super-resolution stage (Section 4.5)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.partitioning import param_with_axes
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from walt_t5x.denoiser.embeddings import unpatchify
from walt_t5x.denoiser.layers import projection_init, zeros_init


class LowResolutionUpsample(nn.Module):
  """Upsamples each frame, [B, t, h, w, c] -> [B, t, s h, s w, c]: 3x3 convolution c -> s^2 c, then depth-to-space.

  Attributes:
    scale: s, the spatial ratio of the stage; 2 in the paper.
  """

  scale: int = 2
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, latents: Float[Array, "B t h w c"]) -> Float[Array, "B t H W c"]:
    batch, t, h, w, channels = latents.shape
    features = self.scale**2 * channels
    kernel = param_with_axes(
      "kernel",
      projection_init,
      (3, 3, channels, features),
      jnp.float32,
      axes=("conv_h", "conv_w", "conv_in", "conv_out"),
    )
    bias = param_with_axes("bias", zeros_init, (features,), jnp.float32, axes=("conv_out",))
    y = jax.lax.conv_general_dilated(
      latents.reshape(batch * t, h, w, channels).astype(self.dtype),
      kernel.astype(self.dtype),
      window_strides=(1, 1),
      padding="SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    y = (y + bias.astype(self.dtype)).reshape(batch, t, h, w, features)
    return unpatchify(y, self.scale)


def augment(
  latents: Float[Array, "B t h w c"], noise: Float[Array, "B t h w c"], gamma: Float[Array, " B"]
) -> Float[Array, "B t h w c"]:
  """Noise conditioning augmentation: sqrt(g) z + sqrt(1 - g) eps at the level g = gamma(t_sr), float32."""
  gamma = gamma.astype(jnp.float32).reshape(-1, 1, 1, 1, 1)
  return jnp.sqrt(gamma) * latents + jnp.sqrt(1 - gamma) * noise
