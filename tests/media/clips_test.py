"""Where the clips of one video begin."""

import numpy as np
import pytest

from walt_t5x.media.clips import start_of_clip
from walt_t5x.media.rules import Rejected


def starts(spare, fps, first):
  """Starts of all clips that a video has."""
  found = []
  while True:
    try:
      found.append(start_of_clip(len(found), spare=spare, fps=fps, first=first))
    except Rejected as error:
      assert error.reason == "no_more_clips" and f"only {len(found)} differ" in str(error)
      return np.array(found)


@pytest.mark.parametrize("seed", range(8))
def test_clips_of_a_video_are_distinct_and_spread_for_any_number_of_them(seed):
  random = np.random.default_rng(seed)
  for _ in range(20):
    fps = float(random.choice([8, 12.5, 23.976, 25, 30]))
    spare = float(random.uniform(0, 12))
    first = float(random.uniform(0, spare))
    found = starts(spare, fps, first)
    assert found[0] == pytest.approx(first)
    assert found.min() >= 0 and found.max() <= spare + 1e-5
    # Every place of the grid is used, so that a short video gives as many clips as it has.
    assert spare * fps - 1 <= len(found) <= spare * fps + 1.001
    assert np.all(np.diff(np.sort(found)) >= 0.999 / fps)
    for count in range(2, len(found)):
      around = np.sort(found[:count])
      gaps = np.diff([*around, around[0] + len(found) / fps])
      assert gaps.max() <= (1.9 * len(found) / count + 1) / fps, (count, len(found))


def test_a_video_of_one_clip_has_one():
  assert starts(0.0, 25.0, 0.0).tolist() == [0.0]
