"""Renderer: areas and centroids in closed form, straight motion, balance of the vocabulary."""

import itertools
from collections import Counter

import numpy as np
import pytest

from data.samples import shapes


def _scene(**changes):
  fields = dict(
    color="red",
    shape="square",
    direction="right",
    extent=0.3,
    start=(0.3, 0.55),
    travel=0.4,
    background=0.05,
  )
  return shapes.Scene(**(fields | changes))


def _coverage(scene: shapes.Scene, frames: np.ndarray) -> np.ndarray:
  """How much of each pixel the shape covers, solved back from the brightest channel."""
  channel = int(np.argmax(shapes.COLORS[scene.color]))
  low, high = np.rint(255 * scene.background), shapes.COLORS[scene.color][channel]
  return (frames[..., channel].astype(np.float64) - low) / (high - low)


def _centroids(scene: shapes.Scene, frames: np.ndarray) -> np.ndarray:
  weight = _coverage(scene, frames)
  grid = (np.arange(frames.shape[1]) + 0.5) / frames.shape[1]
  total = weight.sum((1, 2))
  x = (weight * grid[None, None, :]).sum((1, 2)) / total
  y = (weight * grid[None, :, None]).sum((1, 2)) / total
  return np.stack([x, y], axis=-1)


@pytest.mark.parametrize(
  ("shape", "share"), [("square", 1.0), ("circle", np.pi / 4), ("triangle", 0.5)]
)
def test_area_is_the_closed_form(shape, share):
  scene = _scene(shape=shape)
  area = _coverage(scene, shapes.render(scene, num_frames=2, size=64)).mean((1, 2))
  np.testing.assert_allclose(area, share * scene.extent**2, rtol=0.04)


def test_antialiasing_equals_the_exact_overlap_of_pixel_and_square():
  scene = _scene(extent=0.31, start=(0.321, 0.537))
  got = _coverage(scene, shapes.render(scene, num_frames=2, size=32))[0]
  edges = np.arange(33) / 32

  def overlap(centre):
    low, high = centre - scene.extent / 2, centre + scene.extent / 2
    return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * 32

  expected = overlap(scene.start[1])[:, None] * overlap(scene.start[0])[None, :]
  # Each edge is known to a quarter of a pixel / 2.
  np.testing.assert_allclose(got, expected, atol=0.5 / shapes.SUPERSAMPLING + 0.02)


@pytest.mark.parametrize("shape", shapes.SHAPES)
@pytest.mark.parametrize("direction", shapes.DIRECTIONS)
def test_centroid_goes_straight_at_constant_speed_over_the_travel(shape, direction):
  scene = _scene(shape=shape, direction=direction, start=(0.5, 0.5), travel=0.3, extent=0.3)
  path = _centroids(scene, shapes.render(scene, num_frames=9, size=64))
  step = np.array(shapes.DIRECTIONS[direction])
  np.testing.assert_allclose(path[-1] - path[0], 0.3 * step, atol=0.004)
  np.testing.assert_allclose(np.diff(path, n=2, axis=0), 0, atol=0.006)


def test_the_same_scene_at_half_the_size_is_the_mean_of_blocks():
  scene = _scene(shape="circle", color="magenta")
  large = shapes.render(scene, num_frames=3, size=64).astype(float)
  small = shapes.render(scene, num_frames=3, size=32).astype(float)
  pooled = large.reshape(3, 32, 2, 32, 2, 3).mean((2, 4))
  assert np.abs(pooled - small).max() < 0.13 * 255
  assert np.abs(pooled - small).mean() < 0.6


def test_sampled_scenes_stay_inside_and_clearly_move():
  rng = np.random.default_rng(0)
  starts = []
  for color, shape, direction in shapes.balanced_vocabulary(rng, 360, moving=True):
    scene = shapes.sample_scene(rng, color=color, shape=shape, direction=direction)
    start = np.array(scene.start)
    end = start + scene.travel * np.array(shapes.DIRECTIONS[direction])
    for point in (start, end):
      assert (point >= scene.extent / 2 + shapes.MARGIN - 1e-6).all(), scene
      assert (point <= 1 - scene.extent / 2 - shapes.MARGIN + 1e-6).all(), scene
    assert 0.34 <= scene.travel <= 0.44
    assert 0.42 <= scene.extent <= 0.52
    starts.append((direction, *scene.start))
  # The start is random on both axes, across the direction over the entire free range.
  for direction, axis in (("right", 2), ("left", 2), ("up", 1), ("down", 1)):
    across = [s[axis] for s in starts if s[0] == direction]
    assert min(across) < 0.3 and max(across) > 0.7
    along = [s[3 - axis] for s in starts if s[0] == direction]
    # The free range along it is the rest of the travel: up to 1 - 0.42 - 0.04 - 0.34 = 0.20.
    assert np.ptp(along) > 0.1


def test_every_run_of_the_vocabulary_is_balanced():
  words = list(shapes.balanced_vocabulary(np.random.default_rng(3), 144, moving=True))
  for first in range(0, 144, 6):
    assert len({color for color, _, _ in words[first : first + 6]}) == 6
  for first in range(0, 144, 24):
    pairs = {(color, direction) for color, _, direction in words[first : first + 24]}
    assert len(pairs) == 24
  assert set(Counter(words).values()) == {2} and len(set(words)) == 72
  stills = list(shapes.balanced_vocabulary(np.random.default_rng(3), 18, moving=False))
  assert len(set(stills)) == 18 and all(direction is None for *_, direction in stills)


def test_labels_number_the_72_combinations():
  labels = {
    _scene(color=color, shape=shape, direction=direction).label
    for color in shapes.COLORS
    for shape in shapes.SHAPES
    for direction in shapes.DIRECTIONS
  }
  assert labels == set(range(72))
  assert _scene(direction=None).label == -1


def test_captions():
  assert _scene().caption == "a red square moves right"
  assert _scene(direction=None).caption == "a red square"


def test_a_moving_scene_in_one_frame_is_rejected():
  with pytest.raises(ValueError, match="at least 2 frames"):
    shapes.render(_scene(), num_frames=1, size=32)


def test_held_out_combinations_leave_every_pair_of_words_in_training():
  words = list(
    shapes.balanced_vocabulary(np.random.default_rng(3), 120, moving=True, training=True)
  )
  every = set(itertools.product(shapes.COLORS, shapes.SHAPES, shapes.DIRECTIONS))
  apart = {words for words in every if shapes.held_out(*words)}
  assert len(apart) == 12 and set(words) == every - apart
  assert set(Counter(words).values()) == {2}
  for part in ((0, 1), (0, 2), (1, 2)):
    pairs = {tuple(w[i] for i in part) for w in words}
    assert pairs == {tuple(w[i] for i in part) for w in every}
  for position, count in enumerate((2, 4, 3)):
    assert set(Counter(w[position] for w in apart).values()) == {count}
