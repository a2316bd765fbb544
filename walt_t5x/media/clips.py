"""What is cut out of media: the clip that is wanted, its geometry, and why media cannot give it."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from walt_t5x.media.rules import Rejected

POSITIONS = ("centre", "beginning", "random")


class MediaError(ValueError):
  """Media that cannot become a record; `reason` is a code, the message explains it."""

  def __init__(self, reason: str, message: str):
    # Both are in `args`, so that the exception can be pickled between processes.
    super().__init__(reason, message)
    self.reason = reason

  def __str__(self) -> str:
    return self.args[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSpec:
  """Which clip to extract from the media.

  Args:
    resolutions: (height, width) pairs; each is center-cropped from the source independently.
    num_frames: 1 + T pixel frames per clip.
    fps: frame rate of the clip.
    position: 'centre', 'beginning' or 'random', for rows without a start or with a window longer than the clip.
    seed: seed of the clip position if `position` is 'random'.
    allow_upscale: whether media smaller than a resolution are upscaled instead of rejected.
    max_bytes: maximum file size.
    max_pixels: maximum frame size, height * width.
    max_seconds: maximum duration of a video, as its header states it.
    max_decoded_frames: maximum number of frames decoded for one clip, a guard against absurd frame rates.
  """

  resolutions: tuple[tuple[int, int], ...]
  num_frames: int
  fps: float
  position: str = "centre"
  seed: int = 0
  allow_upscale: bool = False
  max_bytes: int = 1 << 30
  max_pixels: int = 8192 * 8192
  max_seconds: float = 6 * 3600.0
  max_decoded_frames: int = 20_000

  def __post_init__(self):
    if self.position not in POSITIONS:
      raise ValueError(f"position: got {self.position!r}, expected one of {POSITIONS}")
    if self.num_frames < 1 or self.fps <= 0 or not self.resolutions:
      raise ValueError(
        f"expected at least one frame, a frame rate above 0 and a resolution, got {self}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """Decoded pixels of one row.

  `frames` maps (height, width) to uint8 (frames, height, width, 3). `crop` is top, left, height, width in pixels of
  the upright source, the bounding box of the crops of all resolutions. `motion` is the mean absolute luma change
  between adjacent frames, in [0, 1].
  """

  frames: Mapping[tuple[int, int], np.ndarray]
  fps: float
  start_seconds: float
  crop: tuple[int, int, int, int]
  motion: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
  """Scale of a source so that it covers a resolution, and its center crop.

  `scaled` is (height, width) after scaling, `offset` the (top, left) of the crop in it.
  """

  scaled: tuple[int, int]
  offset: tuple[int, int]
  crop: tuple[int, int, int, int]


def fit(source: tuple[int, int], target: tuple[int, int], *, aspect: float = 1.0) -> Fit:
  """Geometry of resize and center crop.

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


def check_limits(source: tuple[int, int], spec: ClipSpec) -> None:
  """Reject frames over the pixel limit, in any orientation.

  Raises:
    MediaError: 'too_large' or 'corrupt'.
  """
  height, width = source
  if height < 1 or width < 1:
    raise MediaError("corrupt", f"the media states a frame of {height}x{width} pixels")
  if height * width > spec.max_pixels:
    raise MediaError(
      "too_large",
      f"frames of {height}x{width} pixels, limit {spec.max_pixels} (--max_pixels)",
    )


def check_size(source: tuple[int, int], spec: ClipSpec, *, aspect: float = 1.0) -> None:
  """Reject frames over the pixel limit, and frames that would need upscaling.

  Args:
    source: (height, width) of the upright source.
    spec: resolutions and limits.
    aspect: pixel aspect ratio (width / height); the displayed width is checked.

  Raises:
    MediaError: 'too_large' or 'corrupt'.
    Rejected: 'too_small'.
  """
  check_limits(source, spec)
  height, width = source
  shown = (height, round(width * aspect))
  for wanted in spec.resolutions:
    if not spec.allow_upscale and (shown[0] < wanted[0] or shown[1] < wanted[1]):
      raise Rejected(
        "too_small",
        f"frames of {shown[0]}x{shown[1]} pixels, resolution {wanted[0]}x{wanted[1]} (--allow_upscale accepts them)",
      )


def union(boxes: Sequence[tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
  """The bounding box (top, left, height, width) of boxes."""
  top, left = min(box[0] for box in boxes), min(box[1] for box in boxes)
  bottom, right = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
  return top, left, bottom - top, right - left
