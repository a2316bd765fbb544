"""Input of the scoring networks: a check that it is RGB bytes, and bilinear resizing by the rules of TensorFlow 1.

The published scores were computed with these rules.

Output pixel i samples the input at position

  i * n_in / n_out                        legacy (resize_bilinear's default): no half-pixel centers
  i * (n_in - 1) / (n_out - 1)            align_corners
  (i + 1/2) * n_in / n_out - 1/2          half_pixel (TF2, torch, PIL without its filter)

and interpolates linearly between the two neighbors, without antialiasing. The rules differ by up to
half a pixel, which changes FID and FVD by more than the differences that papers report.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from walt_t5x.metrics.protocols.protocol import ResizeRule


def require_bytes(x: Shaped[Array, "..."], *, network: str, axes: Sequence[str]) -> None:
  """Raises ValueError unless the network's input is uint8 RGB; `axes` are the letters of all axes but the channels."""
  if x.dtype != jnp.uint8 or x.ndim != len(axes) + 1 or x.shape[-1] != 3:
    kind = "clips" if "T" in axes else "images"
    raise ValueError(
      f"{network} takes uint8 RGB {kind} [{', '.join(axes)}, 3], got {x.dtype} {x.shape}. "
      "Round samples in [0, 1] to bytes first: the score is defined on the contents of a file."
    )


def _taps(
  size_in: int, size_out: int, rule: ResizeRule
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(lower index, upper index, weight of the upper), computed in float32 as in TensorFlow."""
  index = np.arange(size_out, dtype=np.float32)
  if rule is ResizeRule.LEGACY:
    position = index * np.float32(size_in / size_out)
  elif rule is ResizeRule.ALIGN_CORNERS:
    position = index * np.float32((size_in - 1) / max(1, size_out - 1))
  elif rule is ResizeRule.HALF_PIXEL:
    position = (index + np.float32(0.5)) * np.float32(size_in / size_out) - np.float32(0.5)
  else:
    raise ValueError(f"Unknown resize rule {rule!r}; expected one of {list(ResizeRule)}.")
  floor = np.floor(position)
  lower = np.maximum(floor, 0).astype(np.int32)
  upper = np.minimum(floor + 1, size_in - 1).astype(np.int32)
  lower = np.minimum(lower, size_in - 1)
  return lower, upper, (position - floor).astype(np.float32)


def resize_bilinear(
  images: Float[Array | np.ndarray, "*N H W C"],
  size: tuple[int, int],
  *,
  rule: ResizeRule = ResizeRule.LEGACY,
) -> Float[Array, "*N H2 W2 C"]:
  """Resizes images or clips with any range of values to a new (height, width); raises ValueError below 1 x 1."""
  if min(size) < 1:
    raise ValueError(f"Expected a size of at least 1x1, got {size}.")
  height, width = images.shape[-3:-1]
  if (height, width) == tuple(size):
    return jnp.asarray(images)
  left, right, x = _taps(width, size[1], rule)
  top, bottom, y = _taps(height, size[0], rule)
  x, y = jnp.asarray(x, images.dtype)[:, None], jnp.asarray(y, images.dtype)[:, None, None]

  def row(index: np.ndarray) -> Array:
    rows = jnp.take(images, index, axis=-3)
    a, b = jnp.take(rows, left, axis=-2), jnp.take(rows, right, axis=-2)
    return a + (b - a) * x

  upper, lower = row(top), row(bottom)
  return upper + (lower - upper) * y
