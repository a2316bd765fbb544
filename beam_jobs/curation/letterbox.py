"""Crops of clips without the black bars at their edges, unless what is black may be part of a dark scene.

Bars are in opposite pairs: black in every sampled frame, equally high (or wide), and with a straight edge, along which
the picture is not black. A night scene with a lamp has no such edges.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from beam_jobs.curation.scores import lit
from walt_t5x.media.geometry import EVERYTHING, Crop, within

# Lines of sampled frames by which two bars may differ: their edges are rounded.
_UNEVEN = 2
# Lines in which less than a straight edge may be lit, next to it.
_SPILLED = 2
# Share of the height or width: thinner bars are left, and what leaves less than half of it is a dark scene.
_THINNEST = 0.01
_SMALLEST = 0.5
# Share of a line at the edge of the picture that is not black, in the frame in which it is largest.
_STRAIGHT = 0.5
# Share of the height or width by which something lit may be outside of a dark shot's crop.
_OUTSIDE = 0.02


class Letterbox(NamedTuple):
  """What a clip shows of its picture.

  Attributes:
    lit: crop to what is not black in all frames.
    picture: crop to what is between bars.
  """

  lit: Crop = EVERYTHING
  picture: Crop = EVERYTHING


def look(frames: np.ndarray) -> Letterbox:
  """Finds bars in the sampled frames of a clip, uint8 [T, H, W, 3]."""
  shown = lit(frames)
  (top, bottom), (left, right) = (_lit_lines(np.any(shown, (0, axis))) for axis in (2, 1))
  inside = shown[:, top:bottom, left:right]
  if not inside.size:
    return Letterbox()
  rows = _between_bars(shown[:, :, left:right], top, bottom)
  columns = _between_bars(shown[:, top:bottom].swapaxes(1, 2), left, right)
  height, width = shown.shape[1:]
  return Letterbox(
    _crop(top / height, bottom / height, left / width, right / width), _crop(*rows, *columns)
  )


def _crop(*edges: float) -> Crop:
  top, bottom, left, right = (round(edge, 6) for edge in edges)
  return top, bottom, left, right


def _lit_lines(shown: np.ndarray) -> tuple[int, int]:
  """(first, end) of lines that are not black; the outermost, which may show the edge of a bar, are left out."""
  found = np.flatnonzero(shown)
  if not len(found):
    return 0, 0
  first, end = int(found[0]), int(found[-1]) + 1
  return first + (first > 0), end - (end < len(shown))


def _between_bars(shown: np.ndarray, first: int, end: int) -> tuple[float, float]:
  """What is between two bars, as fractions of the lines; all of them without such bars.

  Args:
    shown: which pixels are lit, [T, lines, ...].
    first, end: of the lines that are lit.
  """
  straight, length = shown.mean(2).max(0) >= _STRAIGHT, shown.shape[1]
  bars = first - 1, length - end - 1
  # Coding spills parts of the picture into the bars.
  starts = [line for line in range(first, first + _SPILLED + 1) if straight[line : line + 1].any()]
  ends = [line for line in range(end, end - _SPILLED - 1, -1) if straight[line - 1 : line].any()]
  if starts and ends and min(bars) >= _THINNEST * length:
    uneven = abs(starts[0] - (length - ends[0]))
    if uneven <= _UNEVEN and ends[0] - starts[0] >= _SMALLEST * length:
      return starts[0] / length, ends[0] / length
  return 0.0, 1.0


def crops_of(segments: Sequence[Any], outer: Crop | None, *, keep_bars: bool) -> list[Crop | None]:
  """The crop of each segment of a video, or None for all of its picture.

  A segment that is too dark to show where its picture ends has the crop of most seconds of the video, if nothing that
  is lit is outside of it.

  Args:
    segments: `videos.Scored`.
    outer: crop of the video, in which bars were looked for.
    keep_bars: whether it is that of all segments.
  """
  if keep_bars:
    return [outer] * len(segments)
  seen = [Letterbox(*map(tuple, segment.seen)) for segment in segments]
  seconds = Counter[Crop]()
  for segment, one in zip(segments, seen, strict=True):
    if one.picture != EVERYTHING:
      seconds[one.picture] += segment.end - segment.start
  common = max(seconds, key=lambda crop: (seconds[crop], crop), default=EVERYTHING)
  found = []
  for one in seen:
    crop = one.picture
    if crop == EVERYTHING and _is_in(one.lit, common):
      crop = common
    found.append(outer if crop == EVERYTHING else within(outer or EVERYTHING, crop))
  return found


def _is_in(inner: Crop, outer: Crop) -> bool:
  signs = (1, -1, 1, -1)
  return all((o - i) * sign <= _OUTSIDE for i, o, sign in zip(inner, outer, signs, strict=True))
