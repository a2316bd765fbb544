"""Per-frame distances between clips in the features of a fixed image network.

The weights of the networks are not included. `lpips` and `resnet_logits` read them from local safetensors files with
torchvision's names and the shapes of `lpips_shapes()` and `resnet50.shapes()`. Without a file they return None and
`VaeModel` trains without the term. `python -m walt_t5x.vae.import_lpips` creates the file for `lpips`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from walt_t5x.types import Video
from walt_t5x.vae import resnet50, vgg

# Normalization of pixels in [-1, 1] that the LPIPS weights were trained with.
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Normalization of pixels in [0, 1] for networks trained on ImageNet.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Distance = Callable[[Video, Video], Array]


def lpips(*, weights: str | None = None) -> Distance | None:
  """LPIPS on VGG-16, one loss per clip: the mean over its frames.

  Args:
    weights: safetensors file with `lpips_shapes()`; None for no perceptual term.

  Returns:
    A function of two videos [B, T, H, W, 3] in [0, 1] that returns float32 [B]; None without weights.

  Raises:
    FileNotFoundError: if the file does not exist.
    ValueError: if a weight is missing or has another shape.
  """
  if weights is None:
    return None
  values = _read(weights, lpips_shapes())
  return lambda video, reference: lpips_distance(values, video, reference)


def resnet_logits(*, weights: str | None = None) -> Distance | None:
  """Mean squared difference of ResNet-50 logits (MAGVIT-v2's perceptual loss), one loss per clip.

  Args, Returns and Raises: as in `lpips`, with `resnet50.shapes()`.
  """
  if weights is None:
    return None
  values = _read(weights, resnet50.shapes())
  return lambda video, reference: logits_distance(values, video, reference)


def lpips_shapes() -> dict[str, tuple[int, ...]]:
  """Name -> shape of VGG-16's weights and of a 1x1 convolution to one channel for each of its five stages."""
  heads = {f"lin{i}.weight": (1, width, 1, 1) for i, width in enumerate(vgg.WIDTHS)}
  return vgg.shapes() | heads


def lpips_distance(
  weights: Mapping[str, Any], video: Video, reference: Video
) -> Float[Array, " B"]:
  """sum_l mean_hw w_l . (f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)|)^2 over the five stages l, mean over frames.

  Source: Zhang et al. (1801.03924), equation 1.
  """

  def stages(clips: Video) -> list[Array]:
    images = (2.0 * _frames(clips) - 1.0 - jnp.asarray(LPIPS_SHIFT)) / jnp.asarray(LPIPS_SCALE)
    return [_unit(f) for f in vgg.features(weights, images)]

  total = jnp.zeros(video.shape[0] * video.shape[1])
  for i, (a, b) in enumerate(zip(stages(video), stages(reference))):
    head = weights[f"lin{i}.weight"][0, :, 0, 0]
    total += jnp.mean(jnp.square(a - b) @ head, axis=(1, 2))
  return jnp.mean(total.reshape(video.shape[:2]), axis=1)


def logits_distance(
  weights: Mapping[str, Any], video: Video, reference: Video
) -> Float[Array, " B"]:
  """Mean over frames and classes of (logit(x) - logit(y))^2."""

  def judged(clips: Video) -> Array:
    images = (_frames(clips) - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)
    return resnet50.logits(weights, images)

  difference = jnp.mean(jnp.square(judged(video) - judged(reference)), axis=-1)
  return jnp.mean(difference.reshape(video.shape[:2]), axis=1)


def _frames(clips: Video) -> Float[Array, "N H W 3"]:
  return clips.astype(jnp.float32).reshape(-1, *clips.shape[2:])


def _unit(features: Array) -> Array:
  """Normalizes to unit length over channels. The constant is inside the root, so the gradient at zero is finite."""
  return features * jax.lax.rsqrt(jnp.sum(jnp.square(features), axis=-1, keepdims=True) + 1e-20)


def _read(path: str, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  from safetensors.numpy import load_file

  found = load_file(path)
  for name, shape in wanted.items():
    got = found[name].shape if name in found else None
    if got != shape:
      raise ValueError(
        f"{path}: {name} has shape {got}, expected {shape}; the file must contain the weights with torchvision's names "
        "(docs/vae.md)."
      )
  return {name: found[name].astype(np.float32) for name in wanted}
