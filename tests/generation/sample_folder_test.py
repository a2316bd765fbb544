"""Samples written to a folder are read back unchanged."""

import json
import locale

import numpy as np
import pytest

from walt_t5x.evaluation import media_files
from walt_t5x.files.damage import Damaged
from walt_t5x.generation import sample_files
from walt_t5x.generation.sample_folder import SampleFolder
from walt_t5x.html import gallery
from walt_t5x.media.pixels import clip_to_uint8


def _write(folder, index, *, size=32):
  video = np.zeros((9, size, size, 3), np.float32)
  for t in range(9):
    video[t, 10:20, t : t + 10] = (0.9, 0.1, 0.1)
  folder.write(
    index,
    prompt=f"a red square moves right {index}",
    videos={"base": video, "sr1": video.repeat(2, 1).repeat(2, 2)},
    fps=12.0,
    seed=3,
    steps={"base": 10, "sr1": 20},
    fingerprints={"vae": "x"},
  )
  return video


def test_samples_are_read_at_their_own_size_in_order(tmp_path):
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


def test_gallery_shows_prompts_and_verdicts_without_external_files(tmp_path):
  folder = SampleFolder(tmp_path)
  _write(folder, 0)
  folder.write_scores({"verdicts": {"0": {"base": {"color": True, "shape": False}}}})
  page = folder.write_gallery().read_text()
  assert "a red square moves right 0" in page and "✓ color" in page and "✗ shape" in page
  assert 'src="http' not in page and 'href="http' not in page


@pytest.mark.parametrize(("limit", "shown"), [(None, 3), (4, 3), (2, 2), (1, 1)])
def test_a_gallery_is_limited_to_a_number_of_samples(tmp_path, limit, shown):
  folder = SampleFolder(tmp_path)
  for index in range(3):
    _write(folder, index, size=8)
  page = folder.write_gallery(limit=limit).read_text()
  assert [f"a red square moves right {i}" in page for i in range(3)] == [
    i < shown for i in range(3)
  ]


def test_several_clips_of_one_prompt_are_told_apart(tmp_path):
  folder, video = SampleFolder(tmp_path), np.zeros((1, 8, 8, 3), np.float32)
  for index, prompt in enumerate(["a", "a", "b", "a"]):
    folder.write(
      index,
      prompt=prompt,
      videos={"base": video},
      fps=8,
      seed=0,
      steps={"base": 1},
      fingerprints={},
    )
  # The count is that of all samples, however many are shown.
  shown = [item.details["clip"] for item in folder.gallery_items(limit=3)]
  assert shown == ["1 of 3 of this prompt", "2 of 3 of this prompt", None]


def test_a_card_of_the_gallery_matches_the_sidecar(tmp_path, monkeypatch):
  folder, shown = SampleFolder(tmp_path), {}

  def write_gallery(path, items, *, title):
    shown.update(path=path, title=title, items=list(items))
    return path

  monkeypatch.setattr(gallery, "write_gallery", write_gallery)
  _write(folder, 4, size=8)
  folder.write_scores({"verdicts": {"4": {"base": {"color": True}}}})
  assert folder.write_gallery() == tmp_path / "gallery.html"
  assert (shown["path"], shown["title"]) == (tmp_path / "gallery.html", "Generated videos")
  (item,) = shown["items"]
  assert (item.prompt, item.seed, item.step) == ("a red square moves right 4", 3, 10)
  assert item.number == 4 and item.verdict == {"base": {"color": True}}
  assert [(s.name, s.fps, s.frames.shape, s.file) for s in item.stages] == [
    ("base", 12.0, (9, 8, 8, 3), "00004_base.mp4"),
    ("sr1", 12.0, (9, 16, 16, 3), "00004_sr1.mp4"),
  ]
  assert [s.playable for s in item.stages] == [tmp_path / s.file for s in item.stages]
  folder.write_gallery(title="Mine")
  assert shown["title"] == "Mine"
  # Verdicts of earlier versions were not apart by stage.
  folder.write_scores({"verdicts": {"4": {"base color": True, "sr1 color": False}}})
  folder.write_gallery()
  assert shown["items"][0].verdict == {}


def test_samples_are_ordered_by_number_for_any_number_of_digits(tmp_path):
  folder = SampleFolder(tmp_path)
  for index in (100_000, 99_999, 7):
    folder.sidecar(index).write_text(json.dumps({"index": index, "prompt": "", "stages": {}}))
  assert [sample.index for sample in folder.samples()] == [7, 99_999, 100_000]


def test_folders_are_read_as_utf_8_in_any_locale(tmp_path):
  folder = SampleFolder(tmp_path)
  stages = {"base": {"file": "é.mp4", "files": {"mp4": "é.mp4"}}}
  sidecar = {"index": 0, "prompt": "été", "stages": stages}
  folder.sidecar(0).write_text(json.dumps(sidecar, ensure_ascii=False), encoding="utf-8")
  (tmp_path / "é.mp4").write_bytes(b"")
  (tmp_path / "scores.json").write_text(
    '{"verdicts": {"0": {"base": {"été": true}}}}', encoding="utf-8"
  )
  before = locale.setlocale(locale.LC_CTYPE)
  locale.setlocale(locale.LC_CTYPE, "C")
  try:
    assert [sample.prompt for sample in folder.samples()] == ["été"]
    assert folder.finished(0)
    with pytest.raises(KeyError, match="shape"):
      # The scores are read before the first clip.
      folder.write_gallery()
  finally:
    locale.setlocale(locale.LC_CTYPE, before)


def test_raw_latents_are_written_on_request(tmp_path):
  folder, clip = SampleFolder(tmp_path), np.zeros((1, 8, 8, 3), np.uint8)
  latents = {"base": np.arange(24, dtype=np.float32).reshape(1, 1, 2, 3, 4)}
  common = {"prompt": "p", "videos": {"base": clip}, "fps": 8.0, "seed": 0}
  common |= {"steps": {"base": 1}, "fingerprints": {}}
  for index, formats, given in (
    (0, ("png", "latents"), latents),
    (1, ("png",), latents),
    (2, ("png", "latents"), None),
  ):
    folder.write(index, formats=formats, latents=given, **common)
    assert folder.finished(index)
  np.testing.assert_array_equal(np.load(tmp_path / "00000_base.npy"), latents["base"])
  assert [file.name for file in tmp_path.glob("*.npy")] == ["00000_base.npy"]


def test_the_manifest_has_the_fields_of_each_sample(tmp_path):
  folder, clip = SampleFolder(tmp_path), np.zeros((1, 8, 8, 3), np.uint8)
  common = {"videos": {"base": clip}, "fps": 8.0, "seed": 0, "formats": ("png",)}
  common |= {"steps": {"base": 1}, "fingerprints": {}}
  folder.write(10, prompt="b", **common)
  folder.write(9, prompt="", details={"label": 0, "given": None, "more": 1}, **common)
  rows = [json.loads(line) for line in folder.write_manifest().read_text().splitlines()]
  assert rows == [
    {"index": 9, "prompt": "", "label": 0, "files": {"base": {"png": "00009_base_frames"}}},
    {"index": 10, "prompt": "b", "files": {"base": {"png": "00010_base_frames"}}},
  ]


def test_a_sample_is_finished_only_once_all_its_files_exist(tmp_path, monkeypatch):
  folder = SampleFolder(tmp_path)
  written = []

  def failing(path, frames, **options):
    if written:
      raise KeyboardInterrupt
    written.append(path.with_name(f"{path.name}.mp4"))
    written[0].touch()
    return written[0].name

  with monkeypatch.context() as patch:
    patch.setattr(sample_files, "write_clip", failing)
    with pytest.raises(KeyboardInterrupt):
      _write(folder, 0)
  assert written and not folder.finished(0) and not list(tmp_path.glob("*.json"))
  _write(folder, 0)
  assert folder.finished(0)


def test_a_deleted_sample_leaves_no_file_and_the_others_stay(tmp_path):
  folder = SampleFolder(tmp_path)
  for index, formats in ((0, ("mp4",)), (1, ("mp4", "png", "latents"))):
    folder.write(
      index,
      prompt="a",
      videos={"base": np.zeros((2, 16, 16, 3))},
      latents={"base": np.zeros((1, 2, 4, 4, 4))},
      fps=8.0,
      seed=0,
      steps={"base": 1},
      fingerprints={},
      formats=formats,
    )
  folder.delete(1)
  folder.delete(2)
  assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == [
    "00000.json",
    "00000_base.mp4",
  ]
  assert folder.finished(0) and not folder.finished(1)


def test_frames_of_an_interrupted_run_are_replaced(tmp_path):
  for length in (5, 3):
    clip = np.full((length, 8, 8, 3), 10 * length, np.uint8)
    name = sample_files.write_clip(tmp_path / "00000_base", clip, format="png", fps=8)
  np.testing.assert_allclose(sample_files.read_clip(tmp_path / name, clip.shape, 1), clip / 255)
  assert [file.name for file in tmp_path.iterdir()] == ["00000_base_frames"]


def test_an_empty_folder_is_rejected_with_the_expected_contents(tmp_path):
  with pytest.raises(FileNotFoundError, match="no samples in"):
    list(SampleFolder(tmp_path).samples())


@pytest.mark.parametrize("format", ["mp4", "png", "gif"])
def test_a_flipped_bit_in_a_sample_is_found_before_it_is_scored(tmp_path, format):
  folder = SampleFolder(tmp_path)
  video = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
  options = {"fps": 8, "seed": 0, "steps": {"base": 1}, "fingerprints": {}}
  folder.write(0, prompt="a", videos={"base": video}, formats=(format,), **options)
  (sample,) = folder.samples()
  (media,) = media_files.find_media(tmp_path)
  np.testing.assert_array_equal(media.read(), clip_to_uint8(folder.read(sample, "base")))
  file = sample.files["base"]
  file = min(file.glob("*")) if file.is_dir() else file
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)
  with pytest.raises(Damaged, match=r"00000_base.* was changed after it was written.*00000.json"):
    media.read()
