"""Group normalization with per-frame statistics: plain, and conditioned on the latent.

Statistics over (t, h, w) would mix frames, so that the first latent of a video would differ from
that of a single image. They are computed over (h, w, channels of a group) of each frame instead; the
parameter count is the same.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.partitioning import param_with_axes
from jax.typing import DTypeLike
from jaxtyping import Array, Float

MAX_GROUPS = 32
MIN_CHANNELS_PER_GROUP = 4


def num_groups(channels: int) -> int:
  """The largest divisor of `channels` that is at most 32 and leaves at least 4 channels per group.

  Assumption: 32 groups at the published widths (128 and up). Narrow networks use fewer, because a
  group of one channel would be instance normalization, which erases the color of a uniform frame.
  """
  most = max(1, min(MAX_GROUPS, channels // MIN_CHANNELS_PER_GROUP))
  return max(g for g in range(1, most + 1) if channels % g == 0)


def normalize_frames(x: Float[Array, "B T H W C"], groups: int) -> Float[Array, "B T H W C"]:
  """(x - mean) / sqrt(var + 1e-6) over (H, W, C / groups) of each frame, in float32."""
  per_group = x.shape[-1] // groups

  def group_mean(v: Float[Array, "B T H W C"]) -> Float[Array, "B T 1 1 C"]:
    # Reduce (H, W) first, then groups: the long reduction stays vectorized over the last axis.
    channel_mean = jnp.mean(v, axis=(2, 3), keepdims=True)
    grouped = channel_mean.reshape(*channel_mean.shape[:-1], groups, per_group)
    return jnp.repeat(jnp.mean(grouped, axis=-1), per_group, axis=-1)

  x = x.astype(jnp.float32)
  centered = x - group_mean(x)
  return centered / jnp.sqrt(group_mean(jnp.square(centered)) + 1e-6)


class GroupNorm(nn.Module):
  """scale * normalize_frames(x) + bias, at most 32 groups."""

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    shape = (x.shape[-1],)
    ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
    scale = param_with_axes("scale", ones, shape, jnp.float32, axes=("unmodeled",))
    bias = param_with_axes("bias", zeros, shape, jnp.float32, axes=("unmodeled",))
    y = normalize_frames(x, num_groups(x.shape[-1]))
    return (y * scale + bias).astype(self.dtype)


class AdaptiveGroupNorm(nn.Module):
  """scale(std z) * normalize_frames(x) + shift(mean z), std and mean over (h, w) of a latent frame.

  scale and shift are one linear layer each, c -> C with bias: 2 (c + 1) C parameters. A feature
  frame is conditioned on the latent frame that it is decoded from, so the decoder stays causal.
  Source: MAGVIT-v2 (2310.05737), section 3.2. Assumption: per-frame statistics, biased std, scale
  initialized to 1.
  """

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T H W C"],
    latents: Float[Array, "B t h w c"],
    *,
    continues: bool = False,
  ) -> Float[Array, "B T H W C"]:
    z = latents.astype(jnp.float32)
    mean = jnp.mean(z, axis=(2, 3), keepdims=True)
    std = jnp.sqrt(jnp.mean(jnp.square(z - mean), axis=(2, 3), keepdims=True) + 1e-6)
    scale = self._linear(std, x.shape[-1], "scale", nn.initializers.ones_init())
    shift = self._linear(mean, x.shape[-1], "shift", nn.initializers.zeros_init())
    source = latent_frame_of(x.shape[1], z.shape[1], continues=continues)
    y = normalize_frames(x, num_groups(x.shape[-1]))
    return (y * scale[:, source] + shift[:, source]).astype(self.dtype)

  def _linear(self, v, features: int, name: str, bias_init):
    # Zero kernels: at initialization the layer is a plain normalization for any scale of the
    # latents.
    kernel = param_with_axes(
      f"{name}_kernel",
      nn.initializers.zeros_init(),
      (v.shape[-1], features),
      jnp.float32,
      axes=("conv_in", "conv_out"),
    )
    bias = param_with_axes(f"{name}_bias", bias_init, (features,), jnp.float32, axes=("conv_out",))
    return v @ kernel + bias


def latent_frame_of(frames: int, latent_frames: int, *, continues: bool = False) -> list[int]:
  """Index of the latent frame of each feature frame: frame 0 from latent 0, then s frames from each.

  In a group that continues a stream every latent has s frames. Raises ValueError if no s fits.
  """
  own = 0 if continues else 1  # frame 0 has its own latent
  groups = latent_frames - own
  stride = (frames - own) // groups if groups > 0 else 0
  if frames != own + stride * groups:
    expected = "s * latent_frames" if continues else "1 + s * (latent_frames - 1)"
    raise ValueError(
      f"latent_frame_of: got {frames} feature frames for {latent_frames} latent frames"
      f"{' of a group that continues' if continues else ''}, expected {expected} for an integer s."
    )
  return [0] * own + [own + frame // stride for frame in range(stride * groups)]
