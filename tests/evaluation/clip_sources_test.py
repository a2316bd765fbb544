"""Folders of media that other programs wrote."""

import json

import pytest

from tests.beam_jobs import media
from walt_t5x.evaluation.clip_sources import find_media
from walt_t5x.media.containers import IMAGE_SUFFIXES, VIDEO_SUFFIXES


@pytest.mark.parametrize("images", [False, True])
def test_a_folder_of_video2dataset_or_img2dataset_is_a_folder_of_media(images, tmp_path):
  suffix = ".jpg" if images else ".mp4"
  content = media.image() if images else media.video()
  (tmp_path / "00000_stats.json").write_text(json.dumps({"count": 3, "successes": 3}))
  (tmp_path / "00000").mkdir()
  for i in range(3):
    (tmp_path / "00000" / f"{i:09d}{suffix}").write_bytes(content)
    (tmp_path / "00000" / f"{i:09d}.json").write_text(json.dumps({"key": f"{i:09d}"}))
    (tmp_path / "00000" / f"{i:09d}.txt").write_text("a clip")
  for folder in (tmp_path, tmp_path / "00000"):
    found = find_media(folder, images=images)
    assert [one.path.stem for one in found] == ["000000000", "000000001", "000000002"]
    assert all(one.read().ndim == 4 for one in found)


def test_every_suffix_that_preprocessing_reads_is_found_and_hidden_files_are_not(tmp_path):
  for suffix in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
    for name in (f"a{suffix}", f".hidden{suffix}", f".folder/a{suffix}"):
      (tmp_path / name).parent.mkdir(exist_ok=True)
      (tmp_path / name).write_bytes(b"x")
  assert {one.path.name for one in find_media(tmp_path)} == {f"a{s}" for s in VIDEO_SUFFIXES}
  pictures = {one.path.name for one in find_media(tmp_path, images=True)}
  assert pictures == {f"a{s}" for s in IMAGE_SUFFIXES}
