"""What is cut out of media: the clip that is wanted, where the clips of a video begin, and the clip that was cut."""

import dataclasses
import itertools
import math
from collections.abc import Mapping

import numpy as np

from walt_t5x.media.reading import check_pixels
from walt_t5x.media.rules import Rejected

POSITIONS = ("centre", "beginning", "random")
_GOLDEN_RATIO = (1 + math.sqrt(5)) / 2

# Marks fields that older caches do not record: at their default they are left out of the recorded settings.
ADDED = {"added": True}


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
    deinterlace: whether frames marked as interlaced are deinterlaced instead of rejected.
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
  deinterlace: bool = dataclasses.field(default=False, metadata=ADDED)

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


def start_of_clip(number: int, *, spare: float, fps: float, first: float) -> float:
  """Where clip `number` of a video begins, in seconds after the earliest possible start.

  The starts are 1 / fps apart, so that no two clips have the same frames. Each is the next one of a Kronecker sequence
  with the golden ratio that is not taken yet, which spreads the first n clips over the video for every n.

  Args:
    number: 0, 1, ...; the starts of the first clips do not depend on how many there are.
    spare: seconds between the earliest and the latest start.
    fps: frame rate of the clips.
    first: start of clip 0, 0 to `spare`.

  Raises:
    Rejected: 'no_more_clips', if the video has fewer distinct clips.
  """
  slot, phase = divmod(first * fps, 1.0)
  # Times are rounded to microseconds: the latest start may be missed by one of them.
  slots = max(int(slot), math.floor(spare * fps - phase + 1e-4)) + 1
  if number >= slots:
    raise Rejected("no_more_clips", f"clip {number + 1}, but only {slots} differ at {fps:g} fps")
  sequence = ((slot + 0.5) / slots + step * _GOLDEN_RATIO for step in itertools.count())
  taken: dict[int, None] = {}
  while len(taken) <= number:
    taken[int(next(sequence) % 1 * slots)] = None
  return (list(taken)[number] + phase) / fps


def check_size(source: tuple[int, int], spec: ClipSpec, *, aspect: float = 1.0) -> None:
  """Raises MediaError for frames over the pixel limit, and Rejected ('too_small') for those that need upscaling.

  Args:
    source: (height, width) of the upright source.
    spec: resolutions and limits.
    aspect: pixel aspect ratio (width / height); the displayed width is checked.
  """
  check_pixels(source, spec.max_pixels)
  height, width = source
  shown = (height, round(width * aspect))
  for wanted in spec.resolutions:
    if not spec.allow_upscale and (shown[0] < wanted[0] or shown[1] < wanted[1]):
      raise Rejected(
        "too_small",
        f"frames of {shown[0]}x{shown[1]} pixels, resolution {wanted[0]}x{wanted[1]} (--allow_upscale accepts them)",
      )
