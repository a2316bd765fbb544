"""ResNet-50 (v1.5: the stride is in the 3x3 convolution) at inference, with torchvision's weight names."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

BLOCKS = (3, 4, 6, 3)
WIDTHS = (64, 128, 256, 512)
EPSILON = 1e-5


def shapes() -> dict[str, tuple[int, ...]]:
  """Name -> shape of every weight that `logits` reads, in torch order (out, in, height, width)."""
  found = {"conv1.weight": (64, 3, 7, 7)} | _norm_shapes("bn1", 64)
  channels = 64
  for stage, (blocks, width) in enumerate(zip(BLOCKS, WIDTHS), 1):
    for block in range(blocks):
      name = f"layer{stage}.{block}"
      sizes = ((width, channels, 1), (width, width, 3), (4 * width, width, 1))
      for i, (out, into, k) in enumerate(sizes, 1):
        found[f"{name}.conv{i}.weight"] = (out, into, k, k)
        found |= _norm_shapes(f"{name}.bn{i}", out)
      if block == 0:
        found[f"{name}.downsample.0.weight"] = (4 * width, channels, 1, 1)
        found |= _norm_shapes(f"{name}.downsample.1", 4 * width)
      channels = 4 * width
  return found | {"fc.weight": (1000, channels), "fc.bias": (1000,)}


def logits(
  weights: Mapping[str, Any], images: Float[Array, "N H W 3"]
) -> Float[Array, "N classes"]:
  """The classifier's logits, [N, 1000]; images of at least 32 x 32 pixels.

  Source: He et al. (1512.03385).

  Args:
    weights: by the names of `shapes`.
    images: normalized with `perceptual.IMAGENET_MEAN` and `IMAGENET_STD`.
  """

  def conv(x: Array, name: str, stride: int = 1) -> Array:
    kernel = weights[f"{name}.weight"]
    pad = kernel.shape[-1] // 2
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      ((pad, pad), (pad, pad)),
      dimension_numbers=("NHWC", "OIHW", "NHWC"),
    )

  def norm(x: Array, name: str) -> Array:
    scale = weights[f"{name}.weight"] / jnp.sqrt(weights[f"{name}.running_var"] + EPSILON)
    return (x - weights[f"{name}.running_mean"]) * scale + weights[f"{name}.bias"]

  x = jax.nn.relu(norm(conv(images, "conv1", 2), "bn1"))
  x = jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
  )
  for stage, blocks in enumerate(BLOCKS, 1):
    for block in range(blocks):
      name = f"layer{stage}.{block}"
      stride = 2 if stage > 1 and block == 0 else 1
      y = jax.nn.relu(norm(conv(x, f"{name}.conv1"), f"{name}.bn1"))
      y = jax.nn.relu(norm(conv(y, f"{name}.conv2", stride), f"{name}.bn2"))
      y = norm(conv(y, f"{name}.conv3"), f"{name}.bn3")
      if block == 0:
        x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
      x = jax.nn.relu(x + y)
  return jnp.mean(x, axis=(1, 2)) @ weights["fc.weight"].T + weights["fc.bias"]


def _norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
  return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
