"""Times of frames, whatever the container says: each frame shows its own number, in bars of black and white."""

import functools
import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from walt_t5x.media import reading
from walt_t5x.media.clips import ClipSpec
from walt_t5x.media.decoding import decode
from walt_t5x.media.rules import Rejected

RATE, COUNT = 12, 120
SIZE = (32, 128)
SOUND = {
  "mp4": "aac",
  "mov": "aac",
  "matroska": "aac",
  "webm": "libopus",
  "mpegts": "mp2",
  "avi": "mp3",
}
# AVI stores frames in the order of decoding, without times.
FILES = [
  (container, codec, b_frames)
  for container, codecs in {
    "mp4": ("libx264", "mpeg4"),
    "mov": ("libx264", "mpeg4"),
    "matroska": ("libx264", "mpeg4"),
    "webm": ("libvpx-vp9",),
    "mpegts": ("libx264", "mpeg2video"),
    "avi": ("libx264", "mpeg4", "mjpeg"),
  }.items()
  for codec in codecs
  for b_frames in ((0, 1, 3) if container == "avi" else (0, 3))
  if not b_frames or codec in ("libx264", "mpeg4", "mpeg2video")
]


def drawn(number: int) -> np.ndarray:
  bits = [number >> i & 1 for i in range(8)]
  picture = np.repeat(np.repeat(np.uint8(bits)[None, :, None] * 180 + 40, 3, 2), 16, 1).repeat(
    32, 0
  )
  # Unequal corners, so that no two of its orientations are equal.
  picture[:6, :64], picture[:6, 64:], picture[26:] = 220, 40, 130
  return picture


def number_of(frame: np.ndarray) -> int:
  bits = frame[8:24].mean((0, 2)).reshape(8, 16)[:, 4:12].mean(1) > 130
  return int(sum(int(bit) << i for i, bit in enumerate(bits)))


@functools.cache
def made(container, codec, b_frames, *, late=0.0, sound=0.0, count=COUNT) -> bytes:
  """A clip of `count` frames; `late` and `sound` are the start of the picture and the end of the sound in seconds."""
  buffer = io.BytesIO()
  with av.open(buffer, "w", format=container) as file:
    options = {"g": "24"} | ({"bf": str(b_frames)} if b_frames else {})
    if codec == "libx264":
      options |= {"preset": "ultrafast", "crf": "10", "bf": str(b_frames), "b_strategy": "0"}
    if codec == "libvpx-vp9":
      options = {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0", "g": "24"}
    if codec in ("mpeg4", "mpeg2video", "mjpeg"):
      options |= {"qmin": "2", "qmax": "4"}
    stream = file.add_stream(codec, rate=25 if codec == "mpeg2video" else RATE, options=options)
    stream.height, stream.width = SIZE
    stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    stream.time_base = stream.codec_context.time_base = Fraction(1, RATE)
    audio = file.add_stream(SOUND[container], rate=48000, layout="mono") if sound else None
    for number in range(count):
      frame = av.VideoFrame.from_ndarray(drawn(number), format="rgb24")
      frame.pts, frame.time_base = number + round(late * RATE), Fraction(1, RATE)
      file.mux(stream.encode(frame))
    file.mux(stream.encode(None))
    if audio is not None:
      for start in range(0, round(sound * 48000), 4800):
        quiet = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), "s16", "mono")
        quiet.pts, quiet.sample_rate, quiet.time_base = start, 48000, Fraction(1, 48000)
        file.mux(audio.encode(quiet))
      file.mux(audio.encode(None))
  return buffer.getvalue()


def cut(content, start=None, *, fps=6, num_frames=5):
  """Numbers of the frames of a clip."""
  spec = ClipSpec(resolutions=(SIZE,), num_frames=num_frames, fps=fps, allow_upscale=True)
  return [number_of(f) for f in decode(content, "video", spec, start_seconds=start).frames[SIZE]]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_frame_is_shown_at_its_time(file):
  content = made(*file)
  shown = [(seconds, number_of(frame)) for seconds, frame in reading.iterate_frames(content)]
  assert [number for _, number in shown] == list(range(COUNT))
  np.testing.assert_allclose([s for s, _ in shown], np.arange(COUNT) / RATE, atol=0.0015)
  # The last start is found by seeking.
  for start in (0.0, 1.0, 8.5):
    assert cut(content, start) == [round(start * RATE) + 2 * k for k in range(5)]


@pytest.mark.parametrize("empty", [0, 1, 12])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_what_an_avi_with_b_frames_stores_empty_does_not_move_its_frames_or_its_end(codec, empty):
  """A file that was remuxed from MP4 has a clock of twice the rate, and may have empty frames after the first one."""
  target = io.BytesIO()
  with (
    av.open(io.BytesIO(made("avi", codec, 3))) as old,
    av.open(target, "w", format="avi") as new,
  ):
    stream = new.add_stream_from_template(old.streams.video[0])
    stream.time_base = Fraction(1, 2 * RATE)
    for number, packet in enumerate(old.demux(video=0)):
      if packet.dts is not None:
        packet.dts = packet.pts = 2 * (number + (empty if number else 0))
        packet.time_base, packet.stream = stream.time_base, stream
        new.mux(packet)
  content = target.getvalue()
  with reading.open_video(content) as video:
    assert video.rate == RATE and video.end == pytest.approx(COUNT / RATE, abs=0.06)
  shown = [(seconds, number_of(frame)) for seconds, frame in reading.iterate_frames(content)]
  assert [number for _, number in shown] == list(range(COUNT))
  np.testing.assert_allclose([s for s, _ in shown], np.arange(COUNT) / RATE, atol=0.0015)
  spec = ClipSpec(resolutions=(SIZE,), num_frames=9, fps=12, position="random", allow_upscale=True)
  last = decode(content, "video", spec, draw=0.9999).frames[SIZE]
  assert number_of(last[-1]) >= COUNT - 2


# One per container; AVI has no times that sound could move.
SOUNDED = {f[0]: f for f in FILES if f[0] != "avi"}.values()


@pytest.mark.parametrize("file", SOUNDED, ids=str)
def test_sound_moves_no_frame(file):
  alone = made(*file)
  for late, sound in ((0.0, 30.0), (2.0, 30.0), (2.0, 12.0), (0.0, 4.0)):
    content = made(*file, late=late, sound=sound)
    with reading.open_video(content) as video:
      begin, end, seconds = video.begin, video.end, video.seconds
    assert begin == pytest.approx(late, abs=0.05)
    assert end == pytest.approx(begin + 10, abs=0.01) and seconds == pytest.approx(10, abs=0.01)
    assert cut(content) == cut(alone)
    assert cut(content, begin + 0.5) == [6, 8, 10, 12, 14]
    if late:
      with pytest.raises(Rejected, match=r"the clip starts at 1\.000 s, its picture at 2\.0"):
        cut(content, 1.0)


def test_the_end_of_a_cut_file_is_not_the_end_of_its_sound():
  content = made("webm", "libvpx-vp9", 0, sound=10.0)
  with reading.open_video(content[: len(content) // 2]) as video:
    assert video.end == pytest.approx(10, abs=0.1)
  with pytest.raises(reading.MediaError, match=r"stated end is 10\.0") as error:
    cut(content[: len(content) // 4], 7.0)
  assert error.value.reason == "truncated"


@pytest.mark.parametrize("sound", [0.0, 10.0])
def test_a_live_recording_has_the_duration_of_its_packets(sound):
  class Pipe(io.RawIOBase):
    content = b""

    def writable(self):
      return True

    def write(self, data):
      self.content += bytes(data)
      return len(data)

  source = made("webm", "libvpx-vp9", 0, sound=sound)
  pipe = Pipe()
  with av.open(io.BytesIO(source)) as read, av.open(pipe, "w", format="webm") as live:
    streams = {s.index: live.add_stream_from_template(s) for s in read.streams}
    for packet in read.demux():
      if packet.dts is not None:
        packet.stream = streams[packet.stream.index]
        live.mux(packet)
  with av.open(io.BytesIO(pipe.content)) as written:
    assert written.duration is None
  with reading.open_video(pipe.content) as video:
    assert video.end == pytest.approx(10, abs=0.1)
  assert cut(pipe.content) == cut(source)


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_times_that_wrap_go_on(codec):
  # MPEG-TS counts 1/90000 s in 33 bits: this file wraps after 4.7 s.
  content = made("mpegts", codec, 3, late=95439.0)
  shown = [(seconds, number_of(frame)) for seconds, frame in reading.iterate_frames(content)]
  assert [number for _, number in shown] == list(range(COUNT))
  np.testing.assert_allclose([s for s, _ in shown], np.arange(COUNT) / RATE, atol=0.0015)
  with reading.open_video(content) as video:
    assert (video.begin, video.end) == pytest.approx((0, 10), abs=0.01)
  for start in (0.0, 4.5, 8.5):
    assert cut(content, start) == [round(start * RATE) + 2 * k for k in range(5)]


@pytest.mark.parametrize("b_frames", [0, 3])
def test_an_edit_list_is_what_the_video_is(b_frames):
  content = bytearray(made("mp4", "libx264", b_frames))
  at = content.index(b"elst") + 12
  scale = struct.unpack_from(">I", content, content.index(b"mdhd") + 16)[0]
  _, begin = struct.unpack_from(">Ii", content, at)
  # 7 s from 2.5 s on, which is within a group of pictures.
  struct.pack_into(">Ii", content, at, 7000, begin + scale * 5 // 2)
  content = bytes(content)
  with reading.open_video(content) as video:
    assert (video.begin, video.end) == pytest.approx((0, 7), abs=0.01)
  numbers = [number_of(frame) for _, frame in reading.iterate_frames(content)]
  assert numbers == list(range(30, 114))
  for start in (0.0, 1.0, 5.5):
    assert cut(content, start) == [30 + round(start * RATE) + 2 * k for k in range(5)]
  with pytest.raises(Rejected, match="the video ends at 7"):
    cut(content, 6.5)


MATRICES = {
  "as stored": (1, 0, 0, 1),
  "mirrored": (-1, 0, 0, 1),
  "upside down": (1, 0, 0, -1),
  "half turn": (-1, 0, 0, -1),
  "clockwise": (0, 1, -1, 0),
  "counterclockwise": (0, -1, 1, 0),
  "transposed": (0, 1, 1, 0),
  "transversed": (0, -1, -1, 0),
}


@pytest.mark.parametrize("name", MATRICES)
def test_a_matrix_is_applied_to_each_pixel(name):
  a, b, c, d = MATRICES[name]
  content = bytearray(made("mp4", "libx264", 0, count=12))
  at = content.index(b"tkhd") + 4
  at += {0: 40, 1: 52}[content[at]]
  content[at : at + 36] = struct.pack(
    ">9i", *(v << 16 for v in (a, b)), 0, *(v << 16 for v in (c, d)), 0, 0, 0, 1 << 30
  )
  stored = drawn(5)
  height, width = SIZE
  y, x = np.mgrid[:height, :width]
  # (x, y) is shown at (a x + c y, b x + d y), moved into the picture.
  shown_x, shown_y = a * x + c * y, b * x + d * y
  shown_x, shown_y = shown_x - shown_x.min(), shown_y - shown_y.min()
  expected = np.zeros((shown_y.max() + 1, shown_x.max() + 1, 3), np.uint8)
  expected[shown_y, shown_x] = stored
  frames = [frame for _, frame in reading.iterate_frames(bytes(content))]
  assert frames[5].shape == expected.shape
  assert np.abs(frames[5].astype(int) - expected).mean() < 12
  spec = ClipSpec(
    resolutions=(expected.shape[:2],),
    num_frames=3,
    fps=RATE,
    position="beginning",
    allow_upscale=True,
  )
  clip = decode(bytes(content), "video", spec).frames[expected.shape[:2]]
  np.testing.assert_allclose(clip[2].astype(int), frames[2].astype(int), atol=3)


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_the_alpha_channel_of_webm_is_over_white(codec):
  layers = np.zeros((60, 48, 64, 4), np.uint8)
  layers[..., 0], layers[..., 3] = 200, np.linspace(0, 255, 64).astype(np.uint8)
  layers[..., 1] = 2 * np.arange(60)[:, None, None]
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="webm") as file:
    options = {"crf": "4", "b": "4M", "cpu-used": "8", "auto-alt-ref": "0", "g": "12"}
    stream = file.add_stream(codec, rate=RATE, options=options)
    stream.height, stream.width, stream.pix_fmt = 48, 64, "yuva420p"
    for layer in layers:
      file.mux(stream.encode(av.VideoFrame.from_ndarray(layer, format="rgba")))
    file.mux(stream.encode(None))
  alpha = layers[..., 3:] / 255
  expected = layers[..., :3] * alpha + 255 * (1 - alpha)
  frames = np.stack([frame for _, frame in reading.iterate_frames(buffer.getvalue())])
  assert frames.shape == expected.shape
  assert np.abs(frames - expected).mean() < 4
  # The last cut seeks.
  spec = ClipSpec(resolutions=((48, 64),), num_frames=5, fps=RATE)
  for start in (0.0, 4.5):
    clip = decode(buffer.getvalue(), "video", spec, start_seconds=start).frames[48, 64]
    first = round(start * RATE)
    assert np.abs(clip - expected[first : first + 5]).mean() < 4
