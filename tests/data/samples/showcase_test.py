"""Showcase scenes: captions and held-out combinations, geometry, and frames compared with a drawing by Pillow."""

import itertools
import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data.samples import sample_corpus, shapes, showcase


def _scenes(count, *, moving=True, seed=0):
  rng = np.random.default_rng(seed)
  words = showcase.balanced_vocabulary(rng, count, moving=moving)
  return [showcase.sample_scene(rng, chosen) for chosen in words]


def _plan(**changes):
  arguments: dict[str, Any] = dict(
    num_clips=400, num_stills=160, num_frames=17, seed=0, validation_fraction=0.1
  )
  return sample_corpus.plan(**(arguments | changes), scenes="showcase")


@pytest.fixture(scope="module")
def jobs() -> list[sample_corpus.RenderJob]:
  return _plan(num_clips=3000, num_stills=800)


def _pairs(words):
  """All pairs of (slot, word) of a caption, the slots of the two objects apart."""
  return set(itertools.combinations(sorted(words.fields), 2))


def test_captions_have_these_forms(jobs):
  color, shape = f"({'|'.join(shapes.COLORS)})", f"({'|'.join(shapes.SHAPES)})"
  thing, end = f"a {color} {shape}", "( on a (gray|white) background)?"
  place = f"(behind|in front of|above|below|on the (left|right) of) {thing}"
  forms = (
    rf"{thing} moves (left|right|up|down)( slowly| quickly)?{end}",
    rf"{thing} bounces off the (left|right|top|bottom) edge{end}",
    rf"{thing} moves (left|right|up|down) {place}{end}",
    rf"{thing}( (above|below|on the (left|right) of) {thing})?{end}",
  )
  used = Counter()
  for job in jobs:
    [form] = [form for form in forms if re.fullmatch(form, job.scene.caption)]
    assert (form == forms[-1]) == (job.num_frames == 1)
    used[form] += 1
  assert min(used.values()) > 300
  # The captions of the plain corpus are captions of the showcase.
  captions = {job.scene.caption for job in jobs}
  assert len({f"a {c} square moves {d}" for c in shapes.COLORS for d in shapes.DIRECTIONS} & captions) > 12  # fmt: skip


def test_no_training_row_has_a_held_out_combination_but_every_pair_of_words(jobs):
  training = [job.scene.words for job in jobs if job.split == "train"]
  held_out = set(
    showcase.held_out_captions(np.random.default_rng(0), 2000)
    + [
      job.scene.caption
      for job in jobs
      if job.split == "validation" and showcase.held_out(dict(job.scene.words.fields))
    ]
  )
  assert len(held_out) > 1000
  assert not held_out & {words.caption for words in training}
  # Two objects that are held out are never in one training row, in neither order.
  objects = re.compile(r"(\w+ (?:square|circle|triangle))")
  together = {frozenset(objects.findall(words.caption)) for words in training}
  apart = {frozenset(objects.findall(caption)) for caption in held_out}
  apart = {pair for pair in apart if len(pair) == 2}
  assert len(apart) >= 15 and not together & apart

  seen = {(words.pattern, pair) for words in training for pair in _pairs(words)}
  for name, pattern in showcase.PATTERNS.items():
    choices = (*pattern.choices, showcase._words("background", list(showcase.BACKGROUNDS)))
    for one, two in itertools.combinations_with_replacement(choices, 2):
      for left, right in itertools.product(one, two) if one is not two else zip(one, one):
        words = showcase.Words(name, tuple((dict(left) | dict(right)).items()))
        missing = {pair for pair in _pairs(words) if (name, pair) not in seen}
        assert not missing, (name, missing)


def test_a_larger_corpus_begins_with_the_smaller_and_is_the_same_again():
  small, large = _plan(), _plan(num_clips=800, num_stills=320)
  for still, split in itertools.product((False, True), ("train", "validation")):
    begin, end = (
      [j.scene for j in jobs if (j.num_frames == 1) == still and j.split == split]
      for jobs in (small, large)
    )
    assert end[: len(begin)] == begin and len(end) > len(begin) > 0
  assert _plan() == small
  assert _plan(seed=1) != small


def test_patterns_and_words_are_balanced(jobs):
  clips = [job.scene.words for job in jobs if job.split == "train" and job.num_frames > 1]
  for prefix in (200, 1000, len(clips)):
    counts = Counter(words.pattern for words in clips[:prefix])
    for name, share in (("move", 7), ("bounce", 3), ("pass", 5), ("next to", 5)):
      assert abs(counts[name] - prefix * share / 20) <= 5
  for slot, slack in (("background", 5), ("direction", 30), ("color", 90)):
    counts = Counter(words[slot] for words in clips).values()
    assert max(counts) - min(counts) <= slack, (slot, counts)


def test_objects_stay_inside_and_do_what_the_words_say():
  for scene in _scenes(200) + _scenes(60, moving=False):
    fields, first = dict(scene.words.fields), None
    path = {}
    for body in scene.bodies:
      points = np.array([body.center(time) for time in np.linspace(0, 1, 33)])
      assert points.min() - body.extent / 2 >= showcase.MARGIN / 2 - 1e-9, scene
      assert points.max() + body.extent / 2 <= 1 - showcase.MARGIN / 2 + 1e-9, scene
      path[body.color] = points
    first = path[fields["color"]]
    step = np.array(shapes.DIRECTIONS.get(fields.get("direction", ""), (0, 0)))
    gone = (first - first[0]) @ step
    if "edge" in fields:
      body = scene.bodies[0]
      edge = 0.5 + 0.5 * step
      assert np.abs(first[gone.argmax()] + step * body.extent / 2 - edge)[step != 0] < 0.02
      assert gone.max() >= 0.3 and gone.max() - gone[-1] >= 0.7 * gone.max()
    elif "direction" in fields:
      assert (np.diff(gone) > 0).all() and np.ptp(first @ step[::-1]) < 1e-9
    if "speed" in fields:
      low, high = {" slowly": (0, 0.2), "": (0.32, 0.4), " quickly": (0.53, 1)}[fields["speed"]]
      assert low <= gone[-1] <= high
    if "other_color" in fields:
      apart = first - path[fields["other_color"]]
      if fields["relation"] in showcase.RELATIONS:
        side = np.array(showcase.RELATIONS[fields["relation"]])
        assert (apart @ side >= np.mean([b.extent for b in scene.bodies]) + 0.04).all()
      else:
        assert np.abs(apart[[0, -1]]).max(1).min() >= np.mean([b.extent for b in scene.bodies])
        assert np.linalg.norm(apart, axis=-1).min() < 0.06
        front = fields["color"] if fields["relation"] == "in front of" else fields["other_color"]
        assert scene.bodies[-1].color == front


def test_half_the_size_is_the_mean_of_blocks():
  for scene in _scenes(12):
    large = showcase.render(scene, num_frames=3, size=128).astype(float)
    small = showcase.render(scene, num_frames=3, size=64).astype(float)
    pooled = large.reshape(3, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(pooled - small).max() < 0.25 * 255
    assert np.abs(pooled - small).mean() < 0.6


def _drawn_by_pillow(scene, time, size, scale=6):
  """The scene drawn at a multiple of the size, with hard edges, and reduced."""
  edge = size * scale
  top, bottom = map(np.array, showcase.BACKGROUNDS[scene.words["background"]])
  rows = (np.arange(edge) + 0.5) / edge
  column = top + (bottom - top) * rows[:, None] + scene.shade
  canvas = np.broadcast_to(np.rint(np.clip(column, 0, 255))[:, None], (edge, edge, 3))
  image = Image.fromarray(canvas.astype(np.uint8))
  draw: Any = ImageDraw.Draw(image)
  for body in scene.bodies:
    x, y = (edge * c for c in body.center(time))
    half = edge * body.extent / 2
    box = [x - half, y - half, x + half - 1, y + half - 1]
    fill = shapes.COLORS[body.color]
    if body.shape == "square":
      draw.rectangle(box, fill=fill)
    elif body.shape == "circle":
      draw.ellipse(box, fill=fill)
    else:
      draw.polygon([(x, y - half), (x + half, y + half), (x - half, y + half)], fill=fill)
  return np.asarray(image.resize((size, size), Image.Resampling.BOX), float)


def test_frames_equal_a_drawing_by_pillow():
  for scene in _scenes(12, seed=4) + _scenes(4, seed=4, moving=False):
    moving = showcase.PATTERNS[scene.words.pattern].moving
    frames = showcase.render(scene, num_frames=3 if moving else 1, size=64)
    for index in range(len(frames)):
      error = np.abs(frames[index] - _drawn_by_pillow(scene, index / 2, 64))
      assert error.mean() < 1.0, scene
      assert (error.max(-1) > 80).mean() < 0.002, scene


def test_a_window_of_the_frame_gives_the_pixels_of_the_complete_frame():
  size = 41
  grid = ((np.arange(4 * size) + 0.5) / (4 * size)).astype(np.float32)
  for shape, extent, (x, y) in itertools.product(
    shapes.SHAPES, (0.3, 0.97), ((0.5, 0.5), (0.02, 0.9), (1.3, 0.5))
  ):
    canvas = np.full((size, size, 3), 12.75, np.float32)
    shapes.draw(canvas, color="red", shape=shape, center=(x, y), extent=extent)
    u, v = (grid - x) / (extent / 2), (grid - y) / (extent / 2)
    inside = shapes._covers(shape, u[None, :], v[:, None])
    part = inside.reshape(size, 4, size, 4).mean(axis=(1, 3), dtype=np.float32)[..., None]
    expected = part * np.float32(shapes.COLORS["red"]) + (1 - part) * np.float32(12.75)
    np.testing.assert_array_equal(canvas, expected)


def test_a_moving_scene_in_one_frame_is_rejected():
  with pytest.raises(ValueError, match="2 for a moving scene"):
    showcase.render(_scenes(1)[0], num_frames=1, size=32)


def test_the_corpus_is_mp4_and_png_with_seen_and_held_out_prompts_in_turn(tmp_path):
  rows: list[Any] = sample_corpus.write_corpus(
    tmp_path / "a", scenes="showcase", num_clips=24, num_stills=8, num_frames=5, real=False
  )
  assert {row["uri"].split(".")[-1] for row in rows} == {"mp4", "png"}
  training = {row["captions"][0] for row in rows if row["split"] == "train"}
  prompts = (tmp_path / "a/prompts.txt").read_text().splitlines()
  held_out = (tmp_path / "a/held_out_captions.txt").read_text().splitlines()
  assert set(prompts[::2]) < training and len(set(prompts)) == len(prompts) > 20
  assert prompts[1::2] == held_out[: len(prompts) // 2]
  assert len(set(held_out)) == len(held_out) == 256 and not set(held_out) & training
  assert not any("label" in row for row in rows)
  sample_corpus.write_corpus(
    tmp_path / "b", scenes="showcase", num_clips=24, num_stills=8, num_frames=5, real=False,
    workers=1,
  )  # fmt: skip
  for file in (tmp_path / "a").rglob("*.*"):
    other = tmp_path / "b" / file.relative_to(tmp_path / "a")
    assert other.read_bytes() == file.read_bytes(), file


def test_clips_from_stills_move_their_object_inside_the_frame(tmp_path):
  sample_corpus.write_corpus(
    tmp_path, scenes="showcase", num_clips=8, num_stills=160, size=32, num_frames=2, real=False
  )
  requests = [json.loads(line) for line in (tmp_path / "image_requests.jsonl").open()]
  captions = {
    row["uri"]: row["captions"][0] for row in map(json.loads, (tmp_path / "manifest.jsonl").open())
  }
  assert len(requests) >= 2
  for request in requests:
    assert (tmp_path / request["image"]).is_file() and "validation" in request["image"]
    [(subject, direction, background)] = re.findall(
      r"(a \w+ \w+) moves (left|right|up|down)( on .*)?$", request["prompt"]
    )
    assert captions[request["image"]] == subject + background
    with Image.open(tmp_path / request["image"]) as image:
      pixels = np.asarray(image.convert("RGB"), np.float32)
    shape = np.abs(pixels - pixels[:, :1]).max(-1) > 40
    at, axis = np.nonzero(shape), int(direction in ("left", "right"))
    free = at[axis].min() if direction in ("left", "up") else 31 - at[axis].max()
    assert free >= 0.4 * 32 - 1
