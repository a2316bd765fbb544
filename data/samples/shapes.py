"""Renders the synthetic corpus: one colored shape on a dark background, still or at constant speed.

Lengths are fractions of the frame's edge, so one scene can be rendered at any resolution. Edges are
antialiased by supersampling, so motion by a fraction of a pixel per frame is rendered exactly.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Distinguishable after 4:2:0 chroma subsampling and a small autoencoder, not fully saturated.
COLORS: dict[str, tuple[int, int, int]] = {
  "red": (230, 40, 40),
  "green": (40, 200, 60),
  "blue": (50, 80, 235),
  "yellow": (235, 215, 45),
  "magenta": (220, 50, 210),
  "cyan": (45, 210, 220),
}
SHAPES = ("square", "circle", "triangle")
# Unit steps (x, y); y grows downwards.
DIRECTIONS: dict[str, tuple[int, int]] = {
  "left": (-1, 0),
  "right": (1, 0),
  "up": (0, -1),
  "down": (0, 1),
}

EXTENT_RANGE = (0.42, 0.52)
TRAVEL_RANGE = (0.34, 0.44)
BACKGROUND_RANGE = (0.03, 0.10)
MARGIN = 0.02
SUPERSAMPLING = 4


@dataclass(frozen=True, kw_only=True)
class Scene:
  """One shape and its path. A position is the center of its bounding box, (x, y) in [0, 1]."""

  color: str
  shape: str
  direction: str | None
  extent: float
  start: tuple[float, float]
  travel: float
  background: float

  @property
  def caption(self) -> str:
    """ "a red square moves right", or "a red square" for a still."""
    return f"a {self.color} {self.shape}" + (f" moves {self.direction}" if self.direction else "")

  @property
  def label(self) -> int:
    """Class in [0, 72), color major, then shape, then direction; -1 for a still."""
    if self.direction is None:
      return -1
    color, shape = tuple(COLORS).index(self.color), SHAPES.index(self.shape)
    return (color * len(SHAPES) + shape) * len(DIRECTIONS) + tuple(DIRECTIONS).index(self.direction)


def sample_scene(
  rng: np.random.Generator, *, color: str, shape: str, direction: str | None
) -> Scene:
  """Samples size, background and path so that the shape stays entirely inside the frame.

  The start is uniform over the frame across the direction, and over all positions that leave room
  for the travel along it, so the first frame reveals the direction no more than geometry requires.
  """
  extent = rng.uniform(*EXTENT_RANGE)
  travel = rng.uniform(*TRAVEL_RANGE) if direction else 0.0
  low, high = extent / 2 + MARGIN, 1 - extent / 2 - MARGIN
  travel = min(travel, high - low)
  x, y = rng.uniform(low, high, size=2)
  if direction:
    step_x, step_y = DIRECTIONS[direction]
    along = rng.uniform(low, high - travel)
    along = along if step_x + step_y > 0 else 1 - along
    x, y = (along, y) if step_x else (x, along)
  return Scene(
    color=color,
    shape=shape,
    direction=direction,
    extent=float(extent),
    start=(float(x), float(y)),
    travel=float(travel),
    background=float(rng.uniform(*BACKGROUND_RANGE)),
  )


def _covers(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Whether points are in a shape whose bounding box is [-1, 1] x [-1, 1]. x: [1, W], y: [H, 1]."""
  if shape == "square":
    return (np.abs(x) <= 1) & (np.abs(y) <= 1)
  if shape == "circle":
    return x**2 + y**2 <= 1
  if shape == "triangle":
    return (np.abs(y) <= 1) & (np.abs(x) <= (y + 1) / 2)
  raise ValueError(f"Unknown shape {shape!r}; expected one of {SHAPES}.")


def draw(
  canvas: np.ndarray,
  *,
  color: str,
  shape: str,
  center: tuple[float, float],
  extent: float,
) -> None:
  """Draws an antialiased shape over a square canvas, in place.

  Args:
    canvas: [size, size, 3] float32, RGB in [0, 255].
    color, shape: of COLORS and SHAPES.
    center: (x, y) of the bounding box, in edges of the frame.
    extent: edge of the bounding box, in edges of the frame.
  """
  size = len(canvas)
  fine = size * SUPERSAMPLING
  axes, windows = [], []
  for middle in center:
    # Only the pixels that the bounding box touches.
    first, last = ((middle + side * extent / 2) * size for side in (-1, 1))
    first, last = np.clip((int(first) - 1, int(last) + 2), 0, size)
    samples = np.arange(first * SUPERSAMPLING, last * SUPERSAMPLING)
    grid = ((samples + 0.5) / fine).astype(np.float32)
    axes.append((grid - middle) / (extent / 2))
    windows.append(slice(first, last))
  x, y = axes
  columns, rows = windows
  inside = _covers(shape, x[None, :], y[:, None])
  window = canvas[rows, columns]
  blocks = inside.reshape(window.shape[0], SUPERSAMPLING, window.shape[1], SUPERSAMPLING)
  coverage = blocks.mean(axis=(1, 3), dtype=np.float32)[..., None]
  window[:] = coverage * np.asarray(COLORS[color], np.float32) + (1 - coverage) * window


def render(scene: Scene, *, num_frames: int, size: int) -> np.ndarray:
  """Renders a scene.

  Args:
    scene: what to render. At frame i the shape has moved by i / (num_frames - 1) of the travel.
    num_frames: T; 1 for a still.
    size: H = W in pixels.

  Returns:
    [T, size, size, 3] uint8 RGB.
  """
  if num_frames < 1 or size < 8:
    raise ValueError(
      f"num_frames must be at least 1 and size at least 8, got {num_frames=}, {size=}."
    )
  if scene.direction is not None and num_frames < 2:
    raise ValueError(f"A moving scene needs at least 2 frames, got {num_frames=}.")
  step_x, step_y = DIRECTIONS[scene.direction] if scene.direction else (0, 0)
  frames = np.empty((num_frames, size, size, 3), np.uint8)
  for index in range(num_frames):
    gone = scene.travel * index / max(1, num_frames - 1)
    canvas = np.full((size, size, 3), 255 * scene.background, np.float32)
    center = scene.start[0] + step_x * gone, scene.start[1] + step_y * gone
    draw(canvas, color=scene.color, shape=scene.shape, center=center, extent=scene.extent)
    frames[index] = np.rint(canvas)
  return frames


def held_out(color: str, shape: str, direction: str | None) -> bool:
  """Whether the combination is one of the 12 of 72 that are in no training row; a still is not.

  Each color is held out with 2 shapes and 2 directions, and each (shape, direction) with one color, so every word and
  every pair of words still occurs in training.
  """
  if direction is None:
    return False
  turn = len(DIRECTIONS) // 2 * SHAPES.index(shape) + tuple(DIRECTIONS).index(direction)
  return tuple(COLORS).index(color) == turn % len(COLORS)


def balanced_vocabulary(
  rng: np.random.Generator, count: int, *, moving: bool, training: bool = False
) -> Iterator[tuple[str, str, str | None]]:
  """Yields (color, shape, direction) so that any prefix is balanced.

  Every 6 consecutive items have each color once, every 24 each (color, direction) once, every 72
  each combination once. Stills have no direction: every 18 have each (color, shape) once.

  Args:
    rng: orders the words.
    count: number of items.
    moving: whether items have a direction.
    training: leave out the held-out combinations; every 60 then have each other combination once.
  """
  colors = rng.permutation(list(COLORS))
  shapes = rng.permutation(SHAPES)
  directions = rng.permutation(list(DIRECTIONS)) if moving else [None]
  turns = len(directions)

  def combinations() -> Iterator[tuple[str, str, str | None]]:
    for index in itertools.count():
      color = index % len(colors)
      turn = index // len(colors)
      direction = (color + turn) % turns
      shape = (color // 2 + direction + turn // turns) % len(shapes)
      chosen = directions[direction]
      yield str(colors[color]), str(shapes[shape]), None if chosen is None else str(chosen)

  allowed = (words for words in combinations() if not (training and held_out(*words)))
  return itertools.islice(allowed, count)
