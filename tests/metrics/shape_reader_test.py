"""The reader of shapes on shapes drawn by Pillow, on coded clips, and on what is none of its shapes."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from data.samples import shapes as corpus
from walt_t5x.generation import sample_files
from walt_t5x.metrics import caption_accuracy
from walt_t5x.metrics.shape_reader import SHAPES

_FINE = 8  # pixels are averages of this many by this many


def _drawn(outline, *, size, color="red", extent=0.4, blur=0.0, background=12, frames=3, seed=0):
  """A still clip at a random place; `outline` draws on an ImageDraw within a box, blur is a fraction of the extent."""
  rng = np.random.default_rng(seed)
  edge = extent * size * _FINE
  left, top = rng.uniform(0.02 * size * _FINE, 0.98 * size * _FINE - edge, size=2)
  mask = Image.new("L", (size * _FINE, size * _FINE))
  outline(ImageDraw.Draw(mask), (left, top, left + edge, top + edge))
  mask = mask.filter(ImageFilter.GaussianBlur(blur * edge)).resize(
    (size, size), Image.Resampling.BOX
  )
  ground = Image.new("RGB", mask.size, (background,) * 3)
  ground.paste(Image.new("RGB", mask.size, corpus.COLORS[color]), mask=mask)
  return np.repeat(np.asarray(ground, np.float32)[None] / 255, frames, axis=0)


def _polygon(*points):
  """Draws the polygon whose points are fractions (x, y) of the box."""

  def outline(draw, box):
    x0, y0, x1, y1 = box
    draw.polygon([(x0 + x * (x1 - x0), y0 + y * (y1 - y0)) for x, y in points], fill=255)

  return outline


def _ring(draw, box):
  draw.ellipse(box, outline=255, width=round((box[2] - box[0]) / 5))


_OUTLINES = {
  "square": lambda draw, box: draw.rectangle(box, fill=255),
  "circle": lambda draw, box: draw.ellipse(box, fill=255),
  "triangle": _polygon((0.5, 0), (1, 1), (0, 1)),
}


def _shape(video):
  return caption_accuracy.read_clip(video).shown["shape"]


@pytest.mark.parametrize("blur", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("size", [32, 64])
def test_shapes_that_pillow_draws_are_read_at_every_size_color_and_blur(size, blur):
  cases = list(itertools.product(SHAPES, corpus.COLORS, (0.25, 0.33, 0.42, 0.5)))
  wrong = []
  for seed, (shape, color, extent) in enumerate(cases):
    video = _drawn(
      _OUTLINES[shape], size=size, color=color, extent=extent, blur=blur, frames=1, seed=seed
    )
    if (found := _shape(video)) != shape:
      wrong.append((shape, color, extent, found))
  assert len(wrong) <= 0.02 * len(cases), wrong


@pytest.mark.parametrize("size", [32, 64])
def test_coded_clips_of_the_corpus_are_read(size, tmp_path, monkeypatch):
  monkeypatch.setattr(corpus, "EXTENT_RANGE", (0.25, 0.50))
  monkeypatch.setattr(corpus, "TRAVEL_RANGE", (0.30, 0.40))
  rng = np.random.default_rng(3)
  wrong = []
  for index, words in enumerate(corpus.balanced_vocabulary(rng, 36, moving=True)):
    color, shape, direction = words
    scene = corpus.sample_scene(rng, color=color, shape=shape, direction=direction)
    video = corpus.render(scene, num_frames=5, size=size)
    name = sample_files.write_clip(tmp_path / str(index), video, format="mp4", fps=8.0)
    coded = sample_files.read_clip(
      tmp_path / name, video.shape, sample_files.scale_of(video, "mp4")
    )
    if (found := _shape(coded)) != shape:
      wrong.append((scene.caption, scene.extent, found))
  assert not wrong


@pytest.mark.parametrize("aspect", [0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4])
@pytest.mark.parametrize("sigma", [2.0, 2.5, 3.0, 4.0])
def test_a_featureless_blob_has_no_shape(aspect, sigma):
  y, x = np.mgrid[:32, :32]
  blob = np.exp(-((x - 15.3) ** 2 * aspect + (y - 16.1) ** 2 / aspect) / (2 * sigma**2))
  video = 0.05 + blob[None, ..., None] * np.array([0.8, 0.1, 0.1])
  reading = caption_accuracy.read_clip(video)
  assert reading.shown["color"] == "red" and reading.shown["shape"] is None


@pytest.mark.parametrize(
  "outline",
  [
    pytest.param(_polygon((0, 0), (1, 0), (0.5, 1)), id="apex at the bottom"),
    pytest.param(_polygon((0, 0.5), (1, 0), (1, 1)), id="apex at the left"),
    pytest.param(_polygon((0, 0.3), (1, 0.3), (1, 0.7), (0, 0.7)), id="bar"),
    pytest.param(_ring, id="ring"),
  ],
)
def test_other_outlines_have_no_shape(outline):
  assert _shape(_drawn(outline, size=64)) is None


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mirrored_shape_is_the_same_and_another_caption_is_wrong(shape):
  video = _drawn(_OUTLINES[shape], size=32)
  assert _shape(video[:, :, ::-1]) == shape
  assert (_shape(video[:, ::-1]) == shape) == (shape != "triangle")
  for named in SHAPES:
    assert caption_accuracy.judge(video, f"a {named}").right == {"shape": named == shape}


def test_noise_and_a_bright_background_do_not_change_the_shape():
  rng = np.random.default_rng(0)
  for shape in SHAPES:
    video = _drawn(_OUTLINES[shape], size=32, color="blue", background=240, frames=9)
    assert _shape(np.clip(video + rng.normal(0, 0.04, video.shape), 0, 1)) == shape


def test_the_shape_of_most_frames_counts():
  square, circle = (_drawn(_OUTLINES[s], size=32, frames=9) for s in ("square", "circle"))
  assert _shape(np.concatenate([square[:7], circle[7:]])) == "square"
  assert _shape(np.concatenate([square[:2], circle[2:]])) == "circle"
  hidden = square.copy()
  hidden[4:] = square[0, 0, 0]
  assert _shape(hidden) is None
