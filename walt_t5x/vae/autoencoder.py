"""The causal video autoencoder (the paper's tokenizer) and its posterior. An image is a video of one frame."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from walt_t5x.types import Latents, Video
from walt_t5x.vae.encoder_decoder import CausalResNet, Decoder, Encoder

# exp of a larger log-variance overflows bfloat16 sums; a smaller one has zero variance in float32.
LOGVAR_RANGE = (-30.0, 20.0)


@struct.dataclass
class Posterior:
  """q(z | x) = N(mean, exp(logvar)) of latents [B, t, h, w, c], or the point `mean` if logvar is None."""

  # Not Latents: JAX transforms rebuild the tree with placeholders, which a shape check would reject.
  mean: Any
  logvar: Any = None

  def sample(self, key: PRNGKeyArray) -> Latents:
    """mean + exp(logvar / 2) * n with n ~ N(0, 1); the mean itself if deterministic."""
    if self.logvar is None:
      return self.mean
    noise = jax.random.normal(key, self.mean.shape, jnp.float32)
    std = jnp.exp(0.5 * self.logvar.astype(jnp.float32))
    return (self.mean.astype(jnp.float32) + std * noise).astype(self.mean.dtype)

  def kl(self) -> Float[Array, " B"]:
    """KL(q || N(0, 1)) = sum (mean^2 + exp(logvar) - 1 - logvar) / 2, nats per clip; 0 for a point."""
    if self.logvar is None:
      return jnp.zeros(self.mean.shape[:1], jnp.float32)
    mean, logvar = self.mean.astype(jnp.float32), self.logvar.astype(jnp.float32)
    terms = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
    return jnp.sum(terms, axis=(1, 2, 3, 4))


class CausalVae(nn.Module):
  """MAGVIT-v2's causal 3D CNN without the quantizer.

  Latent frame 0 depends on pixel frame 0 alone; latent frame j on frames up to temporal_factor * j.
  The latent of an image is therefore the first latent frame of any video that starts with it.

  Sizes at base 128, 4 ResBlocks, 8 latent channels, deterministic (published | ours):
    video, multipliers (1, 2, 2, 4): 375.8M | 150,316,168 + 225,513,091 = 375,829,259
    image, multipliers (1, 1, 2, 4), temporal_kernel 1, down_kernel (1, 3, 3), no temporal
      downsampling: 102.6M | 102,643,083 (4x4 strided kernels would give 103.3M)

  Args:
    latent_channels: c.
    base_channels: width of a level with multiplier 1.
    channel_multipliers: one per level; height and width are halved between levels.
    num_res_blocks: ResBlocks per level, and again at the bottom.
    temporal_downsample: whether time is also halved, for each transition between levels, the encoder's first.
    posterior: 'deterministic' or 'gaussian'. Assumption: deterministic; the paper has no KL term.
    temporal_kernel: k_t of the 3^3 convolutions; 1 for an image tokenizer.
    down_kernel: kernel of the strided convolutions, (k_t, k_h, k_w).
    dtype: activation dtype; parameters stay float32.
    remat: recompute each ResBlock in the backward pass, to save memory.
  """

  latent_channels: int = 8
  base_channels: int = 128
  channel_multipliers: Sequence[int] = (1, 2, 2, 4)
  num_res_blocks: int = 4
  temporal_downsample: Sequence[bool] = (False, True, True)
  posterior: Literal["deterministic", "gaussian"] = "deterministic"
  temporal_kernel: int = 3
  down_kernel: Sequence[int] = (4, 4, 4)
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  def setup(self):
    if len(self.temporal_downsample) != len(self.channel_multipliers) - 1:
      raise ValueError(
        f"CausalVae: got {len(self.temporal_downsample)} temporal_downsample flags for "
        f"{len(self.channel_multipliers)} channel_multipliers, expected one fewer than levels; "
        f"set temporal_downsample to {len(self.channel_multipliers) - 1} booleans."
      )
    if self.posterior == "deterministic":
      encoder_channels = self.latent_channels
    elif self.posterior == "gaussian":
      encoder_channels = 2 * self.latent_channels
    else:
      raise ValueError(f"CausalVae: got {self.posterior=}, expected 'deterministic' or 'gaussian'.")
    names = {field.name for field in dataclasses.fields(CausalResNet)} - {"parent", "name"}
    shared = {name: getattr(self, name) for name in sorted(names)}
    self.encoder = Encoder(out_channels=encoder_channels, down_kernel=self.down_kernel, **shared)
    self.decoder = Decoder(**shared)

  @property
  def spatial_factor(self) -> int:
    """Pixels per latent position, along height and along width."""
    return 2 ** (len(self.channel_multipliers) - 1)

  @property
  def temporal_factor(self) -> int:
    """Pixel frames per latent frame after the first."""
    return 2 ** sum(bool(flag) for flag in self.temporal_downsample)

  def latent_shape(self, video_shape: Sequence[int]) -> tuple[int, int, int, int]:
    """(T, H, W) -> (t, h, w, c).

    Raises ValueError if T is not 1 + k * temporal_factor, or H or W not a multiple of spatial_factor.
    """
    frames, height, width = video_shape
    f_t, f_s = self.temporal_factor, self.spatial_factor
    if frames < 1 or (frames - 1) % f_t:
      below = max(frames - 1, 0) // f_t * f_t + 1
      raise ValueError(
        f"CausalVae: got {frames} frames, expected 1 + k * {f_t}; {below} or {below + f_t} would "
        "fit: trim or extend the clip."
      )
    for name, size in (("height", height), ("width", width)):
      if size < f_s or size % f_s:
        below = size // f_s * f_s
        fits = f"{below} or {below + f_s}" if below else f"{f_s}"
        raise ValueError(
          f"CausalVae: got {name} {size}, expected a multiple of {f_s}; {fits} would fit: "
          "crop or resize the clip."
        )
    return (1 + (frames - 1) // f_t, height // f_s, width // f_s, self.latent_channels)

  def encode(self, video: Video, *, continues: bool = False) -> Posterior:
    """Pixels in [0, 1] -> posterior over latents, [B, t, h, w, c], in the encoder's scale.

    With `continues`, the video is the next temporal_factor * k frames of a stream (`streaming`), whose context is in
    the collection `STREAM`. Raises ValueError for sizes that `latent_shape` rejects.
    """
    self.latent_shape((video.shape[1] + continues, *video.shape[2:4]))
    out = self.encoder(video)
    if self.posterior == "deterministic":
      return Posterior(mean=out, logvar=None)
    mean, logvar = jnp.split(out, 2, axis=-1)
    return Posterior(mean=mean, logvar=jnp.clip(logvar, *LOGVAR_RANGE))

  def decode(self, latents: Latents, *, continues: bool = False) -> Video:
    """Latents [B, t, h, w, c] -> pixels near [0, 1], not clipped; 1 + (t - 1) * temporal_factor frames.

    With `continues`, the latents are the next ones of a stream and give t * temporal_factor frames. Raises ValueError
    for another number of channels.
    """
    if latents.shape[-1] != self.latent_channels:
      raise ValueError(
        f"CausalVae: got latents with {latents.shape[-1]} channels, expected "
        f"{self.latent_channels}; set latent_channels to those of the checkpoint."
      )
    return self.decoder(latents, continues=continues)

  def __call__(self, video: Video, key: PRNGKeyArray | None = None) -> tuple[Video, Posterior]:
    """Returns reconstruction and posterior; decodes a sample if `key` is given, else the mean."""
    posterior = self.encode(video)
    latents = posterior.mean if key is None else posterior.sample(key)
    return self.decode(latents), posterior
