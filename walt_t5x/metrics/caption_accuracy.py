"""Caption accuracy: whether color, shape and direction of a moving shape in a clip match its caption.

The reader is independent of the code that renders the corpus: it uses only the pixels and the
caption.

The saliency of a pixel is its distance from the background, the median of the frame's border:

  s_i = |x_i - median(border)|,     foreground = { i : s_i > max(contrast, s_peak / 2) }

with s_peak the mean of the frame's most salient pixels. The threshold depends on the contrast of the
shape, so the edge of a blurred shape is at half its height, where blur does not move it.

Ambiguous clips count as wrong: no foreground, a foreground that covers most of the frame or is
scattered over it, a shape that vanishes before the last frame, a color without a majority, an outline
that fits a featureless blob best (`shape_reader`), or diagonal motion.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from walt_t5x.metrics import shape_reader
from walt_t5x.metrics.caption_counts import CaptionAccuracy, Verdict, compare, tally

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
# Elements of a caption and their words.
VOCABULARY = {"color": tuple(PALETTE), "shape": shape_reader.SHAPES, "direction": DIRECTIONS}

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
  """What the pixels show.

  Attributes:
    shown: element -> word, or None if it cannot be read.
    displacement: (x right, y down) of the shape in widths and heights; None if it has no first or last place.
  """

  shown: Mapping[str, str | None]
  displacement: tuple[float, float] | None


def parse_caption(
  caption: str, *, vocabulary: Mapping[str, Collection[str]] = VOCABULARY
) -> dict[str, str]:
  """The elements that a caption names, element -> word; not those of which it names none or several words."""
  words = set(re.findall(r"[a-z]+", caption.lower()))
  found = {element: words & set(known) for element, known in vocabulary.items()}
  return {element: some.pop() for element, some in found.items() if len(some) == 1}


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


def _direction(x: float, y: float) -> str | None:
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


def check_pixels(video: Float[np.ndarray, "T H W 3"]) -> None:
  """Raises ValueError for values outside [0, 1] or not finite, or frames smaller than 8 x 8 pixels."""
  if min(video.shape[1:3]) < 8:
    raise ValueError(f"Expected a clip of at least 8x8 pixels, got {video.shape}.")
  if not np.isfinite(video).all() or video.min() < -1e-3 or video.max() > 1 + 1e-3:
    raise ValueError(
      f"Expected pixels in [0, 1], got [{video.min()}, {video.max()}]. "
      "Scale bytes by 1/255 and clip samples."
    )


def read_clip(
  video: Float[np.ndarray, "T H W 3"], *, palette: Mapping[str, Sequence[float]] = PALETTE
) -> Reading:
  """Reads color and shape from all frames, the direction from the first and the last frame of RGB in [0, 1].

  Raises:
    ValueError: as `check_pixels`.
  """
  check_pixels(video)
  found = [foreground(frame) for frame in video.astype(np.float64)]
  frames = [frame - hit[1] for frame, hit in zip(video, found) if hit is not None]
  masks = [hit[0] for hit in found if hit is not None]
  color = shape = direction = displacement = None
  # A shape must be visible in at least half of the frames.
  if 2 * len(frames) >= len(video):
    pixels = [frame[mask] for frame, mask in zip(frames, masks)]
    color = _color(np.concatenate(pixels), palette)
    shape = shape_reader.read_shape(frames, masks)
  first, last = found[0], found[-1]
  if len(video) > 1 and first is not None and last is not None:
    x, y = _centroid(last[0]) - _centroid(first[0])
    displacement = float(x), float(y)
    direction = _direction(*displacement)
  return Reading({"color": color, "shape": shape, "direction": direction}, displacement)


def judge(
  video: Float[np.ndarray, "T H W 3"],
  caption: str,
  *,
  palette: Mapping[str, Sequence[float]] = PALETTE,
) -> Verdict:
  """Compares the reading of a clip [T, H, W, 3] in [0, 1] with its caption; raises ValueError as `read_clip`."""
  named = parse_caption(caption, vocabulary={**VOCABULARY, "color": tuple(palette)})
  return compare(read_clip(video, palette=palette).shown, named)


def score(clips: Iterable[tuple[np.ndarray, str]]) -> CaptionAccuracy:
  """Judges every (video [T, H, W, 3] in [0, 1], caption) and counts.

  Chance is 1/6 for color, 1/3 for shape and 1/4 for direction.
  """
  return tally(judge(video, caption) for video, caption in clips)
