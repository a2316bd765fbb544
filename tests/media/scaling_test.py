"""Scaled frames equal those of ffmpeg's command line to the byte, for colors that change from pixel to pixel."""

import numpy as np
import pytest

from tests.media import conformance
from walt_t5x.media import decoding, reading

pytestmark = pytest.mark.skipif(conformance.FFMPEG is None, reason="needs the ffmpeg command")

H264 = ("-c:v", "libx264", "-crf", "4")


def _colored(count, height, width):
  """Blocks of 3 x 3 pixels in random saturated colors, others in every frame."""
  rng = np.random.default_rng(0)
  blocks = rng.integers(0, 2, (count, -(-height // 3), -(-width // 3), 3)) * 255
  return blocks.repeat(3, 1).repeat(3, 2)[:, :height, :width].astype(np.uint8)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "yuvj420p"])
@pytest.mark.parametrize(("height", "width"), [(96, 128), (240, 320), (90, 160)])
def test_a_scaled_frame_is_that_of_ffmpeg(pix_fmt, height, width, tmp_path):
  frames = _colored(3, height, width)
  raw = tmp_path / "frames.rgb"
  raw.write_bytes(frames.tobytes())
  source = (
    "-f",
    "rawvideo",
    "-pix_fmt",
    "rgb24",
    "-s",
    f"{width}x{height}",
    "-r",
    "8",
    "-i",
    str(raw),
  )
  file = tmp_path / "clip.mkv"
  conformance.ffmpeg(*source, *H264, "-pix_fmt", pix_fmt, str(file))
  scaled = {(side, round(width * side / height)): "area" for side in (64, 48)}
  expected = _shown(file, tmp_path, scaled | {(height, width): "bicubic"})
  for side, wide in scaled:
    got = decoding.native_frames(file.read_bytes(), range(3), size=(side, side))
    left = (wide - side) // 2
    # Saturated colors far apart: a chroma sample in another place would change bytes by dozens.
    np.testing.assert_array_equal(got, expected[side, wide][:, :, left : left + side])
  own_size = expected[height, width]
  np.testing.assert_array_equal(reading.read_video(file.read_bytes()).frames, own_size)
  native = decoding.native_frames(file.read_bytes(), range(3), size=(height, width))
  np.testing.assert_array_equal(native, own_size)


def _shown(file, folder, algorithms):
  """(height, width) -> the frames that one command scales to it, with the algorithm of each."""
  outputs = []
  for (height, width), algorithm in algorithms.items():
    filters = f"scale={width}:{height}:flags={algorithm}+accurate_rnd"
    outputs += ["-vf", filters, "-f", "rawvideo", "-pix_fmt", "rgb24", f"{folder}/{height}.rgb"]
  conformance.ffmpeg("-i", str(file), *outputs)
  return {
    (height, width): np.fromfile(folder / f"{height}.rgb", np.uint8).reshape(3, height, width, 3)
    for height, width in algorithms
  }
