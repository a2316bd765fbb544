"""The reader of scenes: every element of real clips is read, changed captions are wrong in just that element."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from data.samples import showcase
from walt_t5x.media import reading, writing
from walt_t5x.metrics import caption_accuracy, scene_captions, scene_reader
from walt_t5x.metrics.caption_counts import Verdict, compare, tally

_MIRRORED = {"left": "right", "right": "left", "left of": "right of", "right of": "left of"}
_REVERSED = {"left": "right", "right": "left", "up": "down", "down": "up"}
_ELEMENTS = {"color", "shape", "direction", "speed", "bounce", "order", "background", "all"}


def _clips(num_clips, num_stills, size, seed=0):
  rng = np.random.default_rng(seed)
  words = [
    *showcase.balanced_vocabulary(rng, num_clips, moving=True),
    *showcase.balanced_vocabulary(rng, num_stills, moving=False),
  ]
  clips = []
  for chosen in words:
    scene = showcase.sample_scene(rng, chosen)
    moving = showcase.PATTERNS[chosen.pattern].moving
    frames = showcase.render(scene, num_frames=17 if moving else 1, size=size)
    clips.append((frames.astype(np.float32) / 255, scene.caption))
  return clips


@pytest.fixture(scope="module")
def clips():
  return _clips(100, 20, 64)


@pytest.fixture(scope="module")
def readings(clips):
  return [(scene_reader.read_scene(video), caption) for video, caption in clips]


def _judged(found: scene_reader.SceneReading, caption: str) -> Verdict:
  named = scene_captions.parse_caption(caption)
  return compare(scene_captions.describe(found, named), named)


def test_every_element_of_real_clips_is_read(readings):
  result = tally(_judged(found, caption) for found, caption in readings)
  assert set(result.counts) == _ELEMENTS
  assert min(count.total for count in result.counts.values()) >= 15
  assert all(result.accuracy(element) >= 0.99 for element in _ELEMENTS), str(result)


def test_blurred_dimmed_and_noisy_clips_are_read(clips):
  rng = np.random.default_rng(0)

  def soft(video):
    blurred = ndimage.gaussian_filter(video, (0, 1.5, 1.5, 0))
    dimmed = 0.85 * blurred + 0.15 * blurred.mean()
    return np.clip(dimmed + rng.normal(0, 0.02, video.shape), 0, 1)

  result = scene_captions.score((soft(video), caption) for video, caption in clips[::3])
  assert all(result.accuracy(element) >= 0.98 for element in result.counts), str(result)


def test_coded_clips_at_128_are_read(tmp_path):
  def coded(video):
    frames = np.rint(255 * video).astype(np.uint8)
    path = writing.write_video(tmp_path / "clip.mp4", frames, fps=8, crf=8)
    return reading.read_video(path).frames.astype(np.float32) / 255

  result = scene_captions.score(
    (coded(video), caption) for video, caption in _clips(12, 0, 128, seed=3)
  )
  assert result.counts["all"].right == result.counts["all"].total == 12, str(result)


def _changed(caption: str, named: dict[str, str]):
  """(element, the caption with another word for it)."""
  words = {
    "color": tuple(caption_accuracy.PALETTE),
    "shape": ("square", "circle", "triangle"),
    "direction": tuple(_REVERSED),
    "speed": ("slowly", "quickly"),
    "bounce": scene_captions.EDGES,
    "background": ("gray", "white"),
    "order": ("behind", "in front of", "above", "below", "on the left of", "on the right of"),
  }
  for element, word in named.items():
    word = word.split(", ")[0]
    if element == "order":
      word = next(w for w in words["order"] if f" {w} " in caption)
    # The object that the reader takes for the caption's must not be the other one's color.
    others = [w for w in words[element] if f" {w} " not in f" {caption} "]
    place = {"direction": "moves {}", "bounce": "the {} edge"}.get(element, "{}")
    yield element, caption.replace(place.format(word), place.format(others[0]), 1)


def test_a_caption_with_another_word_is_wrong_in_that_element_alone(readings):
  for found, caption in readings:
    named = scene_captions.parse_caption(caption)
    for element, other in _changed(caption, named):
      right = _judged(found, other).right
      wrong = {name for name, fits in right.items() if not fits}
      assert wrong == {element} and right.keys() == named.keys(), (caption, other)


def test_moves_and_bounces_are_exclusive(readings):
  for found, caption in readings:
    if "bounces" in caption:
      start, _, rest = caption.partition(" bounces off the ")
      edge, _, end = rest.partition(" edge")
      direction = {"top": "up", "bottom": "down"}.get(edge, edge)
      assert not _judged(found, f"{start} moves {direction}{end}").right.get("direction", False)
    elif found.objects and "slowly" in caption:
      assert not _judged(found, "a red square bounces off the left edge").right["bounce"]


def _words(found, caption):
  return dict(scene_captions.describe(found, scene_captions.parse_caption(caption)))


def test_mirrored_and_reversed_clips(clips, readings):
  exchanged = {"direction": _MIRRORED, "bounce": _MIRRORED, "order": _MIRRORED}
  for (video, caption), (found, _) in list(zip(clips, readings))[:100:4]:
    shown = _words(found, caption)
    mirrored = _words(scene_reader.read_scene(video[:, :, ::-1]), caption)
    for element, word in shown.items():
      assert mirrored[element] == exchanged.get(element, {}).get(str(word), word), (
        caption,
        element,
      )
    backwards = _words(scene_reader.read_scene(video[::-1]), caption)
    for element, word in shown.items():
      expected = _REVERSED.get(str(word)) if element == "direction" else word
      assert backwards[element] == expected, (caption, element)


def test_captions_in_any_order_of_objects(readings):
  opposite = {"behind": "in front of", "left of": "right of", "above": "below"}
  opposite |= {back: forward for forward, back in opposite.items()}
  for found, _ in readings:
    if len(found.objects) == 2:
      forward, back = (scene_reader.order(*pair) for pair in itertools.permutations(found.objects))
      assert forward and back == opposite[forward]


def _drawn(*objects, background=(240, 240, 240), gradient=0, num_frames=9, size=64):
  """Frames drawn by Pillow. An object is (color, shape, half edge, first center, last center), in pixels."""
  frames = []
  for part in np.linspace(0, 1, num_frames):
    image = Image.new("RGB", (4 * size, 4 * size), background)
    if gradient:
      rows = np.add.outer(np.linspace(-gradient, gradient, 4 * size), np.array(background))
      rows = np.broadcast_to(np.rint(rows)[:, None], (4 * size, 4 * size, 3))
      image = Image.fromarray(rows.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for color, shape, half, first, last in objects:
      x, y = 4 * ((1 - part) * np.array(first) + part * np.array(last))
      box = [x - 4 * half, y - 4 * half, x + 4 * half, y + 4 * half]
      if shape == "circle":
        draw.ellipse(box, fill=color)
      elif shape == "square":
        draw.rectangle(box, fill=color)
      else:
        draw.polygon([(x, box[1]), (box[2], box[3]), (box[0], box[3])], fill=color)
    frames.append(np.asarray(image.resize((size, size), Image.Resampling.BOX)))
  return np.stack(frames).astype(np.float32) / 255


_RED, _BLUE, _GREEN = (230, 40, 40), (50, 80, 235), (40, 200, 60)
_LINE = np.ones((64, 64, 3), np.float32)
_LINE[58:60, 5:30] = np.array(_RED) / 255
_YELLOW, _MAGENTA = (235, 215, 45), (220, 50, 210)


@pytest.mark.parametrize(
  ("video", "caption", "wrong"),
  [
    pytest.param(
      _drawn((_RED, "circle", 9, (11, 30), (53, 30)), (_BLUE, "square", 10, (32, 30), (32, 30))),
      "a red circle moves right behind a blue square on a white background",
      set(),
      id="behind",
    ),
    pytest.param(
      _drawn((_BLUE, "square", 10, (32, 30), (32, 30)), (_RED, "circle", 9, (11, 30), (53, 30))),
      "a red circle moves right behind a blue square on a white background",
      {"order"},
      id="in front",
    ),
    pytest.param(
      _drawn((_RED, "circle", 9, (11, 18), (53, 18)), (_BLUE, "square", 10, (32, 45), (32, 45))),
      "a red circle moves right behind a blue square on a white background",
      {"order"},
      id="above",
    ),
    pytest.param(
      _drawn((_RED, "circle", 9, (11, 18), (53, 18)), (_BLUE, "square", 10, (32, 45), (50, 45))),
      "a red circle moves right above a blue square on a white background",
      {"direction"},
      id="both move",
    ),
    pytest.param(
      _drawn((_RED, "circle", 9, (11, 18), (18, 18)), (_BLUE, "square", 10, (50, 42), (50, 42))),
      "a red circle moves right above a blue square on a white background",
      set(),
      id="above, and farther to the side",
    ),
    pytest.param(
      _drawn((_GREEN, "triangle", 10, (18, 43), (18, 43)),
             (_MAGENTA, "square", 9, (15, 14), (15, 14)), background=(129, 133, 142), gradient=22),
      "a magenta square above a green triangle on a gray background",
      set(),
      id="opposite colors on a gradient",
    ),
    pytest.param(
      _drawn((_YELLOW, "circle", 10, (13, 46), (13, 46)),
             (_BLUE, "triangle", 10, (46, 51), (46, 51)), background=(129, 133, 142), gradient=22),
      "a blue triangle on the right of a yellow circle on a gray background",
      set(),
      id="opposite colors side by side",
    ),
    pytest.param(
      np.minimum(_drawn((_RED, "circle", 9, (20, 20), (44, 20))), _LINE),
      "a red circle moves right on a white background",
      set(),
      id="a thin line of the same color",
    ),
    pytest.param(
      _drawn((_RED, "circle", 9, (20, 20), (44, 44))),
      "a red circle moves right on a white background",
      {"direction"},
      id="diagonal",
    ),
    pytest.param(
      _drawn((_RED, "circle", 9, (20, 20), (20, 20)), (_BLUE, "circle", 9, (44, 20), (44, 20))),
      "a red circle moves right on a white background",
      {"color", "shape", "direction"},
      id="another object",
    ),
    pytest.param(
      _drawn((_RED, "circle", 8, (15, 15), (15, 15)), (_BLUE, "circle", 8, (44, 15), (44, 15)),
             (_GREEN, "circle", 8, (30, 45), (30, 45)), background=(128, 128, 128)),
      "a red circle on the left of a blue circle on a gray background",
      {"color", "shape", "order"},
      id="three objects",
    ),
    pytest.param(
      _drawn((_RED, "square", 9, (15, 20), (15, 20)), (_RED, "square", 9, (45, 40), (45, 40))),
      "a red square moves left slowly",
      {"color", "shape", "direction", "speed"},
      id="one color twice",
    ),
    pytest.param(
      _drawn((_RED, "square", 10, (20, 30), (42, 30)), background=(120, 60, 120)),
      "a red square moves right on a gray background",
      {"background"},
      id="colored background",
    ),
  ],
)  # fmt: skip
def test_clips_drawn_by_pillow(video, caption, wrong):
  right = scene_captions.judge(video, caption).right
  assert {element for element, fits in right.items() if not fits} == wrong


def test_an_object_that_vanishes_or_turns_in_the_middle():
  there = _drawn((_RED, "circle", 9, (15, 30), (32, 30)))
  caption = "a red circle bounces off the right edge on a white background"
  right = scene_captions.judge(np.concatenate([there, there[::-1]]), caption).right
  assert right == {"color": True, "shape": True, "bounce": False, "background": True}
  there[-2:] = 240 / 255
  right = scene_captions.judge(there, "a red circle moves right slowly").right
  assert not any(right.values())


def test_clips_without_objects_are_wrong():
  rng = np.random.default_rng(0)
  noise = rng.uniform(size=(9, 64, 64, 3))
  for video in (noise, np.zeros_like(noise), ndimage.gaussian_filter(noise, (1, 4, 4, 0))):
    right = scene_captions.judge(video, "a red circle moves right slowly above a blue square").right
    assert len(right) == 5 and not any(right.values())


@pytest.mark.parametrize(
  ("caption", "expected"),
  [
    ("A red circle moves left, slowly, on a gray background.",
     {"color": "red", "shape": "circle", "direction": "left", "speed": "slowly",
      "background": "gray"}),
    ("a blue square bounces off the top edge",
     {"color": "blue", "shape": "square", "bounce": "top"}),
    ("a blue square moves up on the left of a red triangle",
     {"color": "blue, red", "shape": "square, triangle", "direction": "up", "order": "left of"}),
    ("a blue square moves left in front of a red triangle",
     {"color": "blue, red", "shape": "square, triangle", "direction": "left",
      "order": "in front of"}),
    ("a cyan circle", {"color": "cyan", "shape": "circle"}),
    ("a dog moves slowly", {"speed": "slowly"}),
    ("a dog above the sea", {}),
  ],
)  # fmt: skip
def test_parse_caption(caption, expected):
  assert scene_captions.parse_caption(caption) == expected
  assert scene_captions.names_shape(caption) == ("color" in expected)


def test_plain_captions_are_judged_by_the_plain_reader(clips, monkeypatch):
  plain = [(video, c) for video, c in clips if not _SCENE & set(scene_captions.parse_caption(c))]
  assert len(plain) > 2
  monkeypatch.setattr(scene_reader, "read_scene", None)
  for video, caption in plain:
    assert scene_captions.judge(video, caption) == caption_accuracy.judge(video, caption)


_SCENE = set(scene_captions.SCENE_ELEMENTS)


def test_pixels_outside_the_unit_range_raise(clips):
  with pytest.raises(ValueError, match="in \\[0, 1\\]"):
    scene_captions.judge(clips[0][0] * 255, "a red square moves left slowly")
