"""Conditioning media are read as in preprocessing: upright, blended with white, at the model's rate, cropped."""

import numpy as np
import pytest
from PIL import Image

from tests.media.awkward_media_test import LOSSLESS, SHOWN, TICKS, encode, pictures
from walt_t5x.generation.conditioning_media import read_clip, read_image
from walt_t5x.media import reading, writing


def test_conditioning_media_are_cropped_and_resampled_to_the_models_rate(tmp_path):
  picture = np.zeros((20, 60, 3), np.uint8)
  picture[:, 20:40] = 200
  Image.fromarray(picture).save(tmp_path / "wide.png")
  media = read_image(str(tmp_path / "wide.png"), size=(10, 10), fit="crop")
  np.testing.assert_array_equal(media.frames, np.full((1, 10, 10, 3), 200))
  # 24 fps: every third frame, whose gray level is its number.
  frames = np.repeat(np.arange(25, dtype=np.uint8), 64 * 64 * 3).reshape(25, 64, 64, 3) * 9
  writing.write_video(tmp_path / "fast.mp4", frames, fps=24, crf=0)
  clip = read_clip(
    str(tmp_path / "fast.mp4"), size=(32, 32), fps=8, conditioning_frames=5, fit="crop"
  )
  np.testing.assert_allclose(clip.frames.mean((1, 2, 3)) / 9, np.arange(0, 25, 3), atol=0.35)
  assert clip.at((16, 16)).shape == (9, 16, 16, 3)
  assert reading.resampled(np.arange(10) / 8, 8) == list(range(10))
  assert reading.resampled(np.arange(10) / 8.5, 8) == list(range(10))
  # 30 fps, by hand: the frames shown at 0, 0.125, 0.25, ... up to the end at one second.
  assert reading.resampled(np.arange(30) / 30, 8) == [0, 3, 7, 11, 15, 18, 22, 26]
  with pytest.raises(ValueError, match="got 4 fps, expected at least 8"):
    reading.resampled(np.arange(10) / 4, 8)


def test_uneven_times_select_the_frames_of_a_manual_list(tmp_path):
  """The list that preprocessing is tested with too; the last frame is shown for one more frame duration."""
  assert reading.resampled(np.array(TICKS) / 1000, 8) == [*SHOWN, len(TICKS) - 1]
  # At the model's own rate but with a gap: the frame before it is repeated.
  assert reading.resampled(np.array([0, 1, 2, 5, 6]) / 8, 8) == [0, 1, 2, 2, 2, 3, 4]
  flat = [np.full((64, 64, 3), 10 + 15 * k, np.uint8) for k in range(len(TICKS))]
  file = tmp_path / "uneven.mkv"
  file.write_bytes(encode(flat, ticks=TICKS))
  clip = read_clip(str(file), size=(64, 64), fps=8, conditioning_frames=5)
  levels = np.rint((clip.frames.mean((1, 2, 3)) - 10) / 15).astype(int)
  assert levels.tolist() == [*SHOWN, len(TICKS) - 1]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_clip_filmed_sideways_is_upright(degrees, tmp_path):
  shot, file = pictures(6, 32, 48), tmp_path / "portrait.mp4"
  file.write_bytes(encode(shot, rotation=degrees, rate=8, **LOSSLESS))
  expected = np.stack([np.rot90(picture, degrees // 90) for picture in shot])
  clip = read_clip(str(file), size=expected.shape[1:3], fps=8, conditioning_frames=5)
  np.testing.assert_array_equal(clip.frames, expected)


def test_images_of_other_modes_keep_their_appearance(tmp_path):
  rng = np.random.default_rng(0)
  color, alpha = (
    rng.integers(0, 256, (6, 8, 3), np.uint8),
    rng.integers(0, 256, (6, 8, 1), np.uint8),
  )

  def read(image):
    image.save(tmp_path / "picture.png")
    return read_image(str(tmp_path / "picture.png"), size=(6, 8)).frames[0].astype(int)

  share = alpha / 255
  over_white = share * color + 255 * (1 - share)
  got = read(Image.fromarray(np.concatenate([color, alpha], -1)))
  np.testing.assert_allclose(got, over_white, atol=1.01)
  deep = rng.integers(0, 65536, (6, 8), np.uint16)
  got = read(Image.fromarray(deep))
  np.testing.assert_allclose(got, np.repeat(deep[..., None] / 257, 3, -1), atol=1.01)
