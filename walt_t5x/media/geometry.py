"""Sizes and crops of frames: each caller's rule for fitting a picture into a resolution."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

# (top, bottom, left, right) of a part of a picture; a crop in fractions of its height and width, a box in pixels.
Crop = tuple[float, float, float, float]
Box = tuple[int, int, int, int]
EVERYTHING: Crop = (0.0, 1.0, 0.0, 1.0)
# Fractions have six digits: of 8192 pixels, they are wrong by at most 0.004.
_ROUNDING = 0.01

EXACT, CROP = "exact", "crop"
FITS = (EXACT, CROP)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
  """Scale of a source so that it covers a resolution, and its center crop.

  `scaled` is (height, width) after scaling, `offset` the (top, left) of the crop in it.
  """

  scaled: tuple[int, int]
  offset: tuple[int, int]
  crop: tuple[int, int, int, int]


def fit(source: tuple[int, int], target: tuple[int, int], *, aspect: float = 1.0) -> Fit:
  """Resize, then center crop: the rule of preprocessing.

  Args:
    source: (height, width) of the upright source.
    target: (height, width) of the output.
    aspect: pixel aspect ratio (width / height) of the source.
  """
  height, width = source
  shown = (float(height), width * aspect)
  scale = max(target[0] / shown[0], target[1] / shown[1])
  scaled = (max(target[0], round(shown[0] * scale)), max(target[1], round(shown[1] * scale)))
  offset = ((scaled[0] - target[0]) // 2, (scaled[1] - target[1]) // 2)
  ratio = (height / scaled[0], width / scaled[1])
  crop = (
    round(offset[0] * ratio[0]),
    round(offset[1] * ratio[1]),
    round(target[0] * ratio[0]),
    round(target[1] * ratio[1]),
  )
  return Fit(scaled=scaled, offset=offset, crop=crop)


def pixels_of(crop: Crop, size: tuple[int, int], *, steps: tuple[int, int] = (1, 1)) -> Box:
  """The pixels of a picture that are inside of a crop, at least one.

  Args:
    crop: in fractions.
    size: (height, width) of the picture.
    steps: edges are at multiples of these, vertically and horizontally, or at the edge of the picture.
  """

  def inside(low: float, high: float, length: int, step: int) -> tuple[int, int]:
    first = math.ceil((low * length - _ROUNDING) / step) * step
    after = math.floor((high * length + _ROUNDING) / step) * step if high < 1 else length
    first = min(first, (length - 1) // step * step)
    return first, max(after, first + 1)

  top, bottom, left, right = crop
  return *inside(top, bottom, size[0], steps[0]), *inside(left, right, size[1], steps[1])


def within(outer: Crop, inner: Crop) -> Crop:
  """A crop of the picture that another crop leaves, as a crop of the picture itself, with six digits."""
  (top, bottom, left, right), (height, width) = outer, (outer[1] - outer[0], outer[3] - outer[2])
  return (
    round(top + inner[0] * height, 6),
    round(bottom - (1 - inner[1]) * height, 6),
    round(left + inner[2] * width, 6),
    round(right - (1 - inner[3]) * width, 6),
  )


def union(boxes: Sequence[tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
  """The bounding box (top, left, height, width) of boxes."""
  top, left = min(box[0] for box in boxes), min(box[1] for box in boxes)
  bottom, right = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
  return top, left, bottom - top, right - left


def fitted(frames: np.ndarray, *, size: tuple[int, int], fit: str, what: str) -> np.ndarray:
  """Center crop, then resize: the rule of evaluation and of conditioning media.

  Args:
    frames: [T, H, W, 3] uint8.
    size: (H, W) of the output.
    fit: "exact" rejects other sizes; "crop" center-crops to the aspect ratio and resizes.
    what: names the frames in errors.

  Raises:
    ValueError: the size differs and `fit` is "exact", or `fit` is unknown.
  """
  height, width = frames.shape[1:3]
  if (height, width) == size:
    return frames
  if fit == EXACT:
    raise ValueError(
      f"{what} is {height}x{width} (height x width), expected {size[0]}x{size[1]}, the last stage's size: resize "
      "it, or set --fit=crop to crop its center"
    )
  if fit != CROP:
    raise ValueError(f"--fit={fit}: expected one of {FITS}")
  scale = min(height / size[0], width / size[1])
  h, w = min(height, round(size[0] * scale)), min(width, round(size[1] * scale))
  top, left = (height - h) // 2, (width - w) // 2
  cut = frames[:, top : top + h, left : left + w]
  return np.stack([resized(frame, size) for frame in cut])


def resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """A frame [H, W, 3] at another (H, W): area averaging if it shrinks, else bicubic."""
  from PIL import Image

  if frame.shape[:2] == size:
    return frame
  smaller = frame.shape[0] >= size[0] and frame.shape[1] >= size[1]
  rule = Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC
  return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), rule))


def upscale(frames: np.ndarray, scale: int) -> np.ndarray:
  """Repeats each pixel `scale` times along height and width, so that small clips stay sharp."""
  if scale < 1:
    raise ValueError(f"got scale={scale}, expected an integer factor of at least 1.")
  return frames if scale == 1 else frames.repeat(scale, axis=1).repeat(scale, axis=2)
