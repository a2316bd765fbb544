"""The pixel reader on rendered scenes with known content, and on clips that must count as wrong."""

import numpy as np
import pytest
from scipy import ndimage

from data.samples import shapes
from walt_t5x.metrics import caption_accuracy as reader
from walt_t5x.metrics.caption_counts import Count

_NOTHING = reader.Reading(dict.fromkeys(("color", "shape", "direction")), None)
_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


def _clips(size, count=72, num_frames=9):
  rng = np.random.default_rng(7)
  clips = []
  for color, shape, direction in shapes.balanced_vocabulary(rng, count, moving=True):
    scene = shapes.sample_scene(rng, color=color, shape=shape, direction=direction)
    video = shapes.render(scene, num_frames=num_frames, size=size)
    clips.append((video.astype(np.float32) / 255, scene.caption))
  return clips


@pytest.fixture(scope="module")
def clips32():
  return _clips(32)


def _blob(num_frames=5, size=32, color=(0.9, 0.1, 0.1), path=((8, 16), (24, 16)), radius=4.5):
  """A disc drawn without the renderer; path is (first (x, y), last (x, y)) in pixels."""
  y, x = np.mgrid[:size, :size]
  video = np.full((num_frames, size, size, 3), 0.05, np.float32)
  for index, share in enumerate(np.linspace(0, 1, num_frames)):
    centre = np.array(path[0]) * (1 - share) + np.array(path[1]) * share
    video[index][(x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2] = color
  return video


@pytest.mark.parametrize("size", [32, 64])
def test_rendered_clips_are_read_correctly(size, clips32):
  result = reader.score(clips32 if size == 32 else _clips(64))
  assert all(c.accuracy >= 0.98 and c.total == 72 for c in result.counts.values()), str(result)
  assert list(result.counts) == ["color", "shape", "direction", "all"]


def test_shuffled_captions_score_at_chance(clips32):
  # Every video with every caption: the vocabulary is balanced, so chance is exact.
  readings = [reader.read_clip(video) for video, _ in clips32]
  words = [reader.parse_caption(caption) for _, caption in clips32]
  for element, chance in (("color", 1 / 6), ("shape", 1 / 3), ("direction", 1 / 4)):
    right = [[r.shown[element] == w[element] for w in words] for r in readings]
    assert np.mean(right) == pytest.approx(chance, abs=1e-9)


def test_a_reversed_clip_moves_the_opposite_way(clips32):
  for video, caption in clips32[:36]:
    direction = reader.parse_caption(caption)["direction"]
    assert reader.read_clip(video[::-1]).shown["direction"] == _OPPOSITE[direction]


def test_mirrored_clips_exchange_the_directions(clips32):
  for video, caption in clips32[:24]:
    direction = reader.parse_caption(caption)["direction"]
    horizontal = direction in ("left", "right")
    mirrored = reader.read_clip(video[:, :, ::-1]).shown["direction"]
    assert mirrored == (_OPPOSITE[direction] if horizontal else direction)
    turned = reader.read_clip(video.swapaxes(1, 2)).shown["direction"]
    assert turned == {"left": "up", "up": "left", "right": "down", "down": "right"}[direction]


@pytest.mark.parametrize("blur", [1.0, 2.0])
def test_reading_is_robust_to_blur_dimming_and_noise(clips32, blur):
  rng = np.random.default_rng(0)
  degraded = []
  for video, caption in clips32[:72]:
    soft = 0.7 * ndimage.gaussian_filter(video, (0, blur, blur, 0))
    grain = rng.normal(0, 0.03, size=video.shape)
    degraded.append((np.clip(soft + grain, 0, 1).astype(np.float32), caption))
  result = reader.score(degraded)
  assert result.accuracy("all") >= 0.97, str(result)


def _noise(rng):
  return rng.uniform(size=(9, 32, 32, 3)).astype(np.float32)


def _clouds(rng):
  smooth = ndimage.gaussian_filter(rng.normal(size=(9, 32, 32, 3)), (1, 4, 4, 0))
  return np.clip(0.5 + 0.2 * smooth / smooth.std(), 0, 1).astype(np.float32)


def _black(rng):
  del rng
  return np.zeros((9, 32, 32, 3), np.float32)


def _grain(rng):
  return np.clip(0.05 + rng.normal(0, 0.02, size=(9, 32, 32, 3)), 0, 1).astype(np.float32)


@pytest.mark.parametrize("make", [_noise, _clouds, _black, _grain])
def test_clips_without_a_shape_count_as_wrong(make, clips32):
  rng = np.random.default_rng(1)
  result = reader.score([(make(rng), caption) for _, caption in clips32[:72]])
  assert result.accuracy("all") == result.accuracy("shape") == 0
  assert result.accuracy("color") <= 0.03 and result.accuracy("direction") <= 0.03, str(result)


def test_a_disc_is_read():
  reading = reader.read_clip(_blob())
  assert reading.shown == {"color": "red", "shape": "circle", "direction": "right"}
  np.testing.assert_allclose(reading.displacement, (0.5, 0.0), atol=1e-6)


@pytest.mark.parametrize(
  ("video", "color", "direction"),
  [
    pytest.param(_blob(path=((16, 16), (16, 16))), "red", None, id="does not move"),
    pytest.param(_blob(path=((15, 16), (17, 16))), "red", None, id="hardly moves"),
    pytest.param(_blob(path=((8, 8), (24, 24))), "red", None, id="moves along the diagonal"),
    pytest.param(_blob(color=(0.6, 0.6, 0.6)), None, "right", id="gray"),
    pytest.param(_blob(color=(0.9, 0.6, 0.6)), None, "right", id="pale red"),
    pytest.param(_blob(radius=14, path=((16, 16), (16, 16))), None, None, id="fills the frame"),
    pytest.param(_blob(color=(0.12, 0.05, 0.05)), None, None, id="too faint"),
  ],
)
def test_ambiguous_clips_have_no_reading(video, color, direction):
  reading = reader.read_clip(video)
  assert (reading.shown["color"], reading.shown["direction"]) == (color, direction)


def test_a_shape_that_vanishes_has_no_direction_and_a_brief_one_no_color():
  video = _blob(num_frames=8)
  video[-1] = 0.05
  shown = {"color": "red", "shape": "circle", "direction": None}
  assert reader.read_clip(video) == reader.Reading(shown, None)
  video[2:] = 0.05
  assert reader.read_clip(video) == _NOTHING


def test_two_shapes_far_apart_are_not_one_shape():
  video = np.maximum(_blob(path=((6, 6), (6, 6))), _blob(path=((26, 26), (26, 26))))
  assert reader.read_clip(video) == _NOTHING


def test_the_threshold_separates_the_shape_from_a_still_halo():
  halo = _blob(color=(0.3, 0.05, 0.05), path=((16, 16), (16, 16)), radius=14)
  reading = reader.read_clip(np.maximum(halo, _blob(path=((10, 16), (22, 16)))))
  assert reading.shown["direction"] == "right"
  np.testing.assert_allclose(reading.displacement, (12 / 32, 0), atol=0.01)


def test_a_shape_of_several_colors_has_no_color():
  video = np.full((5, 32, 32, 3), 0.05, np.float32)
  for row, color in enumerate([(0.9, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.2, 0.9)]):
    video[:, 10 + 4 * row : 14 + 4 * row, 10:22] = color
  assert reader.read_clip(video).shown["color"] is None


def test_a_still_has_a_color_and_a_shape_but_no_direction():
  shown = {"color": "red", "shape": "circle", "direction": None}
  assert reader.read_clip(_blob(num_frames=1)) == reader.Reading(shown, None)


def test_a_bright_background_is_supported():
  video = 1 - _blob(color=(0.95, 0.95, 0.05))  # a blue disc on white
  assert reader.read_clip(video).shown["direction"] == "right"


def test_the_palette_is_an_argument():
  palette = {"orange": (1.0, 0.5, 0.05), "red": (1.0, 0.1, 0.1)}
  verdict = reader.judge(
    _blob(color=(0.95, 0.5, 0.1)), "an orange disc moves right", palette=palette
  )
  assert verdict.shown["color"] == "orange"
  assert verdict.right == {"color": True, "direction": True}


@pytest.mark.parametrize(
  ("caption", "expected"),
  [
    ("a red square moves right", {"color": "red", "shape": "square", "direction": "right"}),
    ("A Cyan circle, moves UP.", {"color": "cyan", "shape": "circle", "direction": "up"}),
    ("a green triangle", {"color": "green", "shape": "triangle"}),
    ("a red or blue square moves left", {"shape": "square", "direction": "left"}),
    ("a bored upright cat", {}),
  ],
)
def test_parse_caption(caption, expected):
  assert reader.parse_caption(caption) == expected


def test_counts_of_parts_add_up(clips32):
  mixed = [
    *clips32[:10],
    (_blob(), "a blue circle moves right"),
    (_blob(), "a red circle"),
    (_black(None), "a red circle moves left"),
  ]
  complete = reader.score(mixed)
  assert reader.score(mixed[:4]) + reader.score(mixed[4:]) == complete
  assert complete == reader.CaptionAccuracy(
    clips=13,
    counts={
      "color": Count(right=11, total=13, unreadable=1),
      "shape": Count(right=12, total=13, unreadable=1),
      "direction": Count(right=11, total=12, unreadable=1),
      "all": Count(right=11, total=13, unreadable=1),
    },
  )
  assert complete.accuracy("color") == pytest.approx(11 / 13)
  assert complete.as_dict()["caption_accuracy/direction_accuracy"] == pytest.approx(11 / 12)
  assert "11 of 13" in str(complete)
  assert np.isnan(reader.score([]).accuracy("color"))


def test_pixels_outside_the_unit_range_raise():
  with pytest.raises(ValueError, match="in \\[0, 1\\]"):
    reader.read_clip(_blob() * 255)
  with pytest.raises(ValueError, match="in \\[0, 1\\]"):
    reader.read_clip(_blob() * np.float32("nan"))
