"""Embeddings of the transformer's inputs: time, class, pooled text, positions, patches, low resolution."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.partitioning import param_with_axes
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num

from walt_t5x.denoiser.layers import Initializer, Linear, Table, projection_init, zeros_init

SINUSOID_FEATURES = 256


def sinusoid(steps: Num[Array, "..."], features: int = SINUSOID_FEATURES) -> Float[Array, "... f"]:
  """[cos(s w_i), sin(s w_i)], w_i = 10000^(-i / (features / 2)), float32; steps s in 0 .. 1000."""
  half = features // 2
  frequencies = jnp.exp(-math.log(10_000) * jnp.arange(half, dtype=jnp.float32) / half)
  angles = steps.astype(jnp.float32)[..., None] * frequencies
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class ConditionMlp(nn.Module):
  """linear -> SiLU -> linear to the width D; embeds a time sinusoid or a pooled text."""

  width: int
  dtype: DTypeLike = jnp.float32
  out_init: Initializer = projection_init

  @nn.compact
  def __call__(self, x: Float[Array, "... f"]) -> Float[Array, "... D"]:
    hidden = Linear((self.width,), axes=("unmodeled", "embed"), dtype=self.dtype, name="in")(x)
    return Linear(
      (self.width,),
      axes=("embed", "unmodeled"),
      kernel_init=self.out_init,
      dtype=self.dtype,
      name="out",
    )(jax.nn.silu(hidden))


class ClassEmbedding(nn.Module):
  """Table of num_classes + 1 rows; label -1 (dropped for guidance, or absent) selects the last row."""

  num_classes: int
  width: int

  @nn.compact
  def __call__(self, labels: Int[Array, "..."]) -> Float[Array, "... D"]:
    table = Table(self.num_classes + 1, self.width, name="table")()
    return table[jnp.where(labels < 0, self.num_classes, labels)]


def pool_text(text: Float[Array, "B t L E"], mask: Bool[Array, "B t L"]) -> Float[Array, "B t E"]:
  """Mean over tokens where `mask` is True, float32. Assumption: the paper does not specify the pooling."""
  weights = mask.astype(jnp.float32)[..., None]
  total = jnp.sum(text.astype(jnp.float32) * weights, axis=-2)
  return total / jnp.maximum(jnp.sum(weights, axis=-2), 1)


def sinusoid_grid(sizes: tuple[int, ...], width: int) -> Float[Array, "rows D"]:
  """Sines and cosines of each axis of a grid, concatenated: float32 [prod(sizes), width], rows in row-major order.

  Each axis takes width / len(sizes) features (the remainder is zero). Wavelengths are spaced geometrically from four
  positions to twice the axis, so that the longest distinguishes the two ends.
  """
  half = width // (2 * len(sizes))
  parts = []
  for axis, size in enumerate(sizes):
    shape = [1] * len(sizes)
    shape[axis] = size
    place = jnp.arange(size, dtype=jnp.float32).reshape(shape)
    longest, shortest = 2.0 * size, 4.0
    exponent = jnp.arange(half, dtype=jnp.float32) / max(half - 1, 1)
    angle = place[..., None] * 2 * math.pi / longest * (longest / shortest) ** exponent
    waves = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    parts.append(jnp.broadcast_to(waves, (*sizes, 2 * half)))
  grid = jnp.concatenate(parts, axis=-1).reshape(math.prod(sizes), -1)
  return jnp.pad(grid, ((0, 0), (0, width - grid.shape[-1])))


class PositionEmbedding(nn.Module):
  """Learned space plus time positions; every image of a stack gets the time position of the first frame.

  Assumption: the tables are initialized with sinusoids (the paper does not specify the initialization), so that
  positions have the scale of the content from the first step and neighbors start similar.
  """

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B t h w D"],
    is_image: Bool[Array, " B"] | None = None,
    *,
    all_images: bool = False,
  ) -> Float[Array, "B t h w D"]:
    _, t, h, w, width = x.shape

    def table(name: str, *sizes: int) -> Array:
      def init(key, shape, dtype):
        return sinusoid_grid(sizes, width).astype(dtype)

      return Table(math.prod(sizes), width, init=init, name=name)()

    space = table("space", h, w).reshape(1, 1, h, w, width)
    time = table("time", t).reshape(1, t, 1, 1, width)
    if all_images:
      time = time[:, :1]
    elif is_image is not None:
      time = jnp.where(is_image.reshape(-1, 1, 1, 1, 1), time[:, :1], time)
    return x + (space + time).astype(x.dtype)


class PatchEmbedding(nn.Module):
  """Splits each latent frame into p x p patches and projects them: [B, t, h, w, C] -> [B, t, h/p, w/p, D]."""

  patch_size: int
  width: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, latents: Float[Array, "B t h w C"]) -> Float[Array, "B t hp wp D"]:
    return Linear((self.width,), axes=("unmodeled", "embed"), dtype=self.dtype, name="projection")(
      patchify(latents, self.patch_size)
    )


def patchify(latents: Float[Array, "B t h w C"], patch: int) -> Float[Array, "B t hp wp C_p_p"]:
  """[B, t, h, w, C] -> [B, t, h/p, w/p, p p C].

  Raises:
    ValueError: if the patch does not divide the frame.
  """
  batch, t, h, w, channels = latents.shape
  if h % patch or w % patch:
    raise ValueError(
      f"patch_size={patch} does not divide latent frames of {h}x{w}: set WaltDenoiser.patch_size to a common divisor"
    )
  split = latents.reshape(batch, t, h // patch, patch, w // patch, patch, channels)
  split = jnp.transpose(split, (0, 1, 2, 4, 3, 5, 6))
  return split.reshape(batch, t, h // patch, w // patch, patch * patch * channels)


def unpatchify(patches: Float[Array, "B t hp wp C_p_p"], patch: int) -> Float[Array, "B t h w C"]:
  """The inverse of `patchify`, [B, t, h/p, w/p, p p C] -> [B, t, h, w, C]; also depth-to-space by a factor `patch`."""
  batch, t, hp, wp, depth = patches.shape
  channels = depth // (patch * patch)
  split = patches.reshape(batch, t, hp, wp, patch, patch, channels)
  split = jnp.transpose(split, (0, 1, 2, 4, 3, 5, 6))
  return split.reshape(batch, t, hp * patch, wp * patch, channels)


class LowResolutionUpsample(nn.Module):
  """Upsamples the input of a super-resolution stage (Section 4.5), [B, t, h, w, c] -> [B, t, s h, s w, c].

  A 3x3 convolution c -> s^2 c, then depth-to-space.

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
