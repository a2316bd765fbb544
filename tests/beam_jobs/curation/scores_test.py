"""Scores equal those of scipy and of formulas in floating point."""

import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from beam_jobs.curation import scores

WEIGHTS = np.array([0.299, 0.587, 0.114])


@pytest.fixture(params=range(3))
def frames(request):
  rng = np.random.default_rng(request.param)
  found = rng.integers(0, 256, (5, 20 + request.param, 31, 3), dtype=np.uint8)
  found[2] = found[1]
  found[4] //= 20
  return found


def _scored(frames, *, times=None, repeated=0.0):
  times = [250_000 * i for i in range(len(frames))] if times is None else times
  return scores.score(frames, [one() for one in scores.BUILT_IN], times=times, repeated=repeated)


def test_scores_equal_their_formulas(frames):
  y = frames @ WEIGHTS / 255
  kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]]) / 4
  laplacian = np.stack([np.abs(ndimage.convolve(f, kernel))[1:-1, 1:-1].mean() for f in y])
  expected = {
    "motion": np.abs(np.diff(y, axis=0)).mean(),
    "still": 1 / 4,
    "exposure": y.mean(),
    "contrast": y.std(),
    "black": 1 / 5,
    "sharpness": laplacian.max(),
    "bars": 0.0,
    "aspect": frames.shape[2] / frames.shape[1],
    # Nothing that could be aligned.
    "shake": 0.0,
    "repeated": 0.3,
  }
  found = _scored(frames, repeated=0.3)
  assert found == pytest.approx(expected, abs=2e-4)


def test_a_clip_of_one_frame_does_not_move(frames):
  alone, all_frames = _scored(frames[:1]), _scored(frames)
  assert sorted(alone) == sorted(all_frames) == scores.names()
  assert alone["motion"] == alone["still"] == alone["shake"] == 0


def test_bars_are_the_black_edges_of_all_frames():
  rng = np.random.default_rng(0)
  frames = np.zeros((3, 40, 60, 3), np.uint8)
  frames[:, 5:33, 8:60] = rng.integers(30, 256, (3, 28, 52, 3))
  frames[1] = 0  # A black frame has no bars.
  assert scores.picture_in_bars(frames) == (5, 33, 8, 60)
  assert scores.LetterboxScore()(frames)["bars"] == pytest.approx(1 - 28 * 52 / 2400)
  assert scores.LetterboxScore()(frames[1:2])["bars"] == 0.0


def _views(places, *, seed=0, height=96, width=160):
  """What a camera shows at places (down, right) in pixels: waves in all directions, exact between pixels too."""
  rng = np.random.default_rng(seed)
  length, angle, phase = rng.uniform((8, 0, 0), (120, 2 * np.pi, 2 * np.pi), (30, 3)).T
  y, x = np.mgrid[:height, :width][..., None]
  along = [
    np.cos(angle) * (y + down) + np.sin(angle) * (x + right) for down, right in np.asarray(places)
  ]
  waves = [(length * np.sin(2 * np.pi * a / length + phase)).sum(-1) for a in along]
  gray = np.clip(128 + np.stack(waves) / 7, 0, 255).astype(np.uint8)
  return np.repeat(gray[..., None], 3, axis=-1)


SAMPLED = np.array([i for i in range(80) if i * 4 // 25 > (i - 1) * 4 // 25]) * 40_000
HAND = np.random.default_rng(1).normal(0, 1, (len(SAMPLED), 2))


@pytest.mark.parametrize(
  "places",
  [
    0 * HAND,
    SAMPLED[:, None] * (2e-6, 3.1e-5),
    HAND,
    2 * HAND,
    0.2 * HAND * (0, 1) + SAMPLED[:, None] * (2e-5, 0),
  ],
  ids=["still", "pan", "hand", "rough_hand", "hand_and_pan"],
)
def test_shake_is_how_the_speed_of_the_camera_changes(places):
  """The intervals between sampled frames are six or seven frames."""
  speeds = np.diff(places, axis=0) / np.diff(SAMPLED)[:, None]
  expected = np.abs(np.diff(speeds, axis=0)).mean(0).sum() * np.diff(SAMPLED).mean() / 96
  frames = _views(places)
  found = _scored(frames, times=SAMPLED.tolist())["shake"]
  assert found == pytest.approx(expected, abs=0.002, rel=0.02)
  light = np.random.default_rng(2).integers(0, 100, len(frames))[:, None, None, None]
  flickering = (frames // 2 + light).astype(np.uint8)
  assert _scored(flickering, times=SAMPLED.tolist())["shake"] == pytest.approx(found, abs=0.002)
  in_bars = np.pad(frames, ((0, 0), (12, 12), (0, 0), (0, 0)))
  assert _scored(in_bars, times=SAMPLED.tolist())["shake"] == found


def test_objects_and_noise_do_not_shake():
  rng = np.random.default_rng(2)
  still = _views(np.zeros((12, 2)))
  moving = still.copy()
  for frame, (y, x) in zip(moving, rng.integers(0, 64, (12, 2)), strict=True):
    frame[y : y + 30, x : x + 30] = _views([(300, 300)])[0, :30, :30]
  noise = rng.normal(90, 10, still.shape).astype(np.uint8)
  found = [_scored(frames)["shake"] for frames in (moving, noise)]
  assert found == pytest.approx([0, 0], abs=0.001)


def test_a_score_of_a_team_is_loaded_by_name_and_must_be_a_number(monkeypatch):
  class Half:
    def __call__(self, frames):
      return {"half": 0.5, "frames": len(frames)}

  monkeypatch.setattr(scores, "Half", Half, raising=False)
  (found,) = [scores.load("beam_jobs.curation.scores:Half")]
  frames = np.zeros((2, 8, 8, 3), np.uint8)
  values = scores.score(frames, [found], times=[0, 1], repeated=0.5)
  assert values == {"half": 0.5, "frames": 2.0, "shake": 0.0, "repeated": 0.5}
  monkeypatch.setattr(Half, "__call__", lambda *_: {"half": float("nan")})
  with pytest.raises(ValueError, match="half is nan, expected a finite number"):
    scores.score(frames, [found], times=[0, 1], repeated=0.5)


def test_text_is_the_share_of_the_picture_that_it_was_written_on():
  pytest.importorskip("rapidocr_onnxruntime", reason="requirements-curate.lock is not installed")
  detector = scores.load("beam_jobs.curation.text_area:TextArea")
  empty = _views(np.zeros((3, 2)), seed=3, height=128, width=227)
  picture, font = Image.fromarray(empty[0]), ImageFont.load_default(16)
  draw = ImageDraw.Draw(picture)
  draw.text((20, 90), "What did you say?", fill="white", font=font, stroke_width=1, stroke_fill=0)
  left, top, right, bottom = draw.textbbox((20, 90), "What did you say?", font=font)
  written = (right - left) * (bottom - top) / (128 * 227)
  everywhere = np.stack([np.asarray(picture)] * 7)
  assert detector(empty) == {"text": 0.0}
  assert written < detector(everywhere)["text"] < 2 * written
  assert detector(everywhere[:1]) == detector(everywhere)
  # The middle of the second third.
  once = np.concatenate([empty, everywhere[:1], empty])
  assert detector(once)["text"] == pytest.approx(detector(everywhere)["text"] / 3)


def test_a_score_without_its_package_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
  with pytest.raises(ValueError, match=r"^--score: \S+ needs .* -r requirements-curate\.lock"):
    scores.load("beam_jobs.curation.text_area:TextArea")
