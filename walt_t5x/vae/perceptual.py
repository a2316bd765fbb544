"""Per-frame distances between clips in the features of a fixed image network.

The weights of the networks are not included. `lpips` and `resnet_logits` read them from local safetensors files with
torchvision's names and the shapes of `lpips_shapes()` and `resnet_shapes()`. Without a file they return None and
`VaeModel` trains without the term. `python -m walt_t5x.vae.import_lpips` creates the file for `lpips`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from walt_t5x.files import tensors
from walt_t5x.types import Video

# Normalization of pixels in [-1, 1] that the LPIPS weights were trained with.
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Normalization of pixels in [0, 1] for networks trained on ImageNet.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Index of each 3x3 convolution in torchvision's `features`; a new tuple begins after each 2x2 max pooling.
VGG_CONVOLUTIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
VGG_WIDTHS = (64, 128, 256, 512, 512)
RESNET_BLOCKS = (3, 4, 6, 3)
RESNET_WIDTHS = (64, 128, 256, 512)
RESNET_EPSILON = 1e-5

Distance = Callable[[Video, Video], Array]


def lpips(*, weights: str | None = None) -> Distance | None:
  """LPIPS on VGG-16, one loss per clip: the mean over its frames.

  Returns a function of two videos [B, T, H, W, 3] in [0, 1] that returns float32 [B]; None without a safetensors file
  with `lpips_shapes()`.

  Raises:
    FileNotFoundError: if the file does not exist.
    ValueError: if a weight is missing or has another shape.
  """
  return _with_weights(lpips_distance, weights, lpips_shapes())


def resnet_logits(*, weights: str | None = None) -> Distance | None:
  """Mean squared difference of ResNet-50 logits (MAGVIT-v2's loss); otherwise as `lpips`, with `resnet_shapes()`."""
  return _with_weights(logits_distance, weights, resnet_shapes())


def lpips_shapes() -> dict[str, tuple[int, ...]]:
  """Name -> shape of every weight that `lpips` reads, in torch order (out, in, height, width).

  VGG-16's convolutional part, and a 1x1 convolution to one channel for each of its five stages.
  """
  found: dict[str, tuple[int, ...]] = {}
  channels = 3
  for stage, (indices, width) in enumerate(zip(VGG_CONVOLUTIONS, VGG_WIDTHS)):
    for index in indices:
      found[f"features.{index}.weight"] = (width, channels, 3, 3)
      found[f"features.{index}.bias"] = (width,)
      channels = width
    found[f"lin{stage}.weight"] = (1, width, 1, 1)
  return found


def lpips_distance(
  weights: Mapping[str, Any], video: Video, reference: Video
) -> Float[Array, " B"]:
  """sum_l mean_hw w_l . (f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)|)^2 over the five stages l, mean over frames.

  Source: Zhang et al. (1801.03924), equation 1.
  """

  def stages(clips: Video) -> list[Array]:
    images = (2.0 * _frames(clips) - 1.0 - jnp.asarray(LPIPS_SHIFT)) / jnp.asarray(LPIPS_SCALE)
    return [_unit(f) for f in vgg_features(weights, images)]

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
    return resnet50(weights, images)

  difference = jnp.mean(jnp.square(judged(video) - judged(reference)), axis=-1)
  return jnp.mean(difference.reshape(video.shape[:2]), axis=1)


def _frames(clips: Video) -> Float[Array, "N H W 3"]:
  return clips.astype(jnp.float32).reshape(-1, *clips.shape[2:])


def _unit(features: Array) -> Array:
  """Normalizes to unit length over channels. The constant is inside the root, so the gradient at zero is finite."""
  return features * jax.lax.rsqrt(jnp.sum(jnp.square(features), axis=-1, keepdims=True) + 1e-20)


def _with_weights(
  distance: Callable[..., Array], path: str | None, wanted: Mapping[str, tuple[int, ...]]
) -> Distance | None:
  if path is None:
    return None
  found = tensors.load(path)
  for name, shape in wanted.items():
    got = found[name].shape if name in found else None
    if got != shape:
      raise ValueError(
        f"{path}: {name} has shape {got}, expected {shape}; the file must contain the weights with torchvision's names "
        "(docs/vae.md)."
      )
  return functools.partial(distance, {name: found[name].astype(np.float32) for name in wanted})


def _conv(weights: Mapping[str, Any], name: str, x: Array, stride: int = 1) -> Array:
  """A convolution without its bias; the padding keeps the size, up to the stride."""
  kernel = weights[f"{name}.weight"]
  pad = kernel.shape[-1] // 2
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    ((pad, pad), (pad, pad)),
    dimension_numbers=("NHWC", "OIHW", "NHWC"),
  )


def vgg_features(
  weights: Mapping[str, Any], images: Float[Array, "N H W 3"]
) -> list[Float[Array, "N h w C"]]:
  """VGG-16's activations after the last ReLU of each of its five stages, before its pooling.

  Images are normalized as the weights require and have at least 16 x 16 pixels.
  Source: Simonyan & Zisserman (1409.1556), configuration D.
  """
  x, taps = images, []
  for stage, indices in enumerate(VGG_CONVOLUTIONS):
    if stage:
      x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    for index in indices:
      x = jax.nn.relu(_conv(weights, f"features.{index}", x) + weights[f"features.{index}.bias"])
    taps.append(x)
  return taps


def resnet_shapes() -> dict[str, tuple[int, ...]]:
  """Name -> shape of every weight that `resnet50` reads, in torch order (out, in, height, width)."""
  found = {"conv1.weight": (64, 3, 7, 7)} | _norm_shapes("bn1", 64)
  channels = 64
  for stage, (blocks, width) in enumerate(zip(RESNET_BLOCKS, RESNET_WIDTHS), 1):
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


def resnet50(
  weights: Mapping[str, Any], images: Float[Array, "N H W 3"]
) -> Float[Array, "N classes"]:
  """Logits of ResNet-50 (v1.5: the stride is in the 3x3 convolution), [N, 1000].

  Images are normalized with `IMAGENET_MEAN` and `IMAGENET_STD` and have at least 32 x 32 pixels.
  Source: He et al. (1512.03385).
  """

  def conv_norm(x: Array, conv: str, norm: str, stride: int = 1) -> Array:
    x = _conv(weights, conv, x, stride)
    scale = weights[f"{norm}.weight"] / jnp.sqrt(weights[f"{norm}.running_var"] + RESNET_EPSILON)
    return (x - weights[f"{norm}.running_mean"]) * scale + weights[f"{norm}.bias"]

  x = jax.nn.relu(conv_norm(images, "conv1", "bn1", 2))
  x = jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
  )
  for stage, blocks in enumerate(RESNET_BLOCKS, 1):
    for block in range(blocks):
      name = f"layer{stage}.{block}"
      stride = 2 if stage > 1 and block == 0 else 1
      y = jax.nn.relu(conv_norm(x, f"{name}.conv1", f"{name}.bn1"))
      y = jax.nn.relu(conv_norm(y, f"{name}.conv2", f"{name}.bn2", stride))
      y = conv_norm(y, f"{name}.conv3", f"{name}.bn3")
      if block == 0:
        x = conv_norm(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
      x = jax.nn.relu(x + y)
  return jnp.mean(x, axis=(1, 2)) @ weights["fc.weight"].T + weights["fc.bias"]


def _norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
  return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
