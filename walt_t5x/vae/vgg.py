"""The convolutional part of VGG-16, as a function of weights with torchvision's names."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Index of each 3x3 convolution in torchvision's `features`; a new tuple begins after each 2x2 max pooling.
CONVOLUTIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)


def shapes() -> dict[str, tuple[int, ...]]:
  """Name -> shape of every weight, in torch order (out, in, height, width)."""
  found: dict[str, tuple[int, ...]] = {}
  channels = 3
  for indices, width in zip(CONVOLUTIONS, WIDTHS):
    for index in indices:
      found[f"features.{index}.weight"] = (width, channels, 3, 3)
      found[f"features.{index}.bias"] = (width,)
      channels = width
  return found


def features(
  weights: Mapping[str, Any], images: Float[Array, "N H W 3"]
) -> list[Float[Array, "N h w C"]]:
  """The activations after the last ReLU of each of the five stages, before its pooling.

  Source: Simonyan & Zisserman (1409.1556), configuration D.

  Args:
    weights: by the names of `shapes`.
    images: normalized as the weights require; at least 16 x 16 pixels.
  """
  x, taps = images, []
  for stage, indices in enumerate(CONVOLUTIONS):
    if stage:
      x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    for index in indices:
      x = jax.lax.conv_general_dilated(
        x,
        weights[f"features.{index}.weight"],
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
      )
      x = jax.nn.relu(x + weights[f"features.{index}.bias"])
    taps.append(x)
  return taps
