"""Scores equal those of scipy and of formulas in floating point."""

import numpy as np
import pytest
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
  }
  found = scores.score(frames, [one() for one in scores.BUILT_IN])
  assert found == pytest.approx(expected, abs=2e-4)


def test_a_clip_of_one_frame_does_not_move(frames):
  alone, all_frames = (
    scores.score(f, [one() for one in scores.BUILT_IN]) for f in (frames[:1], frames)
  )
  assert alone.keys() == all_frames.keys() and alone["motion"] == alone["still"] == 0


def test_bars_are_the_black_edges_of_all_frames():
  rng = np.random.default_rng(0)
  frames = np.zeros((3, 40, 60, 3), np.uint8)
  frames[:, 5:33, 8:60] = rng.integers(30, 256, (3, 28, 52, 3))
  frames[1] = 0  # A black frame has no bars.
  assert scores.picture_in_bars(frames) == (5, 33, 8, 60)
  assert scores.LetterboxScore()(frames)["bars"] == pytest.approx(1 - 28 * 52 / 2400)
  assert scores.LetterboxScore()(frames[1:2])["bars"] == 0.0


def test_a_score_of_a_team_is_loaded_by_name_and_must_be_a_number(monkeypatch):
  class Half:
    def __call__(self, frames):
      return {"half": 0.5, "frames": len(frames)}

  monkeypatch.setattr(scores, "Half", Half, raising=False)
  (found,) = [scores.load("beam_jobs.curation.scores:Half")]
  frames = np.zeros((2, 8, 8, 3), np.uint8)
  assert scores.score(frames, [found]) == {"half": 0.5, "frames": 2.0}
  monkeypatch.setattr(Half, "__call__", lambda *_: {"half": float("nan")})
  with pytest.raises(ValueError, match="half is nan, expected a finite number"):
    scores.score(frames, [found])
