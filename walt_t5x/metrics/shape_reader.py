"""Reads which shape a clip shows: an axis-aligned square, a circle, or a triangle with its apex at the top.

The reader is independent of the code that renders the corpus: it draws its own templates, antialiased
and at several blurs. With b the background, a the direction of the shape's mean color (minus b) and
peak the mean of the most salient foreground pixels, the coverage of a pixel is

  c_i = clip((x_i - b) . a / peak, 0, 1).

Coverage is resampled so that its centroid is at the origin and its area is 1, on a grid of
GRID x GRID points. Position and size thus need no search. Its overlap with a template t is the soft
intersection over union

  overlap(c, t) = sum_i min(c_i, t_i) / sum_i max(c_i, t_i),

maximal over the blurs of a shape and averaged over frames. The shape with the largest overlap wins.
Gaussian blobs of several aspect ratios compete with the shapes: a clip that they fit best has no
readable shape, and neither has one whose best overlap is below MIN_OVERLAP.
"""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

SHAPES = ("square", "circle", "triangle")

# Points of the resampled grid, and half its edge in units of the square root of the area; a triangle
# reaches 0.94 from its centroid.
GRID = 24
GRID_REACH = 1.2
# Standard deviation of a template's blur, as a fraction of its extent.
BLURS = (0.0, 0.06, 0.12, 0.18, 0.24)
# Height divided by width, of the blobs that no shape may lose to.
BLOB_ASPECTS = (0.7, 0.85, 1.0, 1.17, 1.4)
# Part of the foreground, its most salient pixels, whose mean is the peak.
PLATEAU_FRACTION = 1 / 3
# Coverage below the first value does not count to area and centroid, above the second it counts fully.
EDGE_RANGE = (0.25, 0.75)
# Overlaps are 0.9 for clean clips and 0.75 to 0.85 for reconstructions; bars, rings, stars and
# triangles that point elsewhere are below 0.7.
MIN_OVERLAP = 0.7

# Edge in pixels at which templates are drawn, in a frame three times as large.
TEMPLATE_EXTENT = 64


def read_shape(
  frames: Sequence[Float[np.ndarray, "H W 3"]], masks: Sequence[Bool[np.ndarray, "H W"]]
) -> str | None:
  """The shape of one object, or None if none fits.

  Args:
    frames: frames in which it is visible, each minus its background.
    masks: foreground of each frame.
  """
  if not frames:
    return None
  axis = np.concatenate([frame[mask] for frame, mask in zip(frames, masks)]).mean(0)
  axis /= max(float(np.linalg.norm(axis)), 1e-6)
  found = [_resampled(frame @ axis, mask) for frame, mask in zip(frames, masks)]
  patches = np.array([patch for patch in found if patch is not None], np.float32)
  if 2 * len(patches) < len(frames):
    return None
  names, templates = _templates()
  overlaps = np.array([_overlaps(patch, templates) for patch in patches])
  by_name = {
    name: overlaps[:, [n == name for n in names]].max(1).mean() for name in dict.fromkeys(names)
  }
  best = max(by_name, key=lambda name: by_name[name])
  return best if best in SHAPES and by_name[best] >= MIN_OVERLAP else None


def _resampled(
  saliency: Float[np.ndarray, "H W"], mask: Bool[np.ndarray, "H W"]
) -> Float[np.ndarray, "N N"] | None:
  """Coverage with its centroid at the origin and area 1, on the grid; None if it is nowhere positive."""
  values = np.sort(saliency[mask])
  peak = values[-max(1, round(PLATEAU_FRACTION * len(values))) :].mean()
  if peak <= 0:
    return None
  coverage = np.clip(saliency / peak, 0, 1)
  low, high = EDGE_RANGE
  weights = np.clip((coverage - low) / (high - low), 0, 1)
  area = weights.sum()
  steps = ((np.arange(GRID) + 0.5) / GRID * 2 - 1) * GRID_REACH * np.sqrt(area)
  height, width = coverage.shape
  rows = steps + weights.sum(1) @ np.arange(height) / area
  columns = steps + weights.sum(0) @ np.arange(width) / area
  return _linear(rows, height) @ coverage @ _linear(columns, width).T


def _linear(at: Float[np.ndarray, " N"], size: int) -> Float[np.ndarray, "N size"]:
  """Matrix that interpolates linearly at equidistant positions, and averages where they are over a pixel apart."""
  width = max(1.0, at[1] - at[0])
  return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size)) / width) / width


def _overlaps(
  patch: Float[np.ndarray, "N N"], templates: Float[np.ndarray, "K N N"]
) -> Float[np.ndarray, " K"]:
  """Soft intersection over union of a patch with each template."""
  shared = np.minimum(patch, templates).sum((1, 2))
  return shared / (patch.sum() + templates.sum((1, 2)) - shared)


@functools.cache
def _templates() -> tuple[tuple[str, ...], Float[np.ndarray, "K N N"]]:
  """Names and resampled coverage of all templates: shapes, and featureless blobs, named "blob"."""
  from scipy import ndimage

  at = np.linspace(-3, 3, 3 * TEMPLATE_EXTENT, endpoint=False) + 1 / TEMPLATE_EXTENT
  x, y = at[None, :], at[:, None]  # the bounding box of a shape is [-1, 1] x [-1, 1]
  drawn = {
    "square": np.maximum(abs(x), abs(y)) <= 1,
    "circle": x**2 + y**2 <= 1,
    "triangle": (abs(y) <= 1) & (2 * abs(x) <= y + 1),
  }
  images = [
    (name, ndimage.gaussian_filter(drawn[name].astype(np.float64), blur * TEMPLATE_EXTENT))
    for name in SHAPES
    for blur in BLURS
  ]
  images += [("blob", np.exp(-4 * (x**2 * aspect + y**2 / aspect))) for aspect in BLOB_ASPECTS]
  names, patches = zip(*((name, _resampled(t, t > t.max() / 2)) for name, t in images))
  return names, np.array(patches, np.float32)
