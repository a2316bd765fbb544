"""Bytes of pixels and floats in [0, 1], for arrays of numpy and of JAX."""

from typing import Any

import numpy as np


def to_float(pixels: Any) -> Any:
  """Returns bytes [...] as float32 in [0, 1]."""
  return pixels.astype("float32") / 255


def to_uint8(pixels: Any) -> np.ndarray:
  """Returns floats [...], clipped to [0, 1], as the nearest bytes; bytes stay as they are.

  Raises ValueError on another dtype, or values that are not finite.
  """
  pixels = np.asarray(pixels)
  if pixels.dtype == np.uint8:
    return pixels
  if pixels.dtype.kind in "iub":
    raise ValueError(f"Pixels are uint8 or float in [0, 1], got dtype {pixels.dtype}.")
  pixels = pixels.astype(np.float32)
  if not np.isfinite(pixels).all():
    raise ValueError("The video has NaN or infinite values: the model that made it has diverged.")
  return np.rint(np.clip(pixels, 0.0, 1.0) * 255.0).astype(np.uint8)


def clip_to_uint8(frames: np.ndarray) -> np.ndarray:
  """Like `to_uint8`, for one clip [T, H, W, 3]; ValueError also on another shape or an empty clip."""
  frames = np.asarray(frames)
  if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
    raise ValueError(
      f"A video has shape [T, H, W, 3] with no empty axis, got {frames.shape}. "
      "Write one clip of a batch at a time."
    )
  return to_uint8(frames)
