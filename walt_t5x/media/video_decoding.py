"""Decodes one clip of a video file with PyAV.

Only containers on the list are opened, and only from bytes: a playlist or SDP file must not make FFmpeg access the
network. Stated values (duration, frame count) may choose a position but never the size of an allocation.
"""

import io
import math
import struct
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from walt_t5x.media.clips import (
  Clip,
  ClipSpec,
  MediaError,
  check_limits,
  check_size,
  fit,
  union,
)
from walt_t5x.media.rules import Rejected, Rule, check_header, header_facts

if TYPE_CHECKING:
  from av import VideoFrame

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegvideo,mpegts,gif"
_BOX_TYPES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"styp", b"moof", b"pnot")
# Matroska rounds times to milliseconds; a frame may start this much late.
_CLOCK_SLACK = 0.002
# Seeking is faster only beyond a few key frame intervals.
_SEEK_BEYOND_SECONDS = 4.0
# With a smaller share of distinct frames the clip would contain too many repeated frames.
_MIN_DISTINCT = 0.75
_OF_FIRST_FRAME = ("height", "width", "aspect")


def decode_video(
  content: bytes,
  spec: ClipSpec,
  *,
  start_seconds: float | None = None,
  end_seconds: float | None = None,
  draw: float = 0.5,
  rules: Sequence[Rule] = (),
  max_decode_seconds: float = math.inf,
) -> Clip:
  """Frames displayed at start, start + 1/fps, ..., each resized by area averaging and center-cropped.

  Args: see `decoding.decode`.

  Raises:
    MediaError: 'not_media', 'no_video_stream', 'unknown_codec', 'truncated', 'corrupt', 'too_large', 'too_long',
      'too_many_frames' or 'decode_timeout'.
    Rejected: 'too_small', 'too_short', 'low_frame_rate', or by a filter.
  """
  import av
  from av.error import FFmpegError

  deadline = time.monotonic() + max_decode_seconds
  options = {
    "protocol_whitelist": "",
    "format_whitelist": CONTAINERS,
    # Applies to frames that FFmpeg decodes while it opens the file.
    "max_pixels": str(spec.max_pixels),
  }
  try:
    container = av.open(io.BytesIO(content), options=options, metadata_errors="replace")
  except FFmpegError as error:
    raise MediaError(_open_reason(content), f"{error}; containers read: {CONTAINERS}") from error
  with container:
    stream = _video_stream(container)
    codec = stream.codec_context
    check_limits((codec.height, codec.width), spec)
    # Options of `av.open` apply only to probing; the frame size may also grow within a stream.
    codec.options = {"max_pixels": str(spec.max_pixels)}
    seconds = _claimed_seconds(container, stream)
    if seconds is not None and seconds > spec.max_seconds:
      raise MediaError(
        "too_long", f"{seconds:.0f} seconds, limit {spec.max_seconds} (--max_seconds)"
      )
    rate = stream.average_rate or stream.guessed_rate
    facts = header_facts(
      (codec.height, codec.width), pixel_aspect=1.0, video=(seconds, float(rate) if rate else None)
    )
    # The orientation is known only after the first frame.
    facts = {name: value for name, value in facts.items() if name not in _OF_FIRST_FRAME}
    check_header(facts, rules)
    start = _start(spec, start_seconds, end_seconds, seconds, draw)
    try:
      resizer = _Resizer(stream, spec, rules)
      return _cut(container, stream, resizer, start=start, claimed=seconds, deadline=deadline)
    except FFmpegError as error:
      reason = "truncated" if _is_cut_off(content) else "corrupt"
      raise MediaError(reason, f"{type(error).__name__}: {error}") from error


def _open_reason(content: bytes) -> str:
  if not _container_signature(content):
    return "not_media"
  return "truncated" if _is_cut_off(content) else "corrupt"


def _video_stream(container):
  from av.stream import Disposition

  for stream in container.streams.video:
    # Cover art of an audio file is a video stream of one frame.
    if not stream.disposition & Disposition.attached_pic:
      if stream.codec_context is None:
        raise MediaError("unknown_codec", "FFmpeg has no decoder for the video stream")
      stream.thread_type = "NONE"
      return stream
  kinds = sorted({stream.type for stream in container.streams})
  raise MediaError("no_video_stream", f"the file has no video stream, only {kinds}")


def _claimed_seconds(container, stream) -> float | None:
  if stream.duration and stream.time_base:
    return float(stream.duration * stream.time_base)
  if container.duration:
    # Matroska's duration starts at zero, that of other containers at the first frame.
    late = (container.start_time or 0) if "matroska" in container.format.name else 0
    return (container.duration - max(0, late)) / 1e6
  return None


def _start(
  spec: ClipSpec, start: float | None, end: float | None, claimed: float | None, draw: float
) -> float:
  """Start time of the clip; its last frame must be before `end`, if given.

  If only `start` is given, it is the time of the first frame. Otherwise the clip is placed in a window from `start`,
  else the beginning, to `end`, else the end of the video.
  """
  length = spec.num_frames / spec.fps
  if start is None or end is not None:
    first = start or 0.0
    stop = min((t for t in (end, claimed) if t is not None), default=first + length)
    share = {"beginning": 0.0, "centre": 0.5, "random": draw}[spec.position]
    start = round(first + share * max(0.0, stop - length - first), 6)
  if end is not None and start + (spec.num_frames - 1) / spec.fps > end - _CLOCK_SLACK:
    raise Rejected(
      "too_short",
      f"the window {start:.3f} to {end:.3f} s has fewer than {spec.num_frames} frames at {spec.fps} fps",
    )
  return start


def _cut(
  container, stream, resizer: "_Resizer", *, start: float, claimed: float | None, deadline: float
) -> Clip:
  spec = resizer.spec
  pictures: list[dict] = []
  held, end, distinct = None, 0.0, 0

  def show_until(until: float) -> int:
    """Appends the held frame for every requested time before `until`; 1 if it was used, else 0."""
    wanted = 0
    while (moment := len(pictures) + wanted) < spec.num_frames:
      if start + moment / spec.fps + _CLOCK_SLACK >= until:
        break
      wanted += 1
    if wanted:
      pictures.extend([resizer(held)] * wanted)
    return int(wanted > 0)

  for decoded, (shown, frame) in enumerate(_frames(container, stream, start, deadline), start=1):
    if decoded == 1:
      resizer.check(frame)
    if decoded > spec.max_decoded_frames:
      raise MediaError(
        "too_many_frames",
        f"no complete clip within {spec.max_decoded_frames} frames (--max_decoded_frames)",
      )
    if held is not None:
      distinct += show_until(shown)
    if len(pictures) == spec.num_frames:
      break
    if frame.is_corrupt:
      raise MediaError("corrupt", f"the decoder marks the frame at {shown:.3f} s as corrupt")
    held, end = frame, shown + _frame_seconds(frame, stream)
  if held is None:
    raise MediaError("corrupt", "no frame of the video stream can be decoded")
  # The last frame of a file is displayed for its own duration.
  distinct += show_until(end)
  if len(pictures) < spec.num_frames:
    cut = claimed is not None and end < claimed - max(0.25, 0.1 * claimed)
    raise (MediaError if cut else Rejected)(
      "truncated" if cut else "too_short",
      f"{len(pictures)} of {spec.num_frames} frames from {start:.3f} s at {spec.fps} fps; the video "
      f"ends at {end:.3f} s, its stated duration is {'unknown' if claimed is None else f'{claimed:.3f} s'}",
    )
  if distinct < _MIN_DISTINCT * spec.num_frames:
    raise Rejected(
      "low_frame_rate",
      f"only {distinct} of {spec.num_frames} frames at {spec.fps} fps are different frames of the "
      "source (lower --fps)",
    )
  frames = {size: np.stack([shown[size] for shown in pictures]) for size in spec.resolutions}
  return Clip(
    frames=frames,
    fps=float(spec.fps),
    start_seconds=start,
    crop=resizer.crop,
    motion=motion(frames[min(spec.resolutions)]),
  )


def _frames(
  container, stream, start: float, deadline: float
) -> Iterator[tuple[float, "VideoFrame"]]:
  """(seconds from the start of the stream, frame), from the last key frame before `start` if seeking works."""
  from av.error import FFmpegError

  origin = float((stream.start_time or 0) * stream.time_base)
  if start > _SEEK_BEYOND_SECONDS:
    container.seek(int((start + origin) / stream.time_base), stream=stream, backward=True)
    try:
      first = next(iter(container.decode(stream)), None)
    except FFmpegError:
      first = None
    landed = first is not None and first.time is not None and first.time - origin <= start
    # With a broken index a seek may land after `start`: then decode from the beginning.
    target = int((start + origin) / stream.time_base) if landed else stream.start_time or 0
    container.seek(target, stream=stream, backward=True)
  rate = stream.average_rate or stream.guessed_rate
  latest = -math.inf
  for index, frame in enumerate(container.decode(stream)):
    if time.monotonic() > deadline:
      raise MediaError("decode_timeout", f"{index} frames within the time limit (--decode_timeout)")
    if frame.time is not None:
      shown = frame.time - origin
    elif rate:
      shown = index / float(rate) if latest == -math.inf else latest + 1 / float(rate)
    else:
      raise MediaError("corrupt", "frames have neither times nor a frame rate")
    if shown > latest:
      latest = shown
      yield shown, frame


def _frame_seconds(frame, stream) -> float:
  if frame.duration and frame.time_base:
    return float(frame.duration * frame.time_base)
  rate = stream.average_rate or stream.guessed_rate
  return float(1 / rate) if rate else 0.0


class _Resizer:
  """Resizes frames of one clip to every resolution; one reused swscale context per resolution."""

  def __init__(self, stream, spec: ClipSpec, rules: Sequence[Rule]):
    from av.video.reformatter import Interpolation, VideoReformatter

    self.spec, self.crop = spec, (0, 0, 0, 0)
    self._rules = rules
    self._aspect = float(stream.sample_aspect_ratio or 1)
    self._filter = Interpolation.AREA | Interpolation.ACCURATE_RND
    self._reformatters = {size: VideoReformatter() for size in spec.resolutions}

  def _upright(self, frame) -> tuple[int, tuple[int, int], float]:
    """(counterclockwise quarter turns that make a frame upright, its upright size, its upright pixel aspect ratio)."""
    quarter_turns = round(frame.rotation / 90) % 4
    size, aspect = (frame.height, frame.width), self._aspect
    if quarter_turns % 2:
      size, aspect = size[::-1], 1 / aspect
    return quarter_turns, size, aspect

  def check(self, frame) -> None:
    """Checks the size and aspect of the first frame."""
    _, size, aspect = self._upright(frame)
    check_size(size, self.spec, aspect=aspect)
    check_header(header_facts(size, pixel_aspect=aspect, video=None), self._rules)

  def __call__(self, frame) -> dict[tuple[int, int], np.ndarray]:
    quarter_turns, size, aspect = self._upright(frame)
    # The frame size may change within a stream; the limits apply to every frame.
    check_size(size, self.spec, aspect=aspect)
    if any(component.is_alpha for component in frame.format.components):
      frame = _over_white(frame)
    pictures, crops = {}, []
    for target, reformatter in self._reformatters.items():
      place = fit(size, target, aspect=aspect)
      height, width = place.scaled[::-1] if quarter_turns % 2 else place.scaled
      scaled = reformatter.reformat(
        frame, width=width, height=height, format="rgb24", interpolation=self._filter, threads=1
      )
      upright = np.rot90(scaled.to_ndarray(), quarter_turns)
      top, left = place.offset
      pictures[target] = upright[top : top + target[0], left : left + target[1]]
      crops.append(place.crop)
    self.crop = union(crops)
    return pictures


def _over_white(frame):
  """The frame without its alpha channel, composited over white like images."""
  import av

  rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
  alpha = rgba[..., 3:]
  opaque = (rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
  return av.VideoFrame.from_ndarray(opaque.astype(np.uint8), format="rgb24")


def motion(frames: np.ndarray) -> float:
  """Mean absolute luma change between adjacent frames, in [0, 1].

  Args:
    frames: uint8 (frames, height, width, 3).
  """
  if len(frames) < 2:
    return 0.0
  luma = frames.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
  return float(np.abs(np.diff(luma, axis=0)).mean(dtype=np.float64) / 255.0)


def _container_signature(content: bytes) -> bool:
  """Whether the first bytes are those of a supported video container."""
  return (
    content[4:8] in _BOX_TYPES
    or content.startswith((b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"GIF8"))
    or (content.startswith(b"RIFF") and content[8:12] == b"AVI ")
    or (content[:1] == b"G" and content[188:189] == b"G")
  )


def _is_cut_off(content: bytes) -> bool:
  """Whether a container is truncated according to its own sizes; detected only for MP4 and AVI."""
  if content.startswith(b"RIFF"):
    return struct.unpack("<I", content[4:8].ljust(4, b"\0"))[0] + 8 > len(content)
  if content[4:8] not in _BOX_TYPES:
    return False
  position, seen = 0, set()
  while position + 8 <= len(content):
    size, kind = struct.unpack(">I4s", content[position : position + 8])
    seen.add(kind)
    if size == 1:
      size = int.from_bytes(content[position + 8 : position + 16], "big")
    elif size == 0:
      size = len(content) - position
    if size < 8 or position + size > len(content):
      return True
    position += size
  return position != len(content) or b"moov" not in seen
