"""I3D on Kinetics-400: the network of FVD.

Inflated Inception-v1 (arXiv:1705.07750), RGB stream, as in the TF-Hub module `i3d-kinetics-400`:
every convolution is followed by a BatchNorm without scale (epsilon 1e-3) and a ReLU, padding is
TensorFlow's SAME, and the 400 logits are averaged over time before any softmax.

Input pipeline of FVD (arXiv:1812.01717): bytes, resized bilinearly to 224 x 224 by TF1's rule
without half-pixel centers, then scaled to [-1, 1].
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from walt_t5x.metrics.network_input import ResizeRule, require_bytes, resize_bilinear

SIZE = 224
# The stride in time before the last pooling is 8, and the pooling needs two positions.
MIN_FRAMES = 9
NUM_CLASSES = 400

# Name -> widths of (1x1), (1x1, 3x3x3), (1x1, 3x3x3), (pool, 1x1); for a pooling, window and stride.
_TRUNK: tuple[tuple[str, tuple[int, ...]], ...] = (
  ("Mixed_3b", (64, 96, 128, 16, 32, 32)),
  ("Mixed_3c", (128, 128, 192, 32, 96, 64)),
  ("MaxPool3d_4a_3x3", (3, 2)),
  ("Mixed_4b", (192, 96, 208, 16, 48, 64)),
  ("Mixed_4c", (160, 112, 224, 24, 64, 64)),
  ("Mixed_4d", (128, 128, 256, 24, 64, 64)),
  ("Mixed_4e", (112, 144, 288, 32, 64, 64)),
  ("Mixed_4f", (256, 160, 320, 32, 128, 128)),
  ("MaxPool3d_5a_2x2", (2, 2)),
  ("Mixed_5b", (256, 160, 320, 32, 128, 128)),
  ("Mixed_5c", (384, 192, 384, 48, 128, 128)),
)


def convolve_native(x: Array, kernel: Array, stride: int) -> Array:
  return jax.lax.conv_general_dilated(
    x, kernel, (stride,) * 3, "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
  )


def convolve_shifted(x: Array, kernel: Array, stride: int) -> Array:
  """The same as a sum of 2D convolutions, one per time step of the kernel.

  XLA's 3D convolution takes 1.4 to 4 times as much processor time on CPU (7^3 stride 2 over 224^2:
  4.2 times; 3^3 over 56^2: 1.4; over 28^2: 1.9).
  """
  b, t, h, w, c = x.shape
  taps, steps = len(kernel), -(-t // stride)
  span = (steps - 1) * stride + 1
  padding = max(span - 1 + taps - t, 0)
  x = jnp.pad(x, ((0, 0), (padding // 2, padding - padding // 2), (0, 0), (0, 0), (0, 0)))
  total = jnp.zeros((), x.dtype)
  for tap in range(taps):
    frames = x[:, tap : tap + span : stride].reshape(b * steps, h, w, c)
    total += jax.lax.conv_general_dilated(
      frames, kernel[tap], (stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
  return total.reshape(b, steps, *total.shape[1:])


class Conv3D(nn.Module):
  """A convolution with SAME padding, without bias; size and stride are equal along time, height and width."""

  features: int
  kernel: int
  stride: int

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 F"]:
    shape = (self.kernel,) * 3 + (x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    return jax.lax.platform_dependent(
      x,
      jnp.asarray(kernel),
      cpu=functools.partial(convolve_shifted, stride=self.stride),
      default=functools.partial(convolve_native, stride=self.stride),
    )


class Unit3D(nn.Module):
  """Convolution without bias, BatchNorm without scale, ReLU."""

  features: int
  kernel: int = 1
  stride: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 F"]:
    x = Conv3D(self.features, self.kernel, self.stride, name="conv")(x)
    norm = nn.BatchNorm(use_running_average=True, epsilon=1e-3, use_scale=False, name="norm")
    return nn.relu(norm(x))


class InceptionModule3D(nn.Module):
  """Four parallel branches, concatenated along the channels."""

  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W F"]:
    w = self.widths
    b1 = Unit3D(w[1], name="Branch_1_Conv3d_0a_1x1")(x)
    b2 = Unit3D(w[3], name="Branch_2_Conv3d_0a_1x1")(x)
    pooled = nn.max_pool(x, (3, 3, 3), strides=(1, 1, 1), padding="SAME")
    branches = (
      Unit3D(w[0], name="Branch_0_Conv3d_0a_1x1")(x),
      Unit3D(w[2], 3, name="Branch_1_Conv3d_0b_3x3")(b1),
      Unit3D(w[4], 3, name="Branch_2_Conv3d_0b_3x3")(b2),
      Unit3D(w[5], name="Branch_3_Conv3d_0b_1x1")(pooled),
    )
    return jnp.concatenate(branches, -1)


class I3D(nn.Module):
  """Logits, averaged over time, of clips in [-1, 1]: [B, T, H, W, 3] -> [B, K].

  The last pooling covers two time steps and all positions, 7 x 7 for 224 x 224 pixels.
  """

  num_classes: int = NUM_CLASSES

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W 3"]) -> Float[Array, "B K"]:
    """Raises ValueError for fewer than 9 frames."""
    if x.shape[1] < MIN_FRAMES:
      raise ValueError(
        f"I3D takes clips of at least {MIN_FRAMES} frames, got {x.shape[1]}. Score longer clips."
      )
    x = Unit3D(64, 7, 2, name="Conv3d_1a_7x7")(x)
    x = nn.max_pool(x, (1, 3, 3), strides=(1, 2, 2), padding="SAME")
    x = Unit3D(64, name="Conv3d_2b_1x1")(x)
    x = Unit3D(192, 3, name="Conv3d_2c_3x3")(x)
    x = nn.max_pool(x, (1, 3, 3), strides=(1, 2, 2), padding="SAME")
    for name, numbers in _TRUNK:
      if name.startswith("Mixed"):
        x = InceptionModule3D(numbers, name=name)(x)
      else:
        window, stride = numbers
        x = nn.max_pool(x, (window,) * 3, strides=(stride,) * 3, padding="SAME")
    x = nn.avg_pool(x, (2, *x.shape[2:4]), strides=(1, 1, 1), padding="VALID")
    logits = nn.Conv(self.num_classes, (1, 1, 1), name="Logits_Conv3d_0c_1x1")(x)
    return logits.mean((1, 2, 3))


def preprocess(
  videos: UInt8[Array, "B T H W 3"],
  *,
  size: int = SIZE,
  network: str = "I3D",
  rule: ResizeRule = ResizeRule.LEGACY,
) -> Float[Array, "B T S S 3"]:
  """Resizes bytes of any size bilinearly to a square, by default by TF1's rule, then scales them to [-1, 1], float32.

  Raises ValueError, with the name of the network, for another dtype, rank or number of channels.
  """
  require_bytes(videos, network=network, axes="BTHW")
  x = resize_bilinear(videos.astype(jnp.float32), (size, size), rule=rule)
  return 2.0 * x / 255.0 - 1.0


def features(
  variables: Any, videos: Array, *, rule: ResizeRule = ResizeRule.LEGACY
) -> dict[str, Any]:
  """{"logits": [B, 400]} of clips [B, T, H, W, 3], uint8, of any size; raises ValueError below 9 frames."""
  return {"logits": I3D().apply(variables, preprocess(videos, rule=rule))}
