"""Folders of media that other programs wrote."""

import json
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.beam_jobs import media
from tests.media import conformance
from walt_t5x.evaluation.clip_sources import PlannedClip, read_clip
from walt_t5x.evaluation.media_files import find_media
from walt_t5x.media import decoding
from walt_t5x.media.clips import ClipSpec
from walt_t5x.media.containers import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from walt_t5x.metrics.protocols import PROTOCOLS
from walt_t5x.metrics.protocols.protocol import ClipRule, Geometry


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
    with pytest.raises(FileNotFoundError, match=f", only 3 {'images' if images else 'videos'}: "):
      find_media(folder, images=not images)


def test_every_suffix_that_preprocessing_reads_is_found_and_hidden_files_are_not(tmp_path):
  for suffix in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
    for name in (f"a{suffix}", f".hidden{suffix}", f".folder/a{suffix}"):
      (tmp_path / name).parent.mkdir(exist_ok=True)
      (tmp_path / name).write_bytes(b"x")
  assert {one.path.name for one in find_media(tmp_path)} == {f"a{s}" for s in VIDEO_SUFFIXES}
  pictures = {one.path.name for one in find_media(tmp_path, images=True)}
  assert pictures == {f"a{s}" for s in IMAGE_SUFFIXES}


needs_ffmpeg = pytest.mark.skipif(conformance.FFMPEG is None, reason="needs the ffmpeg command")
UCF101 = PROTOCOLS["ucf101_class_conditional"]
K600 = PROTOCOLS["k600_frame_prediction"]
SHAPES = {
  "4:3": "320x240",
  "large": "640x480",
  "wide": "400x226",
  "portrait": "240x320",
  "odd": "321x243",
}


def _encode(path, *, size, rate=25, seconds=2):
  source = f"testsrc2=size={size}:rate={rate}:duration={seconds}"
  command = [
    "ffmpeg",
    "-v",
    "error",
    "-f",
    "lavfi",
    "-i",
    source,
    "-c:v",
    "ffv1",
    "-pix_fmt",
    "bgr0",
    "-y",
    str(path),
  ]
  subprocess.run(command, check=True)


def _clip(folder):
  (one,) = find_media(folder)
  return PlannedClip(media=one, fold=0, number=0)


def _training_pixels(path, **fields):
  spec = ClipSpec(**{"resolutions": ((128, 128),), "num_frames": 16, "fps": 25.0, **fields})
  return decoding.decode(path.read_bytes(), "video", spec).frames[128, 128]


@needs_ffmpeg
@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
def test_a_reference_is_the_pixels_of_its_training_clip(size, tmp_path):
  path = tmp_path / "a.mkv"
  _encode(path, size=size, seconds=1)
  for rule, position in ((ClipRule.FIRST, "beginning"), (ClipRule.CENTRAL, "centre")):
    expected = _training_pixels(path, position=position)
    np.testing.assert_array_equal(read_clip(_clip(tmp_path), UCF101, rule), expected)
  # ffmpeg's command line scales the shorter side and cuts the center to the same picture.
  width, height = map(int, size.split("x"))
  scaled = [round(side * 128 / min(width, height)) for side in (width, height)]
  left, top = ((side - 128) // 2 for side in scaled)
  filters = f"scale={scaled[0]}:{scaled[1]}:flags=area,crop=128:128:{left}:{top}"
  command = [conformance.FFMPEG, "-v", "error", "-i", str(path), "-frames:v", "16", "-vf", filters]
  command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
  raw = subprocess.run(command, check=True, capture_output=True).stdout
  theirs = np.frombuffer(raw, np.uint8).reshape(16, 128, 128, 3).astype(float)
  assert np.abs(theirs - read_clip(_clip(tmp_path), UCF101, ClipRule.FIRST)).max() <= 1
  stretched = read_clip(_clip(tmp_path), UCF101.replace(geometry=Geometry.STRETCH), ClipRule.FIRST)
  assert np.abs(theirs - stretched).mean() > 10


@needs_ffmpeg
def test_native_frames_have_the_geometry_of_training_clips(tmp_path):
  _encode(tmp_path / "a.mkv", size="320x240")
  native = UCF101.replace(fps=None)
  for rule in (ClipRule.FIRST, ClipRule.CENTRAL):
    expected = read_clip(_clip(tmp_path), UCF101, rule)
    np.testing.assert_array_equal(read_clip(_clip(tmp_path), native, rule), expected)
  entire = read_clip(_clip(tmp_path), native.replace(size=None), ClipRule.FIRST)
  np.testing.assert_array_equal(entire, find_media(tmp_path)[0].read()[:16])


@needs_ffmpeg
def test_references_have_the_rate_of_the_protocol_and_a_slower_file_is_named(tmp_path):
  _encode(tmp_path / "fast.mkv", size="128x128", rate=50)
  got = read_clip(_clip(tmp_path), UCF101, ClipRule.FIRST)
  np.testing.assert_array_equal(got, find_media(tmp_path)[0].read()[: 2 * 16 : 2])
  (tmp_path / "fast.mkv").unlink()
  _encode(tmp_path / "slow.mkv", size="128x128", rate=15)
  with pytest.raises(
    ValueError, match=r"slow.mkv.* at 25 fps.*exclude the file, or set --frames or --fps"
  ):
    read_clip(_clip(tmp_path), UCF101, ClipRule.FIRST)


@needs_ffmpeg
def test_a_smaller_scoring_size_is_reached_through_the_training_size(tmp_path):
  _encode(tmp_path / "a.mkv", size="320x240")
  got = read_clip(_clip(tmp_path), K600, ClipRule.FIRST)
  training = _training_pixels(tmp_path / "a.mkv", position="beginning").astype(float)
  # TF1's bilinear rule at half the size takes every second pixel.
  np.testing.assert_allclose(got, training[:, ::2, ::2], atol=1)


@needs_ffmpeg
def test_only_the_frames_of_a_clip_are_decoded(tmp_path):
  """The rest of the file may be missing."""
  _encode(tmp_path / "a.mkv", size="320x240", seconds=6)
  entire = read_clip(_clip(tmp_path), UCF101, ClipRule.FIRST)
  content = (tmp_path / "a.mkv").read_bytes()
  (tmp_path / "a.mkv").write_bytes(content[: len(content) // 2])
  for protocol in (UCF101, UCF101.replace(fps=None)):
    np.testing.assert_array_equal(read_clip(_clip(tmp_path), protocol, ClipRule.FIRST), entire)


@needs_ffmpeg
@pytest.mark.parametrize("name", ["video", "image"])
def test_a_row_of_a_manifest_is_scored_by_the_part_that_is_trained_on(name, tmp_path):
  """The window and the crop of curated clips; ffmpeg's command line cuts them out too."""
  _encode(tmp_path / "a.mkv", size="320x240", seconds=3)
  (video,) = find_media(tmp_path)
  Image.fromarray(video.read()[0]).save(tmp_path / "a.png")
  rows = [
    {"start_seconds": 1.0, "end_seconds": 2.2, "crop": [0.1, 0.9, 0.2, 1.0]},
    {"start_seconds": 2.0},
    {"crop": [0.0, 0.5, 0.0, 0.5]},
  ]
  uri, images = ("a.mkv", False) if name == "video" else ("a.png", True)
  manifest = tmp_path / "clips.jsonl"
  lines = [{"uri": "a.mkv" if images else "a.png"}, *({"uri": uri, **row} for row in rows)]
  manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
  media = find_media(manifest, images=images, split="train")
  assert [one.name for one in media] == ["a_1-2.2s_0.1-0.9-0.2-1", "a_2-s", "a_0-0.5-0-0.5"]
  protocols = [UCF101] if images else [UCF101, UCF101.replace(fps=None)]
  stretch = UCF101.replace(geometry=Geometry.STRETCH, size=None)
  content = (tmp_path / uri).read_bytes()
  for one, row in zip(media, rows):
    spec = ClipSpec(resolutions=((128, 128),), num_frames=16, fps=25.0, allow_upscale=True)
    crop = row.get("crop")
    times = {key: value for key, value in row.items() if key != "crop"}
    trained = decoding.decode(content, name, spec, crop=crop, **times).frames[128, 128]
    clip = PlannedClip(media=one, fold=0, number=0)
    for protocol in protocols:
      np.testing.assert_array_equal(read_clip(clip, protocol, ClipRule.CENTRAL), trained)
    top, bottom, left, right = crop or (0, 1, 0, 1)
    filters = f"crop={round(320 * (right - left))}:{round(240 * (bottom - top))}:{round(320 * left)}:{round(240 * top)}"
    if not images:
      start, end = row.get("start_seconds", 0), row.get("end_seconds", 3)
      filters = f"trim=start={start}:end={end},{filters}"
    command = [conformance.FFMPEG, "-v", "error", "-i", str(tmp_path / uri), "-vf"]
    command += [filters, "-f", "rawvideo", "-pix_fmt", "rgb24"]
    raw = subprocess.run([*command, "-"], check=True, capture_output=True).stdout
    entire = one.read()
    np.testing.assert_array_equal(entire, np.frombuffer(raw, np.uint8).reshape(entire.shape))
    first = read_clip(clip, stretch.replace(fps=None), ClipRule.FIRST)
    np.testing.assert_array_equal(first, entire[:16])


def test_a_wrong_crop_of_a_row_is_named(tmp_path):
  (tmp_path / "clips.jsonl").write_text('{"uri": "a.mkv"}\n{"uri": "a.mkv", "crop": [0.5, 0.2]}\n')
  with pytest.raises(ValueError, match=r"clips.jsonl:2 has a wrong field: crop: got \[0.5, 0.2\]"):
    find_media(tmp_path / "clips.jsonl")
