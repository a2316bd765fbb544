"""TransNet V2: finds the cuts between the shots of a video (arXiv:2008.04838).

Three blocks of two cells of dilated (2+1)D convolutions, the cosine similarities of each frame to the 101
frames around it by learned features and by RGB histograms, and one dense layer. Frames are thumbnails
of 27 x 48 bytes. Two heads have a logit per frame:

  cut         the frame is the last of its shot
  transition  the frame belongs to a transition, such as each frame of a dissolve

A video is read in windows of 100 frames with stride 50, of which the central 50 count (`cut_probabilities`).
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from walt_t5x.media.pixels import to_float
from walt_t5x.metrics.network_input import require_bytes

HEIGHT, WIDTH = 27, 48
WINDOW, STRIDE = 100, 50
LAYERS = ("cut", "transition")
DILATIONS = (1, 2, 4, 8)
BLOCKS = 3

# Frames before and after the central ones of a window.
_MARGIN = (WINDOW - STRIDE) // 2
# A frame is compared with itself and 50 frames on each side.
_NEIGHBORS = 101
_SIMILARITY_WIDTH = 128
_HISTOGRAM_BINS = 8**3


class DilatedCell(nn.Module):
  """Four (2+1)D convolutions of different dilations in time, concatenated; BatchNorm, ReLU.

  The four spatial convolutions have the same input and are computed as one.
  """

  filters: int

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W F"]:
    width = len(DILATIONS) * 2 * self.filters
    x = nn.Conv(width, (3, 3), use_bias=False, name="spatial")(x)
    b, t, h, w, c = x.shape
    # Time and pixels are the two axes of the temporal convolutions.
    parts = jnp.split(x.reshape(b, t, h * w, c), len(DILATIONS), axis=-1)
    temporal = functools.partial(nn.Conv, self.filters, (3, 1), use_bias=False)
    branches = [
      temporal(kernel_dilation=(d, 1), name=f"temporal_{d}")(part)
      for d, part in zip(DILATIONS, parts)
    ]
    x = jnp.concatenate(branches, -1).reshape(b, t, h, w, -1)
    return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="norm")(x))


def color_histograms(clips: UInt8[Array, "B T H W 3"]) -> Float[Array, "B T 512"]:
  """Pixels of each frame per color, of 8 levels per channel."""
  red, green, blue = jnp.moveaxis(clips.astype(jnp.int32) >> 5, -1, 0)
  colors = (red << 6) + (green << 3) + blue
  count = jax.vmap(jax.vmap(lambda frame: jnp.bincount(frame, length=_HISTOGRAM_BINS)))
  return count(colors.reshape(*colors.shape[:2], -1)).astype(jnp.float32)


def neighbor_similarities(x: Float[Array, "B T C"]) -> Float[Array, "B T 101"]:
  """Cosine similarity of frame t to the frames t - 50 to t + 50, zero for those outside the clip."""
  x /= jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
  pairs = jnp.einsum("btc,bsc->bts", x, x)
  side = _NEIGHBORS // 2
  padded = jnp.pad(pairs, ((0, 0), (0, 0), (side, side)))
  index = np.arange(x.shape[1])[:, None] + np.arange(_NEIGHBORS)
  return jnp.take_along_axis(padded, jnp.asarray(index)[None], axis=-1)


class TransNetV2(nn.Module):
  """Logits {"cut", "transition"} of every frame, [B, T], of thumbnails [B, T, 27, 48, 3], uint8."""

  filters: int = 16
  dense_width: int = 1024

  @nn.compact
  def __call__(self, clips: UInt8[Array, "B T H W 3"]) -> dict[str, Float[Array, "B T"]]:
    """Raises ValueError for another dtype, rank, number of channels or size of the frames."""
    require_bytes(clips, network="TransNetV2", axes="BTHW")
    if clips.shape[2:4] != (HEIGHT, WIDTH):
      raise ValueError(
        f"TransNetV2 takes frames of {HEIGHT}x{WIDTH}, got {clips.shape[2]}x{clips.shape[3]}. "
        "Resize the frames first."
      )
    x = to_float(clips)
    means = []
    for block in range(BLOCKS):
      width = self.filters * 2**block
      first = DilatedCell(width, name=f"block{block}_cell0")(x)
      second = DilatedCell(width, name=f"block{block}_cell1")(first)
      x = nn.avg_pool(first + second, (1, 2, 2), strides=(1, 2, 2))
      means.append(x.mean((2, 3)))
    learned = nn.Dense(_SIMILARITY_WIDTH, name="projection")(jnp.concatenate(means, -1))
    compared = {"histograms": color_histograms(clips), "similarities": learned}
    parts = [
      nn.relu(nn.Dense(_SIMILARITY_WIDTH, name=name)(neighbor_similarities(value)))
      for name, value in compared.items()
    ]
    x = jnp.concatenate([*parts, x.reshape(*x.shape[:2], -1)], -1)
    x = nn.relu(nn.Dense(self.dense_width, name="dense")(x))
    return {layer: nn.Dense(1, name=layer)(x)[..., 0] for layer in LAYERS}


def features(variables: Any, videos: Array) -> dict[str, Any]:
  """{"cut", "transition"}: logits [B, T] of clips [B, T, 27, 48, 3], uint8; raises ValueError as `TransNetV2`."""
  return TransNetV2().apply(variables, videos)  # pyright: ignore[reportReturnType]


def _windows(chunks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, int]]:
  """Windows of 100 frames with stride 50, each with the number of its central frames that are in the video."""
  held = None
  for chunk in chunks:
    if len(chunk):
      before = np.repeat(chunk[:1], _MARGIN, axis=0) if held is None else held
      held = np.concatenate([before, chunk])
      while len(held) >= WINDOW:
        yield held[:WINDOW], STRIDE
        held = held[STRIDE:]
  # The last frame is repeated as often as the last windows need.
  while held is not None and len(held) > _MARGIN:
    window = held[:WINDOW]
    after = np.repeat(held[-1:], WINDOW - len(window), axis=0)
    yield np.concatenate([window, after]), min(len(held) - _MARGIN, STRIDE)
    held = held[STRIDE:]


def cut_probabilities(
  network: Callable[..., Mapping[str, np.ndarray]],
  chunks: Iterable[UInt8[np.ndarray, "_ 27 48 3"]],
  *,
  batch_size: int = 4,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields {"cut", "transition"}: probabilities [n] of the next frames of a video, in order.

  The first and the last frame are repeated outside the video. No more than a chunk of the video and
  `batch_size` windows are held.

  Args:
    network: `FeatureNetwork.load("transnet_v2", path)`.
    chunks: thumbnails of consecutive frames; chunks of any number of frames.
    batch_size: windows per call of the network, which sees this one shape.
  """
  windows = _windows(chunks)
  while batch := list(itertools.islice(windows, batch_size)):
    logits = network(np.stack([window for window, _ in batch]), batch_size=batch_size)
    count = sum(new for _, new in batch)
    yield {
      layer: 0.5 + 0.5 * np.tanh(logits[layer][:, _MARGIN:-_MARGIN].reshape(-1)[:count] / 2)
      for layer in LAYERS
    }
