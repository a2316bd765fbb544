"""Inception-v3 of TensorFlow's frozen graph of 2015-12-05: the network of FID and IS.

It differs from the later slim and torchvision networks: average pooling excludes padding from its
mean, the pooling branch of the last block (Mixed_7c) is a max pooling, and the classifier has 1,008
outputs. Every convolution is followed by a BatchNorm (epsilon 1e-3) and a ReLU.

FID uses `pool_3` [2048]; IS uses the softmax of the logits without bias (arXiv:1606.03498 used the
last matrix product of the graph, before its bias).

Names are those of the weight file `weights-inception-2015-12-05` of torch-fidelity.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from walt_t5x.metrics.network_input import ResizeRule, require_bytes, resize_bilinear

SIZE = 299
NUM_CLASSES = 1008

# A branch is a chain of convolutions: (name, width, (kernel height, width), stride, padding).
_Conv = tuple[str, int, tuple[int, int], int, str]


def _conv(name: str, width: int, height: int = 1, across: int = 1) -> _Conv:
  return name, width, (height, across), 1, "SAME"


def _chain(name: str, *links: tuple[int, int, int]) -> tuple[_Conv, ...]:
  """Convolutions `name`_1, `name`_2, ...; a link is (width, kernel height, kernel width)."""
  return tuple(_conv(f"{name}_{number}", *link) for number, link in enumerate(links, 1))


def _fork(name: str) -> tuple[_Conv, _Conv]:
  """Two parallel convolutions of width 384."""
  return _conv(f"{name}a", 384, 1, 3), _conv(f"{name}b", 384, 3, 1)


def _down(name: str, width: int) -> _Conv:
  return name, width, (3, 3), 2, "VALID"


class BasicConv2d(nn.Module):
  """Convolution without bias, BatchNorm, ReLU."""

  features: int
  kernel: tuple[int, int]
  stride: int = 1
  padding: str = "VALID"

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 F"]:
    x = nn.Conv(
      self.features,
      self.kernel,
      strides=(self.stride, self.stride),
      padding=self.padding,
      use_bias=False,
      name="conv",
    )(x)
    return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x))


class Block(nn.Module):
  """Parallel chains of convolutions and a pooling branch, concatenated along the channels.

  A chain may end with a tuple of parallel convolutions. The pooling branch is "average" or "maximum" (3 x 3, stride 1,
  then a 1 x 1 convolution of `pool_width`), or "down" (max pooling 3 x 3, stride 2, without a convolution).
  """

  chains: tuple
  pool: str
  pool_width: int = 0

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 F"]:
    outputs = []
    for chain in self.chains:
      y = x
      for link in chain:
        if isinstance(link[0], str):
          y = self._apply(link, y)
        else:
          y = jnp.concatenate([self._apply(fork, y) for fork in link], -1)
      outputs.append(y)
    if self.pool == "down":
      outputs.append(nn.max_pool(x, (3, 3), strides=(2, 2)))
    elif self.pool in ("average", "maximum"):
      if self.pool == "average":
        y = nn.avg_pool(x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=False)
      else:
        y = nn.max_pool(x, (3, 3), strides=(1, 1), padding="SAME")
      outputs.append(self._apply(_conv("branch_pool", self.pool_width), y))
    else:
      raise ValueError(f"Unknown pooling {self.pool!r}; expected average, maximum or down.")
    return jnp.concatenate(outputs, -1)

  def _apply(self, link: _Conv, x: Array) -> Array:
    name, width, kernel, stride, padding = link
    return BasicConv2d(width, kernel, stride, padding, name=name)(x)


def _block_a(pool_width: int, name: str) -> Block:
  """35 x 35."""
  chains = (
    (_conv("branch1x1", 64),),
    _chain("branch5x5", (48, 1, 1), (64, 5, 5)),
    _chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
  )
  return Block(chains, "average", pool_width, name=name)


def _block_b(name: str) -> Block:
  """35 x 35 to 17 x 17."""
  chains = (
    (_down("branch3x3", 384),),
    (*_chain("branch3x3dbl", (64, 1, 1), (96, 3, 3)), _down("branch3x3dbl_3", 96)),
  )
  return Block(chains, "down", name=name)


def _block_c(w: int, name: str) -> Block:
  """17 x 17."""
  chains = (
    (_conv("branch1x1", 192),),
    _chain("branch7x7", (w, 1, 1), (w, 1, 7), (192, 7, 1)),
    _chain("branch7x7dbl", (w, 1, 1), (w, 7, 1), (w, 1, 7), (w, 7, 1), (192, 1, 7)),
  )
  return Block(chains, "average", 192, name=name)


def _block_d(name: str) -> Block:
  """17 x 17 to 8 x 8."""
  chains = (
    (_conv("branch3x3_1", 192), _down("branch3x3_2", 320)),
    (*_chain("branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1)), _down("branch7x7x3_4", 192)),
  )
  return Block(chains, "down", name=name)


def _block_e(pool: str, name: str) -> Block:
  """8 x 8."""
  chains = (
    (_conv("branch1x1", 320),),
    (_conv("branch3x3_1", 384), _fork("branch3x3_2")),
    (*_chain("branch3x3dbl", (448, 1, 1), (384, 3, 3)), _fork("branch3x3dbl_3")),
  )
  return Block(chains, pool, 192, name=name)


class InceptionV3(nn.Module):
  """Features and logits of images [B, H, W, 3] in [-1, 1).

  Returns:
    {"pool_3": [B, 2048], "logits_unbiased": [B, 1008], "logits": [B, 1008]}.
  """

  @nn.compact
  def __call__(self, x: Float[Array, "B H W 3"]) -> dict[str, Array]:
    x = BasicConv2d(32, (3, 3), 2, name="Conv2d_1a_3x3")(x)
    x = BasicConv2d(32, (3, 3), name="Conv2d_2a_3x3")(x)
    x = BasicConv2d(64, (3, 3), padding="SAME", name="Conv2d_2b_3x3")(x)
    x = nn.max_pool(x, (3, 3), strides=(2, 2))
    x = BasicConv2d(80, (1, 1), name="Conv2d_3b_1x1")(x)
    x = BasicConv2d(192, (3, 3), name="Conv2d_4a_3x3")(x)
    x = nn.max_pool(x, (3, 3), strides=(2, 2))
    for name, width in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
      x = _block_a(width, name)(x)
    x = _block_b("Mixed_6a")(x)
    for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
      x = _block_c(width, f"Mixed_{name}")(x)
    x = _block_d("Mixed_7a")(x)
    x = _block_e("average", "Mixed_7b")(x)
    x = _block_e("maximum", "Mixed_7c")(x)
    pooled = x.mean((1, 2))
    unbiased = nn.Dense(NUM_CLASSES, use_bias=False, name="fc")(pooled)
    bias = self.param("fc_bias", nn.initializers.zeros, (NUM_CLASSES,))
    return {"pool_3": pooled, "logits_unbiased": unbiased, "logits": unbiased + bias}


def preprocess(images: UInt8[Array, "B H W 3"]) -> Float[Array, "B 299 299 3"]:
  """Resizes bytes bilinearly to 299 x 299 by TF1's rule, then returns (x - 128) / 128, float32.

  Raises ValueError for another dtype, rank or number of channels.
  """
  require_bytes(images, network="Inception", axes="BHW")
  x = resize_bilinear(images.astype(jnp.float32), (SIZE, SIZE), rule=ResizeRule.LEGACY)
  return (x - 128.0) / 128.0


def features(variables: Any, videos: Array) -> Any:
  """The outputs of `InceptionV3` for images as clips of one frame, [B, 1, H, W, 3], uint8, of any size.

  Raises ValueError for other clips.
  """
  if videos.ndim != 5 or videos.shape[1] != 1:
    raise ValueError(f"Inception takes images [B, 1, H, W, 3], got {videos.shape}.")
  return InceptionV3().apply(variables, preprocess(videos[:, 0]))
