"""One reader: preprocessing, evaluation, reconstruction and generation see the same frames in the same awkward file."""

import gc
import io
import shutil
import struct
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image, ImageOps, PngImagePlugin

from tests.beam_jobs import media
from tests.media.awkward_media_test import LOSSLESS, SHOWN, TICKS, encode, pictures, saved
from walt_t5x.evaluation.held_out_clips import MediaRule, UnreadableClip, clips_of_media
from walt_t5x.evaluation.media_files import find_media
from walt_t5x.files import storage
from walt_t5x.generation.conditioning_media import read_clip, read_image
from walt_t5x.media import reading, writing
from walt_t5x.media.clips import ClipSpec
from walt_t5x.media.decoding import decode
from walt_t5x.media.reading import MediaError

RATE = 12
ENTRY_POINTS = ("preprocess", "evaluate", "reconstruct", "generate")


def frames_of(program, content, folder, *, shape, images=False, suffix=".mp4", fps=None):
  """All frames of a file, [T, H, W, 3], as a program reads them."""
  file = folder / f"a{'.png' if images else suffix}"
  file.write_bytes(content)
  count, size = shape[0], shape[1:3]
  if program == "preprocess":
    spec = ClipSpec(
      resolutions=(size,),
      num_frames=count,
      fps=fps or RATE,
      position="beginning",
      allow_upscale=True,
    )
    return decode(content, "image" if images else "video", spec).frames[size]
  if program == "evaluate":
    return find_media(folder, images=images)[0].read()
  if program == "reconstruct":
    rule = MediaRule(check=lambda shape: None, images=images, fps=fps)
    _, (clip,) = clips_of_media(str(folder), rule)
    return np.stack(list(clip.frames()))
  if images:
    return read_image(str(file), size=size).frames
  return read_clip(str(file), size=size, fps=fps or RATE, conditioning_frames=1).frames


# --- videos ---------------------------------------------------------------------------------------

SHOT = pictures(8, 48, 64)
ALPHA = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[:, None], (48, 1, 1))
_LAYERED = [np.concatenate([picture, ALPHA], axis=-1) for picture in SHOT]
_OVER_WHITE = np.stack(SHOT) * (ALPHA / 255) + 255 * (1 - ALPHA / 255)
H264 = {"codec": "libx264", "options": {"crf": "0"}}
# Name: (file, suffix, frames by numpy, largest and mean difference).
VIDEOS = {
  **{
    f"turned {degrees}": (
      lambda degrees=degrees: encode(SHOT, rotation=degrees, **LOSSLESS),
      ".mp4",
      np.rot90(np.stack(SHOT), degrees // 90, axes=(1, 2)),
      (1, 0.5),
    )
    for degrees in (90, 180, 270)
  },
  "transparent": (
    lambda: encode(_LAYERED, codec="qtrle", container="mov", pix_fmt="argb", source_format="rgba"),
    ".mov",
    _OVER_WHITE,
    (1, 0.5),
  ),
  "ten bits": (lambda: encode(SHOT, pix_fmt="yuv444p10le", **H264), ".mkv", SHOT, (4, 0.5)),
  "full range": (lambda: encode(SHOT, pix_fmt="yuvj444p", **H264), ".mkv", SHOT, (3, 1)),
  "frames out of order": (
    lambda: encode(
      SHOT, codec="libx264", pix_fmt="yuv444p", container="mp4", options={"crf": "0", "bf": "3"}
    ),
    ".mp4",
    SHOT,
    (3, 1),
  ),
  "half chroma": (lambda: encode(SHOT, pix_fmt="yuv420p", **H264), ".mkv", SHOT, (60, 4)),
  "transport stream": (
    lambda: encode(SHOT, pix_fmt="yuv444p", container="mpegts", **H264),
    ".mpg",
    SHOT,
    (3, 1),
  ),
  "odd size": (
    lambda: encode([x[:47, :61] for x in SHOT]),
    ".mkv",
    [x[:47, :61] for x in SHOT],
    (0, 0),
  ),
  "another suffix": (lambda: encode(SHOT), ".avi", SHOT, (0, 0)),
  "tags that are not UTF-8": (
    lambda: encode(SHOT, container="avi").replace(b"Lavf", b"\xff\xfe\xff\xff"),
    ".avi",
    SHOT,
    (0, 0),
  ),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_every_program_sees_the_frames_of_a_video_that_numpy_drew(name, tmp_path):
  make, suffix, expected, (most, mean) = VIDEOS[name]
  content, expected = make(), np.stack(expected)
  for program in ENTRY_POINTS:
    got = frames_of(program, content, tmp_path, shape=expected.shape, suffix=suffix)
    assert got.shape == expected.shape and got.dtype == np.uint8, program
    difference = np.abs(got - expected.astype(float))
    assert difference.max() <= most and difference.mean() <= mean, program


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg command")
@pytest.mark.parametrize("name", [name for name in VIDEOS if name != "transparent"])
def test_every_program_sees_the_frames_of_the_ffmpeg_command(name, tmp_path):
  make, suffix, *_ = VIDEOS[name]
  content = make()
  shape = reading.read_video(content).frames.shape
  flags = ["-v", "error", "-i", "-", "-fps_mode", "passthrough", "-f", "rawvideo"]
  done = subprocess.run(
    ["ffmpeg", *flags, "-pix_fmt", "rgb24", "-"], input=content, capture_output=True, check=True
  )
  expected = np.frombuffer(done.stdout, np.uint8).reshape(-1, *shape[1:]).astype(float)
  for program in ENTRY_POINTS:
    got = frames_of(program, content, tmp_path, shape=expected.shape, suffix=suffix)
    assert got.shape == expected.shape, program
    assert np.abs(got - expected).mean() <= (2 if name == "half chroma" else 1), program


@pytest.mark.parametrize("first", [0, 5_000])
def test_every_program_resamples_uneven_times_to_the_same_frames(first, tmp_path, monkeypatch):
  monkeypatch.setattr("walt_t5x.media.decoding._MIN_DISTINCT", 0.0)
  flat = [np.full((48, 64, 3), 10 + 15 * k, np.uint8) for k in range(len(TICKS))]
  content = encode(flat, ticks=[first + tick for tick in TICKS])
  for program in ("preprocess", "reconstruct", "generate"):
    shape = (len(SHOWN), 48, 64, 3)
    got = frames_of(program, content, tmp_path, shape=shape, suffix=".mkv", fps=8)
    assert ((got[: len(SHOWN), 0, 0, 0] - 10) // 15).tolist() == SHOWN, program
  # Without a rate, every frame.
  for program in ("evaluate", "reconstruct"):
    rule = MediaRule(check=lambda shape: None)
    got = find_media(tmp_path)[0].read()
    if program == "reconstruct":
      _, (clip,) = clips_of_media(str(tmp_path), rule)
      got = np.stack(list(clip.frames()))
    np.testing.assert_array_equal(got, np.stack(flat))


def test_of_frames_with_equal_times_the_first_is_shown():
  # Preprocessing skips a frame whose time is not later.
  assert reading.resampled([0, 0.1, 0.1, 0.2, 0.3, 0.4], 5) == [0, 3, 5]
  assert reading.resampled([0, 0.2, 0.2, 0.4, 0.5, 0.6], 5) == [0, 1, 3, 5]


def cover() -> bytes:
  """An MP4 of sound with cover art."""
  stream = io.BytesIO()
  with av.open(stream, "w", format="mp4") as output:
    sound, art = output.add_stream("aac", rate=16000), output.add_stream("png", rate=1)
    sound.layout, art.pix_fmt, art.disposition = "mono", "rgb24", Disposition.attached_pic
    art.width = art.height = 32
    picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
    output.mux(art.encode(picture) + art.encode(None))
    silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), layout="mono")
    silence.sample_rate, silence.pts = 16000, 0
    output.mux(sound.encode(silence) + sound.encode(None))
  return stream.getvalue()


def damaged() -> bytes:
  content = bytearray(media.video(noise=40))
  middle = content.index(b"mdat") + 2000
  content[middle : middle + 200] = bytes(200)
  return bytes(content)


UNREADABLE = {
  "empty": lambda: b"",
  "not_media": lambda: b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n",
  "no_video_stream": cover,
  "unknown_codec": lambda: media.video(container="matroska").replace(
    b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/AVX"
  ),
  "truncated": lambda: media.video(noise=40)[:9000],
  "corrupt": damaged,
}


@pytest.mark.parametrize("reason", UNREADABLE)
def test_every_program_gives_the_same_reason_and_names_the_file(reason, tmp_path):
  content = UNREADABLE[reason]()
  shape = (24, 64, 64, 3)
  messages = {}
  for program in ENTRY_POINTS:
    with pytest.raises((MediaError, UnreadableClip, ValueError)) as error:
      frames_of(program, content, tmp_path, shape=shape)
    messages[program] = str(error.value)
    cause = error.value if isinstance(error.value, MediaError) else error.value.__cause__
    assert isinstance(cause, MediaError) and cause.reason == reason, program
  for program in ("evaluate", "reconstruct", "generate"):
    assert str(tmp_path / "a.mp4") in messages[program]
    assert messages["preprocess"] in messages[program]


def test_frames_of_another_size_are_named():
  parts = [media.video(container="mpegts", height=size, width=size) for size in (64, 32)]
  with pytest.raises(MediaError, match="got a frame of 32x32 pixels after frames of 64x64"):
    reading.read_video(b"".join(parts))


def test_a_file_is_read_as_it_is_decoded(tmp_path, monkeypatch):
  (tmp_path / "long.mkv").write_bytes(encode(pictures(200, 48, 64)))
  total, read = (tmp_path / "long.mkv").stat().st_size, []

  class Counted(io.FileIO):
    def read(self, size=-1):
      read.append(size)
      return super().read(size)

  monkeypatch.setattr(storage, "open", Counted, raising=False)
  rule = MediaRule(check=lambda shape: None, frames=3)
  _, (clip,) = clips_of_media(str(tmp_path), rule)
  assert len(list(clip.frames())) == 3
  assert read and min(read) >= 0 and sum(read) < total


def test_a_rate_is_the_stated_one(tmp_path):
  # Matroska rounds times to milliseconds: the first two frames are 42 ms apart.
  (tmp_path / "a.mkv").write_bytes(encode(SHOT, rate=24))
  rule = MediaRule(check=lambda shape: None)
  assert [clip.fps for clip in clips_of_media(str(tmp_path), rule)[1]] == [24]
  with reading.open_video(tmp_path / "a.mkv") as video:
    assert video.rate == 24 and video.seconds == pytest.approx(8 / 24, abs=0.002)
    assert (video.size, video.aspect) == ((48, 64), 1.0)
  with reading.open_video(encode(SHOT, sar=Fraction(2, 1), **LOSSLESS)) as video:
    assert video.aspect == 2.0
  assert reading.frame_times(tmp_path / "a.mkv") == pytest.approx(np.arange(8) / 24, abs=0.001)


def test_a_frame_is_freed_without_the_garbage_collector():
  # Decoded frames of a film are megabytes each: those of hundreds of frames would be kept until it runs.
  def held():
    return sum(isinstance(one, av.VideoFrame) for one in gc.get_objects())

  gc.collect()
  gc.disable()
  try:
    most = max(held() for _ in reading.iterate_frames(encode(pictures(12, 48, 64))))
  finally:
    gc.enable()
  assert 1 <= most <= 3


def test_a_stream_that_starts_between_key_frames_begins_with_the_first_complete_frame():
  shot = pictures(40, 48, 64)
  fields = {"codec": "libx264", "pix_fmt": "yuv444p", "options": {"g": "12", "crf": "0"}}
  content = encode(shot, container="mpegts", **fields)
  with av.open(io.BytesIO(content)) as container:
    keys = [packet.pos for packet in container.demux(video=0) if packet.is_keyframe]
  cut = content[keys[1] - 20 * 188 :]
  times = reading.frame_times(cut)
  assert times == pytest.approx(np.arange(28) / RATE)
  seconds, frames = zip(*reading.iterate_frames(cut))
  assert list(seconds) == times
  assert np.abs(np.stack(frames) - np.stack(shot[12:]).astype(float)).max() <= 3


def test_reading_stops_at_the_limit():
  content = writing.encode_video(np.stack(SHOT), suffix=".mp4", fps=8)
  np.testing.assert_array_equal(
    reading.read_video(content, max_frames=4).frames, reading.read_video(content).frames[:4]
  )
  with pytest.raises(ValueError, match="max_pixels"):
    reading.read_video(content, max_pixels=100)


@pytest.mark.parametrize(
  "content",
  [
    b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n",
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
    b"ffconcat version 1.0\nfile /etc/hostname\n",
    b"not media at all",
    # A raw format that FFmpeg would decode without the list of allowed containers.
    b"YUV4MPEG2 W16 H16 F8:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(16 * 16 * 3 // 2),
  ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".sdp", ".y4m"])
def test_playlists_and_invalid_files_are_not_opened(content, suffix, tmp_path):
  with pytest.raises(MediaError) as error:
    reading.read_video(content)
  assert error.value.reason == "not_media"
  file = tmp_path / f"a{suffix}"
  file.write_bytes(content)
  with pytest.raises(MediaError, match=f"a{suffix}: .*containers read: mov,mp4"):
    reading.read_video(file)


# --- pictures -------------------------------------------------------------------------------------

(DRAWN,) = pictures(1, 48, 64)
GRAY = DRAWN[..., 0]
_INKS = np.dstack([255 - DRAWN, np.full_like(GRAY, 40)])


def _exif(orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  return {"exif": exif}


def _by_pillow(content):
  with Image.open(io.BytesIO(content)) as image:
    return np.asarray(ImageOps.exif_transpose(image.convert("RGB")))


def _with_orientation(orientation):
  return saved(Image.fromarray(DRAWN), "JPEG", quality=95, **_exif(orientation))


def _with_invalid_exif(orientation):
  """EXIF whose resolution is -1 / 0 as signed numbers, which Pillow reads but cannot write back."""
  entries = [
    (0x0112, 3, 1, struct.pack("<HH", orientation, 0)),
    (0x011A, 10, 1, struct.pack("<I", 38)),
  ]
  ifd = struct.pack("<H", len(entries)) + b"".join(
    struct.pack("<HHI", *e[:3]) + e[3] for e in entries
  )
  exif = b"Exif\0\0II*\0\x08\0\0\0" + ifd + b"\0\0\0\0" + struct.pack("<ii", -1, 0)
  content = _with_orientation(1)
  return content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:]


def _with_long_texts():
  """A PNG with 3 MiB of text and a profile of 2 MiB."""
  texts = PngImagePlugin.PngInfo()
  for key in "ab":
    texts.add_text(key, key * (3 << 20), zip=True)
  return saved(Image.fromarray(DRAWN), "PNG", pnginfo=texts, icc_profile=bytes(2 << 20))


# Name: (file, expected: an array by numpy, or how Pillow reads it, largest difference).
PICTURES = {
  **{f"orientation {n}": (lambda n=n: _with_orientation(n), _by_pillow, 0) for n in range(1, 9)},
  "16 bits": (
    lambda: saved(Image.fromarray(GRAY.astype(np.uint16) * 257), "PNG"),
    np.dstack([GRAY] * 3),
    0,
  ),
  "CMYK": (
    lambda: saved(Image.fromarray(_INKS, "CMYK"), "JPEG", quality=100),
    DRAWN * (215 / 255),
    6,
  ),
  "transparent": (
    lambda: saved(Image.fromarray(np.dstack([DRAWN, ALPHA])), "PNG"),
    _OVER_WHITE[0],
    1,
  ),
  "gray and transparent": (
    lambda: saved(Image.fromarray(np.dstack([GRAY] * 3 + [ALPHA])).convert("LA"), "PNG"),
    GRAY[..., None] * (ALPHA / 255) + 255 * (1 - ALPHA / 255),
    1,
  ),
  "palette": (lambda: saved(Image.fromarray(DRAWN).quantize(64), "PNG"), _by_pillow, 0),
  "black and white": (lambda: saved(Image.fromarray(GRAY > 90), "PNG"), (GRAY > 90) * 255, 0),
  "turned CMYK": (
    lambda: saved(Image.fromarray(_INKS, "CMYK"), "JPEG", quality=100, **_exif(6)),
    np.rot90(DRAWN * (215 / 255), -1),
    6,
  ),
  "invalid EXIF": (
    lambda: _with_invalid_exif(6),
    lambda _: _by_pillow(_with_orientation(6)),
    0,
  ),
  "long texts": (_with_long_texts, DRAWN, 0),
  "AVIF": (lambda: saved(Image.fromarray(DRAWN), "AVIF", quality=100), _by_pillow, 0),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_program_sees_the_same_picture(name, tmp_path):
  make, expected, most = PICTURES[name]
  content = make()
  expected = expected(content) if callable(expected) else np.asarray(expected, float)
  if expected.ndim == 2 or expected.shape[-1] == 1:
    expected = np.dstack([expected] * 3)
  for program in ENTRY_POINTS:
    got = frames_of(program, content, tmp_path, shape=(1, *expected.shape), images=True)
    assert got.shape == (1, *expected.shape) and got.dtype == np.uint8, program
    assert np.abs(got[0] - expected.astype(float)).max() <= most, program


@pytest.mark.parametrize(
  ("reason", "make"),
  [
    ("empty", lambda: b""),
    ("not_media", media.video),
    ("truncated", lambda: media.image(noise=50)[:2000]),
    ("unknown_range", media.floats),
    ("corrupt", lambda: saved(Image.fromarray(DRAWN), "AVIF")[:100]),
    # PostScript would make Pillow start another program.
    ("not_media", lambda: saved(Image.fromarray(DRAWN), "EPS")),
  ],
)
def test_every_program_gives_the_same_reason_for_a_picture(reason, make, tmp_path):
  for program in ENTRY_POINTS:
    with pytest.raises((MediaError, UnreadableClip, ValueError)) as error:
      frames_of(program, make(), tmp_path, shape=(1, 64, 64, 3), images=True)
    cause = error.value if isinstance(error.value, MediaError) else error.value.__cause__
    assert isinstance(cause, MediaError) and cause.reason == reason, program
    assert program == "preprocess" or str(tmp_path / "a.png") in str(error.value)
