"""What is written to a folder of samples is what is read back."""

import numpy as np
import pytest

from walt_t5x.generation.sample_folder import SampleFolder


def _write(folder, index, *, size=32):
  video = np.zeros((9, size, size, 3), np.float32)
  for t in range(9):
    video[t, 10:20, t : t + 10] = (0.9, 0.1, 0.1)
  folder.write(
    index,
    prompt=f"a red square moves right {index}",
    videos={"base": video, "sr1": video.repeat(2, 1).repeat(2, 2)},
    fps=8.0,
    seed=3,
    steps={"base": 10, "sr1": 20},
    fingerprints={"vae": "x"},
  )
  return video


def test_samples_come_back_at_their_own_size_in_order(tmp_path):
  folder = SampleFolder(tmp_path)
  video = _write(folder, 1)
  _write(folder, 0)
  samples = list(folder.samples())
  assert [s.index for s in samples] == [0, 1]
  assert list(samples[0].files) == ["base", "sr1"]
  assert samples[1].prompt == "a red square moves right 1"
  read = folder.read(samples[1], "base")
  assert read.shape == video.shape
  assert np.abs(read - video).mean() < 0.02
  assert folder.read(samples[1], "sr1").shape == (9, 64, 64, 3)


def test_gallery_shows_prompts_and_verdicts_without_any_outside_file(tmp_path):
  folder = SampleFolder(tmp_path)
  _write(folder, 0)
  folder.write_scores({"verdicts": {"0": {"colour": True, "direction": False}}})
  page = folder.write_gallery().read_text()
  assert "a red square moves right 0" in page and "colour" in page
  assert 'src="http' not in page and 'href="http' not in page


def test_an_empty_folder_says_what_was_expected(tmp_path):
  with pytest.raises(FileNotFoundError, match="no samples in"):
    list(SampleFolder(tmp_path).samples())
