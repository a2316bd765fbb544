"""Properties of the motion scores, on clips with known motion."""

import numpy as np
import pytest

from data.samples import shapes
from walt_t5x.metrics import motion


def _noise(frames=6, side=12, seed=0):
  return np.random.default_rng(seed).integers(0, 256, size=(frames, side, side, 3)).astype(np.uint8)


def _moving(speed, *, frames=7, side=48, square=20):
  """A bright square that moves `speed` pixels per frame over a gray background."""
  clip = np.full((frames, side, side, 3), 40, np.uint8)
  for t in range(frames):
    clip[t, 10 : 10 + square, 2 + speed * t : 2 + speed * t + square] = (200, 120, 90)
  return clip


def test_both_equal_loops_over_every_value():
  clip = _noise(5, 3)
  x = clip.astype(float)
  changes, got, went = [], 0.0, 0.0
  for t in range(4):
    changes += [abs(a - b) / 255 for a, b in zip(x[t + 1].ravel(), x[t].ravel())]
  for t in range(3):
    for a, b, c in zip(x[t].ravel(), x[t + 1].ravel(), x[t + 2].ravel()):
      path = abs(b - a) + abs(c - b)
      if path >= 8:
        got, went = got + abs(c - a), went + path
  assert motion.change(clip) == pytest.approx(np.mean(changes), rel=1e-12)
  assert motion.steadiness(clip) == pytest.approx(got / went, rel=1e-12)


def test_a_still_does_not_change_and_is_steady():
  still = np.repeat(_noise(1), 5, axis=0)
  assert motion.change(still) == 0 and motion.steadiness(still) == 1
  # Compression noise on a still background is not motion.
  coded = still // 2 + np.random.default_rng(1).integers(0, 4, size=still.shape).astype(np.uint8)
  assert motion.steadiness(coded) == 1 and 0 < motion.change(coded) < 0.01


@pytest.mark.parametrize("speed", [1, 2, 3])
def test_change_is_proportional_to_the_speed(speed):
  # Two strips of 20 pixels change by the square's contrast in every step.
  contrast = np.abs(np.array([200, 120, 90]) - 40).mean()
  expected = 2 * 20 * speed * contrast / 48**2 / 255
  assert motion.change(_moving(speed)) == pytest.approx(expected, rel=1e-12)
  assert motion.steadiness(_moving(speed)) == 1
  scene = shapes.sample_scene(
    np.random.default_rng(speed), color="red", shape="circle", direction="left"
  )
  clip = shapes.render(scene, num_frames=17, size=64)
  assert motion.change(clip[::2]) / motion.change(clip) == pytest.approx(2, rel=0.05)


def test_steadiness_of_fades_flicker_and_shuffled_frames():
  a, b = _noise(2, 40)
  share = np.linspace(0, 1, 9)[:, None, None, None]
  fade = np.rint((1 - share) * a + share * b).astype(np.uint8)
  assert motion.steadiness(fade) == 1
  assert motion.steadiness(np.stack([a, b, a, b, a])) == 0
  assert motion.steadiness(_noise(12, 40)) == pytest.approx(0.5, abs=0.01)
  clip = _moving(2, frames=9)
  shuffled = clip[[0, 4, 1, 7, 3, 8, 2, 6, 5]]
  assert motion.steadiness(shuffled) < 0.7 and motion.change(shuffled) > 1.5 * motion.change(clip)


@pytest.mark.parametrize(
  "same",
  [
    lambda x: x[..., [2, 0, 1]],
    lambda x: x[::-1],
    lambda x: x[:, ::-1],
    lambda x: x.transpose(0, 2, 1, 3),
    lambda x: 255 - x,
    lambda x: x.repeat(2, axis=1).repeat(2, axis=2),
  ],
  ids=["colors permuted", "backwards", "mirrored", "turned", "negative", "enlarged"],
)
def test_transformations_that_preserve_motion_preserve_the_scores(same):
  clip = np.concatenate([_noise(), _moving(1, frames=6, side=12, square=2)], axis=2)
  for score in (motion.change, motion.steadiness):
    assert score(same(clip)) == pytest.approx(score(clip), rel=1e-12)
    assert 0 < score(clip) < 1


def test_invalid_clips_raise():
  with pytest.raises(ValueError, match="at least 2 frames"):
    motion.change(_noise(1))
  with pytest.raises(ValueError, match="at least 3 frames"):
    motion.steadiness(_noise(2))
  with pytest.raises((ValueError, TypeError)):
    motion.change(_noise().astype(np.float32))
