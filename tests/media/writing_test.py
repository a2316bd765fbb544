"""Video files: written clips are read back, players find their metadata, hostile or unusual input is rejected."""

import io

import av
import numpy as np
import pytest
from PIL import Image

from walt_t5x.media import geometry, pixels, reading, writing


def _clip(num_frames=9, height=48, width=64):
  """A smooth color field that drifts, so that codecs and subsampled chroma change it little."""
  t, y, x = np.mgrid[:num_frames, :height, :width].astype(np.float32)
  channels = (x / width, y / height, 0.5 + 0.4 * np.sin(x / 20 + y / 30 + t / 3))
  return np.stack(channels, axis=-1).astype(np.float32)


@pytest.mark.parametrize(
  ("suffix", "limit"), [(".mp4", 3), (".webm", 4), (".avi", 4), (".gif", 12), (".webp", 4)]
)
def test_round_trip(suffix, limit, tmp_path):
  frames = _clip()
  path = writing.write_video(tmp_path / f"a/clip{suffix}", frames, fps=8)
  if suffix == ".webp":  # FFmpeg has no decoder for animated WebP
    with Image.open(path) as image:
      got = []
      for index in range(image.n_frames):
        image.seek(index)
        got.append(np.asarray(image.convert("RGB")))
        assert image.info["duration"] == 125
      got = np.stack(got)
  else:
    got, fps = reading.read_video(path)
    assert fps == pytest.approx(8, rel=0.05 if suffix == ".gif" else 1e-3)
  assert got.shape == frames.shape and got.dtype == np.uint8
  assert np.abs(got / 255.0 - frames).mean() * 255 < limit
  assert sorted(p.name for p in path.parent.iterdir()) == [path.name]


@pytest.mark.parametrize("fps", [8, 12.5, 24, 30])
def test_a_gif_keeps_equal_frames_and_its_duration(fps, tmp_path):
  """Pillow as the reader, and FFmpeg as ours."""
  moving = writing.clip_to_uint8(_clip(4))
  frames = moving[[0, 0, 0, 1, 2, 2, 3, 3]]
  path = writing.write_video(tmp_path / "clip.gif", frames, fps=fps)
  with Image.open(path) as image:
    assert image.n_frames == len(frames) and image.info["loop"] == 0
    shown, milliseconds = [], []
    for index in range(image.n_frames):
      image.seek(index)
      shown.append(np.asarray(image.convert("RGB"), np.float32))
      milliseconds.append(image.info["duration"])
  # Times are in hundredths of a second.
  assert np.abs(np.array(milliseconds) - 1000 / fps).max() < 10
  assert sum(milliseconds) == pytest.approx(1000 * len(frames) / fps, abs=10)
  assert np.abs(np.stack(shown) - frames).mean() < 12
  clip = reading.read_video(path)
  assert len(clip.frames) == len(frames)
  np.testing.assert_array_equal(clip.frames, np.stack(shown))


@pytest.mark.parametrize("color", [(230, 40, 40), (40, 200, 60), (50, 80, 235), (128, 128, 128)])
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".avi"])
def test_flat_colors_are_preserved(suffix, color):
  frames = np.broadcast_to(np.array(color, np.uint8), (3, 32, 32, 3))
  got = reading.read_video(writing.encode_video(frames, suffix=suffix, fps=8)).frames
  assert np.abs(got.astype(int) - np.array(color)).max() <= 4


@pytest.mark.parametrize(("suffix", "shape"), [(".mp4", (34, 64)), (".gif", (33, 63))])
def test_odd_sizes_are_padded_only_if_the_codec_requires_it(suffix, shape):
  frames = _clip(height=33, width=63)
  got = reading.read_video(writing.encode_video(frames, suffix=suffix, fps=8)).frames
  assert got.shape[1:3] == shape
  assert np.abs(got[:, :33, :63] / 255.0 - frames).mean() < 0.05


def test_scale_repeats_pixels():
  frames = (np.arange(2 * 4 * 4 * 3) % 256).astype(np.uint8).reshape(2, 4, 4, 3)
  np.testing.assert_array_equal(
    geometry.upscale(frames, 3), np.kron(frames, np.ones((1, 3, 3, 1), np.uint8))
  )
  got = reading.read_video(writing.encode_video(frames, suffix=".mp4", fps=8, scale=4)).frames
  assert got.shape == (2, 16, 16, 3)


@pytest.mark.parametrize("num_frames", [1, 2, 17])
@pytest.mark.parametrize("fps", [8, 23.976, 30.0])
def test_frames_and_duration_agree(num_frames, fps):
  content = writing.encode_video(_clip(num_frames), suffix=".mp4", fps=fps)
  assert len(reading.read_video(content).frames) == num_frames
  with av.open(io.BytesIO(content)) as container:
    assert container.duration / 1e6 == pytest.approx(num_frames / fps, rel=0.01)
    assert float(container.streams.video[0].average_rate) == pytest.approx(fps, rel=1e-3)


def test_mp4_starts_with_its_index_and_tags_its_colors():
  content = writing.encode_video(_clip(), suffix=".mp4", fps=8)
  assert 0 < content.index(b"moov") < content.index(b"mdat")
  with av.open(io.BytesIO(content)) as container:
    stream = container.streams.video[0]
    assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p"
    assert stream.codec_context.colorspace == 6 and stream.codec_context.color_range == 1


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".avi", ".gif", ".webp"])
def test_the_same_frames_give_the_same_bytes(suffix):
  first = writing.encode_video(_clip(), suffix=suffix, fps=8)
  rng = np.random.default_rng(0)
  for _ in range(10):
    # Allocators give memory again with its old contents.
    _ = [np.full(n, n % 256, np.uint8) for n in rng.integers(1, 400_000, 20)]
    assert writing.encode_video(_clip(), suffix=suffix, fps=8) == first


def test_floats_are_rounded_and_clipped():
  values = np.array([-0.2, 0.0, 0.5, 1.0, 1.7], np.float32)
  frames = np.broadcast_to(values[:, None, None, None], (5, 2, 2, 3))
  np.testing.assert_array_equal(pixels.clip_to_uint8(frames)[:, 0, 0, 0], [0, 0, 128, 255, 255])
  assert pixels.clip_to_uint8(frames.astype(np.float16)).dtype == np.uint8


@pytest.mark.parametrize(
  ("frames", "message"),
  [
    (np.zeros((2, 3, 8, 8, 3)), "one clip of a batch"),
    (np.zeros((3, 8, 8, 1)), "T, H, W, 3"),
    (np.zeros((0, 8, 8, 3)), "no empty axis"),
    (np.zeros((3, 8, 8, 3), np.int64), "int64"),
    (np.full((3, 8, 8, 3), np.nan), "diverged"),
  ],
)
def test_invalid_arrays_are_rejected(frames, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    writing.write_video(tmp_path / "a.mp4", frames, fps=8)


def test_invalid_names_and_rates_are_rejected_and_nothing_is_written(tmp_path):
  with pytest.raises(ValueError, match=r"'\.mov'.*\.mp4"):
    writing.write_video(tmp_path / "a.mov", _clip(), fps=8)
  with pytest.raises(ValueError, match="fps"):
    writing.write_video(tmp_path / "a.mp4", _clip(), fps=0)
  with pytest.raises(ValueError, match="scale"):
    writing.write_video(tmp_path / "a.mp4", _clip(), fps=8, scale=0)
  assert not list(tmp_path.iterdir())
