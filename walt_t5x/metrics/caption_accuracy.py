"""Caption accuracy: whether color and direction of a moving shape in a clip match its caption.

The reader is independent of the code that renders the corpus: it uses only the pixels and the
caption.

The saliency of a pixel is its distance from the background, the median of the frame's border:

  s_i = |x_i - median(border)|,     foreground = { i : s_i > max(contrast, s_peak / 2) }

with s_peak the mean of the frame's most salient pixels. The threshold depends on the contrast of the
shape, so the edge of a blurred shape is at half its height, where blur does not move it.

Ambiguous clips count as wrong: no foreground, a foreground that covers most of the frame or is
scattered over it, a shape that vanishes before the last frame, a color without a majority, or
diagonal motion.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

# Hues of the six color words, as RGB in [0, 1]. They are compared by angle, so a dim or blurred
# shape keeps its color.
PALETTE: dict[str, tuple[float, float, float]] = {
  "red": (0.9, 0.15, 0.15),
  "green": (0.15, 0.8, 0.2),
  "blue": (0.2, 0.3, 0.95),
  "yellow": (0.95, 0.85, 0.15),
  "magenta": (0.85, 0.2, 0.8),
  "cyan": (0.15, 0.8, 0.85),
}
DIRECTIONS = ("left", "right", "up", "down")

# Saliency is a distance in RGB, at most sqrt(3). The colors of the corpus are 0.7 to 1.2 from their
# background.
MIN_CONTRAST = 0.15
# The most salient 1% of the pixels define a frame's peak: fewer than any shape covers, but more than
# a few outliers.
PEAK_FRACTION = 0.01
# Fraction of the frame that a shape may cover.
AREA_RANGE = (0.01, 0.40)
# Area divided by the area of a disc with the same spread about its center: 1 for a disc, 0.95 for a
# square, 0.83 for a triangle.
MIN_COMPACTNESS = 0.5
# Cosine between a pixel's color minus the background and a palette entry; for gray and its nearest
# entry it is 0.87.
MIN_COSINE = 0.95
# Displacement as a fraction of the frame, and the minimum ratio of the larger axis to the other.
MIN_DISPLACEMENT = 0.10
MIN_DOMINANCE = 1.5


@dataclass(frozen=True)
class Reading:
  """What the pixels show, None if it cannot be read; displacement (x right, y down) in widths and heights."""

  color: str | None
  direction: str | None
  displacement: tuple[float, float] | None


@dataclass(frozen=True)
class Verdict:
  """Comparison of one clip with its caption; None for a property that the caption does not name."""

  reading: Reading
  color_right: bool | None
  direction_right: bool | None


@dataclass(frozen=True, kw_only=True)
class CaptionAccuracy:
  """Counts over a set of clips. `+` merges the counts of disjoint sets."""

  clips: int = 0
  color_right: int = 0
  color_total: int = 0
  direction_right: int = 0
  direction_total: int = 0
  both_right: int = 0
  both_total: int = 0
  unreadable: int = 0

  @property
  def color_accuracy(self) -> float:
    """Fraction of captions with a color whose clip shows it, in [0, 1]; NaN without such captions."""
    return _share(self.color_right, self.color_total)

  @property
  def direction_accuracy(self) -> float:
    """Fraction of captions with a direction whose clip moves that way; NaN without such captions."""
    return _share(self.direction_right, self.direction_total)

  @property
  def both_accuracy(self) -> float:
    """Fraction of captions with both whose clip matches in both; NaN without such captions."""
    return _share(self.both_right, self.both_total)

  def __add__(self, other: "CaptionAccuracy") -> "CaptionAccuracy":
    names = self.__dataclass_fields__
    return CaptionAccuracy(**{name: getattr(self, name) + getattr(other, name) for name in names})

  def as_dict(self) -> dict[str, float]:
    """Flat scalars for a metric writer or a JSON report."""
    shares = ("color_accuracy", "direction_accuracy", "both_accuracy")
    names = (*self.__dataclass_fields__, *shares)
    return {f"caption_accuracy/{name}": float(getattr(self, name)) for name in names}

  def __str__(self) -> str:
    lines = [
      f"caption accuracy over {self.clips} clips ({self.unreadable} without a readable color)"
    ]
    for name in ("color", "direction", "both"):
      right, total = getattr(self, f"{name}_right"), getattr(self, f"{name}_total")
      if total:
        lines.append(f"  {name:<10} {right:>5} of {total:<5} {right / total:7.1%}")
    return "\n".join(lines)


def _share(right: int, total: int) -> float:
  return right / total if total else float("nan")


def parse_caption(
  caption: str, *, palette: Mapping[str, object] = PALETTE
) -> tuple[str | None, str | None]:
  """(color, direction) named by a caption; None if the caption names none or several."""
  words = re.findall(r"[a-z]+", caption.lower())

  def only(vocabulary: Iterable[str]) -> str | None:
    found = {word for word in words if word in vocabulary}
    return found.pop() if len(found) == 1 else None

  return only(palette), only(DIRECTIONS)


def foreground(
  frame: Float[np.ndarray, "H W 3"],
) -> tuple[Bool[np.ndarray, "H W"], Float[np.ndarray, "3"]] | None:
  """Mask of the shape and color of the background of a frame in [0, 1]; None if there is not a single shape."""
  height, width = frame.shape[:2]
  rim = max(1, min(height, width) // 32)
  inner = np.zeros((height, width), bool)
  inner[rim:-rim, rim:-rim] = True
  background = np.median(frame[~inner], axis=0)
  saliency = np.linalg.norm(frame - background, axis=-1)
  num_peak = max(1, round(PEAK_FRACTION * height * width))
  peak = np.partition(saliency.ravel(), -num_peak)[-num_peak:].mean()
  mask = saliency > max(MIN_CONTRAST, peak / 2)
  area = mask.mean()
  if not AREA_RANGE[0] <= area <= AREA_RANGE[1]:
    return None
  # For a disc of n pixels the variances of x and y sum to n / (2 pi).
  y, x = np.nonzero(mask)
  spread = x.var() + y.var()
  if len(x) < 2 * np.pi * MIN_COMPACTNESS * spread:
    return None
  return mask, background


def _centroid(mask: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "2"]:
  y, x = np.nonzero(mask)
  return (np.array([x.mean(), y.mean()]) + 0.5) / np.array([mask.shape[1], mask.shape[0]])


def _direction(displacement: Float[np.ndarray, "2"]) -> str | None:
  x, y = displacement
  larger, smaller = max(abs(x), abs(y)), min(abs(x), abs(y))
  if larger < MIN_DISPLACEMENT or larger < MIN_DOMINANCE * smaller:
    return None
  if abs(x) > abs(y):
    return "right" if x > 0 else "left"
  return "down" if y > 0 else "up"


def _color(colors: Float[np.ndarray, "N 3"], palette: Mapping[str, Sequence[float]]) -> str | None:
  """The palette entry nearest by angle to the majority of pixels (each minus its background), or None."""
  names = list(palette)
  entries = np.array([palette[name] for name in names], np.float64)
  entries /= np.linalg.norm(entries, axis=-1, keepdims=True)
  lengths = np.linalg.norm(colors, axis=-1, keepdims=True)
  cosines = (colors / np.maximum(lengths, 1e-6)) @ entries.T
  nearest, near = cosines.argmax(-1), cosines.max(-1) >= MIN_COSINE
  votes = np.bincount(nearest[near], minlength=len(names))
  winner = int(votes.argmax())
  return names[winner] if votes[winner] > len(colors) / 2 else None


def read_clip(
  video: Float[np.ndarray, "T H W 3"], *, palette: Mapping[str, Sequence[float]] = PALETTE
) -> Reading:
  """Reads the color from all frames and the direction from the first and the last frame of RGB in [0, 1].

  Raises:
    ValueError: for values outside [0, 1] or not finite, or frames smaller than 8 x 8 pixels.
  """
  if min(video.shape[1:3]) < 8:
    raise ValueError(f"Expected a clip of at least 8x8 pixels, got {video.shape}.")
  if not np.isfinite(video).all() or video.min() < -1e-3 or video.max() > 1 + 1e-3:
    raise ValueError(
      f"Expected pixels in [0, 1], got [{video.min()}, {video.max()}]. "
      "Scale bytes by 1/255 and clip samples."
    )
  found = [foreground(frame) for frame in video.astype(np.float64)]
  pixels = [frame[hit[0]] - hit[1] for frame, hit in zip(video, found) if hit is not None]
  # A shape must be visible in at least half of the frames.
  color = _color(np.concatenate(pixels), palette) if 2 * len(pixels) >= len(video) else None
  first, last = found[0], found[-1]
  if len(video) < 2 or first is None or last is None:
    return Reading(color, None, None)
  displacement = _centroid(last[0]) - _centroid(first[0])
  return Reading(color, _direction(displacement), (float(displacement[0]), float(displacement[1])))


def judge(
  video: Float[np.ndarray, "T H W 3"],
  caption: str,
  *,
  palette: Mapping[str, Sequence[float]] = PALETTE,
) -> Verdict:
  """Compares the reading of a clip [T, H, W, 3] in [0, 1] with its caption; raises ValueError as `read_clip`."""
  color, direction = parse_caption(caption, palette=palette)
  reading = read_clip(video, palette=palette)
  return Verdict(
    reading,
    None if color is None else reading.color == color,
    None if direction is None else reading.direction == direction,
  )


def score(clips: Iterable[tuple[np.ndarray, str]]) -> CaptionAccuracy:
  """Judges every (video [T, H, W, 3] in [0, 1], caption) and counts. Chance is 1/6 for color and 1/4 for direction."""
  return tally(judge(video, caption) for video, caption in clips)


def tally(verdicts: Iterable[Verdict]) -> CaptionAccuracy:
  """Counts verdicts returned by `judge`."""
  verdicts = list(verdicts)
  color = [v.color_right for v in verdicts if v.color_right is not None]
  direction = [v.direction_right for v in verdicts if v.direction_right is not None]
  pairs = [(v.color_right, v.direction_right) for v in verdicts]
  both = [all(pair) for pair in pairs if None not in pair]
  return CaptionAccuracy(
    clips=len(verdicts),
    color_right=sum(color),
    color_total=len(color),
    direction_right=sum(direction),
    direction_total=len(direction),
    both_right=sum(both),
    both_total=len(both),
    unreadable=sum(v.reading.color is None for v in verdicts),
  )
