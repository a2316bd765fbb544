"""Reads the objects of a clip from its pixels: colors, shapes, motion, which one is in front, and the background.

The reader is independent of the code that renders the corpus. A pixel x is a mixture of the background b and the color
c_k of one of at most two objects,

  x = b + a (c_k - b),    0 <= a <= 1,

of the k that leaves the smallest residual; a is how much of the pixel the object covers. Edges that are antialiased or
blurred are thus at half their height, where blur does not move them.

The colors are found first: a pixel belongs to the entry of the palette that its difference from the background points
at. c_k is the median of its pixels, so a dim object keeps its outline.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from walt_t5x.metrics import shape_reader
from walt_t5x.metrics.caption_accuracy import MIN_CONTRAST, PALETTE

ORDERS = ("behind", "in front of", "left of", "right of", "above", "below")

# Mean of the channels at which a background changes its name, and the largest difference of two channels of one that
# has a name.
BACKGROUNDS = {"dark": (0.0, 0.25), "gray": (0.38, 0.70), "white": (0.80, 1.0)}
MAX_BACKGROUND_CHROMA = 0.15
# Distance in RGB from the median of the border up to which its pixels are background.
MAX_GRADIENT = 0.2
# Cosine between a pixel's difference from the background and that of its palette entry. Two entries have at most 0.87,
# whatever the background.
MIN_HUE_COSINE = 0.90
# Part of the way from the background to the palette entry.
MIN_COVERAGE = 0.5
# Median over frames of the fraction of the frame that an object covers.
MIN_OBJECT_AREA = 0.012
# An object is complete in frames with this fraction of its area, which is the quantile over frames.
COMPLETE_FRACTION = 0.85
AREA_QUANTILE = 0.9
# Fraction of its area that is connected where it is complete.
MIN_PART = 0.75
# Area divided by the area of a disc with the same spread about its center: 0.83 for a triangle, the smallest.
MIN_OBJECT_COMPACTNESS = 0.6
# Displacements as fractions of the frame: an object at rest has at most the first.
MIN_MOTION = 0.08
# Ratio of the displacement along an axis to the deviation from it.
MIN_STRAIGHTNESS = 2.0
# Displacement from the first to the last frame divided by the largest between any two frames.
ONE_WAY_FRACTION = 0.85
# Way back from an edge divided by the way to it.
RETURN_FRACTION = 0.5
# Distance from an edge that counts as touching it.
MAX_EDGE_GAP = 0.10
# Fraction of its area that an object loses behind another, and by how much more than the other.
MIN_HIDDEN = 0.25
MIN_HIDDEN_MARGIN = 0.15
# Distance of two objects of which one is behind the other.
MAX_HIDING_DISTANCE = 0.2
# Distance of two centers along the axis of their order.
MIN_SEPARATION = 0.12


@dataclass(frozen=True, kw_only=True)
class Motion:
  """Motion along one axis.

  Attributes:
    direction: from the first frame to the last, a word; None if it is not along an axis, or turns back.
    displacement: from the first to the last frame, in edges of the frame; at least 0.
    bounce: the edge at which it turns back, a word; None if it does not.
  """

  direction: str | None
  displacement: float
  bounce: str | None


@dataclass(frozen=True, kw_only=True)
class SceneObject:
  """One object.

  Attributes:
    color: of the palette.
    shape: of `shape_reader.SHAPES`; None if it fits none.
    motion: None at rest.
    centers: (x, y) in [0, 1] in each frame, interpolated where it is not complete.
    visible: fraction of its area that is visible in each frame.
  """

  color: str
  shape: str | None
  motion: Motion | None
  centers: Float[np.ndarray, "T 2"]
  visible: Float[np.ndarray, " T"]


@dataclass(frozen=True)
class SceneReading:
  """One or two objects, none if there are more; and one of BACKGROUNDS, None if it is none of them."""

  objects: tuple[SceneObject, ...]
  background: str | None


def read_scene(
  video: Float[np.ndarray, "T H W 3"], *, palette: Mapping[str, Sequence[float]] = PALETTE
) -> SceneReading:
  """Reads a clip, or a still if T is 1, of RGB in [0, 1]."""
  video = np.asarray(video, np.float64)
  plane = _background(video)
  background = plane.mean((0, 1))
  name = _background_name(background)
  difference = video - plane
  colors = _object_colors(difference, background, palette)
  if not 1 <= len(colors) <= 2:
    return SceneReading((), name)
  coverages = _coverages(difference, list(colors.values()))
  objects = (
    _object(color, coverages[..., k, None] * colors[color], coverages[..., k] > 0.5)
    for k, color in enumerate(colors)
  )
  return SceneReading(tuple(found for found in objects if found is not None), name)


def order(first: SceneObject, second: SceneObject) -> str | None:
  """How the first object stands to the second: a word of ORDERS; None if it cannot be read."""
  for one, other, word in ((first, second, "behind"), (second, first, "in front of")):
    index = one.visible.argmin()
    hidden, beyond = 1 - one.visible[index], other.visible.min() - one.visible[index]
    distance = np.linalg.norm(one.centers[index] - other.centers[index])
    if hidden >= MIN_HIDDEN and beyond >= MIN_HIDDEN_MARGIN and distance < MAX_HIDING_DISTANCE:
      return word
  apart = (first.centers - second.centers).mean(0)
  axis = int(abs(apart[1]) > abs(apart[0]))
  moving = first.motion or second.motion
  if moving and moving.direction:
    # What moves along one axis keeps its order along the other.
    axis = int(moving.direction in ("left", "right"))
  if abs(apart[axis]) < MIN_SEPARATION:
    return None
  return (("left of", "right of"), ("above", "below"))[axis][int(apart[axis] > 0)]


def _background(video: Float[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "H W 3"]:
  """A plane, in x and y, through the border of all frames: a gradient is not an object."""
  height, width = video.shape[1:3]
  rim = max(1, min(height, width) // 32)
  border = np.ones((height, width), bool)
  border[rim:-rim, rim:-rim] = False
  y, x = np.indices((height, width)) / max(height, width) - 0.5
  basis = np.stack([np.ones_like(x), x, y], -1)
  pixels = video[:, border]
  like = np.linalg.norm(pixels - np.median(pixels, axis=(0, 1)), axis=-1) < MAX_GRADIENT
  where = np.broadcast_to(basis[border], (len(video), *basis[border].shape))
  plane, *_ = np.linalg.lstsq(where[like], pixels[like])
  return basis @ plane


def _background_name(background: Float[np.ndarray, "3"]) -> str | None:
  if np.ptp(background) > MAX_BACKGROUND_CHROMA:
    return None
  level = background.mean()
  return next((n for n, (low, high) in BACKGROUNDS.items() if low <= level <= high), None)


def _object_colors(
  difference: Float[np.ndarray, "T H W 3"],
  background: Float[np.ndarray, "3"],
  palette: Mapping[str, Sequence[float]],
) -> dict[str, Float[np.ndarray, "3"]]:
  """The colors of the palette that are objects, and their mean difference from the background."""
  entries = np.array([palette[name] for name in palette]) - background
  lengths = np.linalg.norm(entries, axis=-1)
  along = difference @ (entries / np.maximum(lengths, 1e-6)[:, None]).T
  along[..., lengths < MIN_CONTRAST] = -np.inf
  nearest = along.argmax(-1)
  reach = along.max(-1)
  belongs = reach >= MIN_HUE_COSINE * np.linalg.norm(difference, axis=-1)
  belongs &= reach >= MIN_COVERAGE * lengths[nearest]
  found = {}
  for index, name in enumerate(palette):
    mask = belongs & (nearest == index)
    if np.median(mask.mean((1, 2))) >= MIN_OBJECT_AREA:
      found[name] = np.median(difference[mask], axis=0)
  return found


def _coverages(
  difference: Float[np.ndarray, "T H W 3"], colors: Sequence[Float[np.ndarray, "3"]]
) -> Float[np.ndarray, "T H W K"]:
  """How much of a pixel the object covers whose mixture with the background is nearest; 0 for the other."""
  steps = np.array(colors)
  parts = np.clip(difference @ steps.T / (steps**2).sum(-1), 0, 1)
  residuals = np.linalg.norm(difference[..., None, :] - parts[..., None] * steps, axis=-1)
  return np.where(residuals == residuals.min(-1, keepdims=True), parts, 0.0)


def _object(
  color: str,
  frames: Float[np.ndarray, "T H W 3"],
  masks: Bool[np.ndarray, "T H W"],
) -> SceneObject | None:
  """Reads one object; None if it is scattered or not there in the first or the last frame.

  Args:
    color: its name.
    frames: its part of each frame's difference from the background.
    masks: where it covers more than anything else.
  """
  scattered, every = masks.mean((1, 2)), masks
  masks = np.array([_largest_part(mask) for mask in every])
  frames = np.where((every & ~masks)[..., None], 0, frames)
  areas = masks.mean((1, 2))
  area = np.quantile(areas, AREA_QUANTILE)
  complete = np.flatnonzero(areas >= COMPLETE_FRACTION * area)
  if min(areas[0], areas[-1]) < area / 2:
    return None
  if (areas[complete] < MIN_PART * scattered[complete]).any():
    return None
  height, width = masks.shape[1:]
  places, edges = [], []
  for mask in masks[complete]:
    y, x = np.nonzero(mask)
    # For a disc of n pixels the variances of x and y sum to n / (2 pi).
    if len(x) < 2 * np.pi * MIN_OBJECT_COMPACTNESS * (x.var() + y.var()):
      return None
    places.append(((x.mean() + 0.5) / width, (y.mean() + 0.5) / height))
    gaps = x.min() / width, 1 - (x.max() + 1) / width, y.min() / height, 1 - (y.max() + 1) / height
    edges.append(gaps)
  times = np.arange(len(masks))
  centers = np.stack([np.interp(times, complete, axis) for axis in zip(*places)], -1)
  return SceneObject(
    color=color,
    shape=shape_reader.read_shape(list(frames[complete]), list(masks[complete])),
    motion=_motion(np.array(places), np.array(edges)),
    centers=centers,
    visible=np.minimum(1.0, areas / area),
  )


def _largest_part(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
  """The largest connected part. Subsampled chroma leaves thin lines of one color along edges of another."""
  from scipy import ndimage

  labels: Any = ndimage.label(mask)
  parts, count = labels
  if count < 2:
    return mask
  return parts == 1 + np.bincount(parts.ravel())[1:].argmax()


def _motion(places: Float[np.ndarray, "N 2"], gaps: Float[np.ndarray, "N 4"]) -> Motion | None:
  """Motion from the centers in complete frames, and distances from the left, right, top and bottom edge."""
  offsets = places - places[0]
  axis = int(np.ptp(offsets[:, 1]) > np.ptp(offsets[:, 0]))
  along, across = offsets[:, axis], offsets[:, 1 - axis]
  if np.ptp(along) < MIN_MOTION:
    return None
  straight = np.ptp(along) >= MIN_STRAIGHTNESS * np.ptp(across)
  names = (("left", "right"), ("up", "down"))[axis]
  edges = (("left", "right"), ("top", "bottom"))[axis]
  bounce = None
  for side in (0, 1):
    toward = along if side else -along
    turn = int(toward.argmax())
    back = toward[turn] - toward[-1]
    if (
      straight
      and 0 < turn < len(along) - 1
      and toward[turn] >= MIN_MOTION
      and back >= RETURN_FRACTION * toward[turn]
      and gaps[turn, 2 * axis + side] <= MAX_EDGE_GAP
    ):
      bounce = edges[side]
  end = abs(along[-1])
  one_way = end >= ONE_WAY_FRACTION * np.ptp(along)
  return Motion(
    direction=names[int(along[-1] > 0)] if straight and one_way else None,
    displacement=float(end),
    bounce=bounce,
  )
