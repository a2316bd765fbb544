"""Encodes the media of the look-alikes as the public corpora have them: codecs, B-frames, sound, rotation, damage.

Encoders run on one thread and muxers in bit-exact mode, so the same arguments give the same bytes.
"""

import functools
import io
import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from data.samples import shapes
from walt_t5x.media.writing import X264_INSTRUCTIONS

# What a server sends instead of a file that has moved.
HTML = (
  b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Not Found</body></html>\n"
)
_SOUND_RATE = 16_000
_CELL = 40
# Muxer -> video encoder and its options; the other muxers take H.264.
_H264 = ("libx264", {"preset": "ultrafast", "crf": "20", "b-adapt": "0"} | X264_INSTRUCTIONS)
_CODECS = {
  "avi": ("mpeg4", {"b_strategy": "0"}),
  "webm": ("libvpx-vp9", {"b": "0", "crf": "30", "deadline": "realtime", "cpu-used": "8"}),
}
# User data by which DivX and XviD announce a packed bitstream, and their place holder for a packed frame.
_PACKED = b"\0\0\1\xb2DivX503b1393p"
_NOT_CODED = b"\0\0\1\xb6\x50\x9f"


def scene(seed: int, *, moving: bool = True) -> shapes.Scene:
  """A scene of the sample corpus."""
  random = np.random.default_rng([seed, 17])
  words = list(shapes.balanced_vocabulary(random, 1 + seed % 24, moving=moving))[-1]
  color, shape, direction = words
  return shapes.sample_scene(random, color=color, shape=shape, direction=direction)


@functools.lru_cache(maxsize=32)
def _pictures(seed: int, num_frames: int) -> np.ndarray:
  return shapes.render(scene(seed), num_frames=num_frames, size=_CELL)


def video(
  seed: int,
  *,
  num_frames: int,
  rate: Fraction | int,
  then: Sequence[tuple[int, int]] = (),
  size: tuple[int, int] = (240, 320),
  container: str = "mp4",
  b_frames: int = 2,
  sound_seconds: float = 0.0,
  late_seconds: float = 0.0,
  packed: bool = False,
) -> bytes:
  """A clip of moving shapes: H.264, in AVI MPEG-4 part 2 with the tag of XviD, in WebM VP9.

  Args:
    seed: of the scene.
    num_frames, rate: frames, and frames per second.
    then: (seed, frames) of the scenes that follow.
    size: (height, width), even.
    container: `mp4`, `avi`, `webm`, or another muxer of FFmpeg that takes H.264.
    b_frames: frames between two reference frames.
    sound_seconds: length of a tone, in AAC or, in WebM, Opus; 0 for no sound.
    late_seconds: when the picture begins, after the sound.
    packed: whether B-frames are packed into the chunk of the frame before them, as DivX did (AVI only).
  """
  import av

  file = io.BytesIO()
  options = {"fflags": "+bitexact"}
  with av.open(file, "w", format=container, options=options) as output:
    output.metadata.clear()
    track = _video_track(output, container, rate, size, b_frames)
    sound = _sound_track(output, container) if sound_seconds else None
    pictures = itertools.chain(*(_pictures(*one) for one in ((seed, num_frames), *then)))
    packets = list(_packets(track, pictures, size))
    if packed:
      packets = _pack(packets, rate)
    first = round(late_seconds / packets[0].time_base)
    for packet in packets:
      packet.stream = track
      if first:
        packet.pts, packet.dts = packet.pts + first, packet.dts + first
      output.mux(packet)
    if sound is not None:
      for packet in _tone(sound, sound_seconds):
        output.mux(packet)
  return file.getvalue()


def _video_track(output: Any, container: str, rate: Any, size: Any, b_frames: int) -> Any:
  codec, options = _CODECS.get(container, _H264)
  between = {} if container == "webm" else {"bf": str(b_frames)}
  track = output.add_stream(
    codec, rate=Fraction(rate), options=options | between | {"flags": "+bitexact"}
  )
  track.height, track.width, track.pix_fmt = *size, "yuv420p"
  context = track.codec_context
  context.thread_count = 1
  if container == "avi":
    context.codec_tag = "XVID"
    context.bit_rate = 600_000
  return track


def _packets(track: Any, pictures: Iterable[np.ndarray], size: tuple[int, int]) -> Iterator[Any]:
  import av
  from av.video.reformatter import VideoReformatter

  reformatter = VideoReformatter()
  for index, picture in enumerate(pictures):
    # Cells become blocks of pixels: cheap to render, and sharp.
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    frame = reformatter.reformat(
      frame, width=size[1], height=size[0], format="yuv420p", interpolation="POINT", threads=1
    )
    frame.pts, frame.time_base = index, 1 / Fraction(track.codec_context.framerate)
    yield from track.encode(frame)
  yield from track.encode(None)


def _pack(packets: list[Any], rate: Fraction | int) -> list[Any]:
  """Packets with each B-frame in the chunk of the frame before it, and a place holder where it was."""
  import av

  def kind(content: bytes) -> int:
    return content[content.index(b"\0\0\1\xb6") + 4] >> 6  # 0 is I, 1 is P, 2 is B.

  contents, chunks, index = [bytes(packet) for packet in packets], [], 0
  while index < len(contents):
    content = contents[index]
    following = contents[index + 1] if index + 1 < len(contents) else b""
    if kind(content) == 0:
      at = content.index(b"\0\0\1\xb6")
      content = content[:at] + _PACKED + content[at:]
    if following and kind(following) == 2:
      chunks += [(content + following, kind(content) == 0), (_NOT_CODED, False)]
      index += 2
    else:
      chunks.append((content, kind(content) == 0))
      index += 1
  made = []
  for number, (content, key) in enumerate(chunks):
    packet = av.Packet(content)
    packet.pts = packet.dts = number
    packet.time_base, packet.is_keyframe = 1 / Fraction(rate), key
    made.append(packet)
  return made


def _sound_track(output: Any, container: str = "mp4") -> Any:
  codec = "libopus" if container == "webm" else "aac"
  track = output.add_stream(codec, rate=_SOUND_RATE, options={"flags": "+bitexact"})
  track.layout = "mono"
  track.codec_context.thread_count = 1
  return track


def _tone(track: Any, seconds: float) -> Iterator[Any]:
  import av

  times = np.arange(round(seconds * _SOUND_RATE)) / _SOUND_RATE
  samples = (3000 * np.sin(2 * np.pi * 440 * times)).astype(np.int16)
  frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
  frame.sample_rate, frame.pts = _SOUND_RATE, 0
  yield from track.encode(frame)
  yield from track.encode(None)


def sound(seconds: float = 2.0) -> bytes:
  """An MP4 without a picture."""
  import av

  file = io.BytesIO()
  with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as output:
    for packet in _tone(_sound_track(output), seconds):
      output.mux(packet)
  return file.getvalue()


def turned(mp4: bytes, *, quarter_turns: int = 1, mirrored: bool = False) -> bytes:
  """The MP4 with a display matrix of clockwise quarter turns, after mirroring left and right."""
  content = bytearray(mp4)
  at = content.index(b"tkhd") + 4
  at += {0: 40, 1: 52}[content[at]]
  a, b, c, d = ((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0))[quarter_turns % 4]
  a, b = (-a, -b) if mirrored else (a, b)
  width, height = (value / 65536 for value in struct.unpack(">II", content[at + 36 : at + 44]))
  x, y = -min(0, a * width, c * height), -min(0, b * width, d * height)
  fixed = [round(value * 65536) for value in (a, b, 0, c, d, 0, x, y)]
  content[at : at + 36] = struct.pack(">9i", *fixed, 1 << 30)
  return bytes(content)


def picture(
  seed: int,
  *,
  size: tuple[int, int] = (120, 160),
  kind: str = "JPEG",
  mode: str = "RGB",
  exif: bytes = b"",
  **options: Any,
) -> bytes:
  """A still of the sample corpus, [height, width], in a format and mode of Pillow.

  Args:
    seed: of the scene.
    size: (height, width).
    kind, mode: Pillow's names, for example `PNG` and `CMYK`.
    exif: the contents of an EXIF segment.
    options: Pillow's, for its encoder.
  """
  from PIL import Image

  pixels = shapes.render(scene(seed, moving=False), num_frames=1, size=_CELL)[0]
  height, width = size
  image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR).convert(mode)
  file = io.BytesIO()
  quality = {"quality": 90} if kind == "JPEG" else {}
  image.save(file, kind, **quality, **options, **({"exif": exif} if exif else {}))
  return file.getvalue()


def exif_orientation(value: int, *, bad_number: bool = False) -> bytes:
  """EXIF with an orientation, 1 to 8; `bad_number` adds a resolution with a negative denominator's rational."""
  entries = [struct.pack("<HHIHH", 0x0112, 3, 1, value, 0)]
  tail = b""
  if bad_number:
    place = 8 + 2 + 2 * 12 + 4
    entries.append(struct.pack("<HHII", 0x011A, 10, 1, place))
    tail = struct.pack("<ii", -1, 0)
  head = b"II*\0" + struct.pack("<IH", 8, len(entries))
  return b"Exif\0\0" + head + b"".join(entries) + bytes(4) + tail
