"""Opens videos with PyAV, in one way for every program: upright, opaque, RGB, uint8 (`pictures` opens images).

Only containers on the list are opened, and never by name: a playlist or SDP file must not make FFmpeg access the
network. Stated values (duration, frame count) may choose a position but never the size of an allocation.
"""

import collections
import contextlib
import io
import itertools
import math
import os
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from walt_t5x.files import storage
from walt_t5x.media.containers import CONTAINERS, has_signature, is_avi, is_cut_off, stated_end
from walt_t5x.media.deinterlacing import deinterlaced
from walt_t5x.media.frames import opaque, orientation, upright
from walt_t5x.media.rules import ReasonedError
from walt_t5x.media.scaling import Scaler

if TYPE_CHECKING:
  from av import VideoFrame

MAX_PIXELS = 4096 * 2304
# Containers round times to milliseconds; a frame that is late by at most this counts as shown.
CLOCK_SLACK = 0.002

# Seeking is faster only beyond a few key frame intervals.
_SEEK_BEYOND_SECONDS = 4.0
# Longer than a frame of any interlaced format.
_NEIGHBOR_SECONDS = 0.1

# Transfer curves by their numbers in ITU-T H.273.
_HDR = {16: "PQ (smpte2084)", 18: "HLG (arib-std-b67)"}
# Codec tags of Dolby Vision, which is always HDR; the stated transfer curve may be unspecified.
_DOLBY_VISION = ("dvh1", "dvhe", "dav1")

Source = str | os.PathLike[str] | bytes


class MediaError(ReasonedError, ValueError):
  """Media that cannot be read or cut as requested."""


class DecodedVideo(NamedTuple):
  """Frames [T, H, W, 3] uint8 RGB and the average frame rate in frames per second."""

  frames: np.ndarray
  fps: float


@contextlib.contextmanager
def opened(source: Source) -> Iterator[BinaryIO]:
  """The bytes of a source; errors of media name its file."""
  with io.BytesIO(source) if isinstance(source, bytes) else storage.open_raw(source) as file:
    try:
      if not file.read(1):
        raise MediaError("empty", "the file has no bytes")
      file.seek(0)
      yield file
    except MediaError as error:
      if isinstance(source, bytes):
        raise
      raise MediaError(error.reason, f"{os.fspath(source)}: {error}") from error


def check_pixels(size: tuple[int, int], max_pixels: int) -> None:
  """Raises MediaError, 'too_large' or 'corrupt', for a frame size in any orientation."""
  height, width = size
  if height < 1 or width < 1:
    raise MediaError("corrupt", f"the media states a frame of {height}x{width} pixels")
  if height * width > max_pixels:
    raise MediaError("too_large", f"frames of {height}x{width} pixels, limit {max_pixels=}")


def check_transfer(curve: int) -> None:
  """Raises MediaError, 'hdr', for a transfer curve (by its number in ITU-T H.273) that needs tone mapping."""
  if curve in _HDR:
    raise MediaError(
      "hdr",
      f"HDR, transfer curve {_HDR[curve]}: convert it first, for example with `ffmpeg -i IN -vf "
      "zscale=t=linear:npl=100,tonemap=hable,zscale=p=bt709:t=bt709:m=bt709,format=yuv420p OUT`",
    )


class Video:
  """The video stream of an open file.

  Times are seconds since the beginning of the container; the picture may begin after the sound.

  Attributes:
    size: (height, width) as stored, before rotation.
    aspect: pixel aspect ratio (width / height) as stored.
    begin: time of the first frame, as stated.
    end: time at which the last frame ends, as stated, or None; the sound may end later.
    seconds: the stated duration of the picture, or None.
    rate: the stated frame rate, or None.
    container, codec, pixel_format: FFmpeg's names.
    has_sound: whether there is a sound stream.
  """

  def __init__(self, container: Any, *, max_pixels: int):
    from av.codec.context import Flags

    self._container, self._stream = container, _video_stream(container)
    self.size = (self._stream.codec_context.height, self._stream.codec_context.width)
    check_pixels(self.size, max_pixels)
    if self._stream.codec_context.codec_tag in _DOLBY_VISION:
      check_transfer(16)
    self._codec = _alpha_decoder(self._stream) or self._stream.codec_context
    # Without it, FFmpeg leaves the left of a crop rectangle as it is stored.
    self._codec.flags |= Flags.unaligned
    # Options of `av.open` apply only to probing; the frame size may also grow within a stream.
    self._codec.options = {"max_pixels": str(max_pixels)}
    self.aspect = float(self._stream.sample_aspect_ratio or 1)
    self._origin = (container.start_time or 0) / 1e6
    begin = self._stream.start_time
    self.begin = 0.0 if begin is None else max(0.0, self._seconds(begin))
    self.end = stated_end(container, self._stream, origin=self._origin, begin=self.begin)
    self.seconds = None if self.end is None else max(0.0, self.end - self.begin)
    # AVI numbers frames as they are stored, which is not the order of their times if there are B-frames.
    self._stored_order = is_avi(container)
    self._first_stored: int | None = None
    self._delay: int | None = None
    # The average of an AVI counts frames that are stored empty.
    rate = self._stream.base_rate if self._stored_order else self._stream.average_rate
    rate = rate or self._stream.guessed_rate
    self.rate = float(rate) if rate else None
    self.container, self.codec = container.format.name, self._stream.codec_context.name
    self.pixel_format = str(self._stream.codec_context.pix_fmt)
    self.has_sound = bool(container.streams.audio)

  def frames(
    self, start: float = 0.0, *, deinterlace: bool = False
  ) -> Iterator[tuple[float, "VideoFrame"]]:
    """(seconds since the beginning of the container, frame) in the order of the decoder; times never decrease.

    Args:
      start: decoding begins at the last key frame before this time, if seeking works.
      deinterlace: whether frames that are marked as interlaced are deinterlaced.

    Raises:
      MediaError: 'corrupt', if no frame can be decoded, or frames have no times; 'hdr'.
    """
    if start > _SEEK_BEYOND_SECONDS:
      # A deinterlaced frame depends on the frame before it.
      self._seek(start - _NEIGHBOR_SECONDS if deinterlace else start)
    shown = self._shown()
    return deinterlaced(shown) if deinterlace else shown

  def _shown(self) -> Iterator[tuple[float, "VideoFrame"]]:
    latest, step = -math.inf, math.inf
    for frame in self._decoded():
      check_transfer(frame.color_trc)
      shown = self._time(frame)
      if shown is None and (self.rate or step < math.inf):
        # The stated rate of an AVI may be that of its clock.
        after = step if step < math.inf else 1 / (self.rate or 1.0)
        shown = self.begin if latest == -math.inf else latest + after
      if shown is None:
        raise MediaError("corrupt", "frames have neither times nor a frame rate")
      if latest < shown and latest > -math.inf:
        step = min(step, shown - latest)
      latest = max(latest, shown)
      yield latest, frame
    if latest == -math.inf:
      raise MediaError("corrupt", "no frame of the video stream can be decoded")

  def _decoded(self) -> Iterator["VideoFrame"]:
    for packet in self._container.demux(self._stream):
      if self._first_stored is None:
        self._first_stored = packet.dts
      yield from self._codec.decode(packet)

  def _seconds(self, ticks: int) -> float:
    return float(ticks * self._stream.time_base) - self._origin

  def _time(self, frame: "VideoFrame") -> float | None:
    """Time of a frame, if the file has times."""
    if not self._stored_order:
      return None if frame.pts is None else self._seconds(frame.pts)
    # The time at which the decoder returns a frame increases by one frame each, from a constant delay.
    if frame.dts is None:
      return None
    if self._delay is None:
      self._delay = frame.dts - (self._first_stored or 0)
    return self._seconds(frame.dts - self._delay)

  def _seek(self, start: float) -> None:
    from av.error import FFmpegError

    def decoded() -> "VideoFrame | None":
      with contextlib.suppress(FFmpegError):
        return next(self._decoded(), None)
      return None

    stream = self._stream
    if self._stored_order and (first := decoded()):
      self._time(first)  # Measures the delay.
    target = int((start + self._origin) / stream.time_base)
    self._seek_to(target)
    first = decoded()
    shown = None if first is None else self._time(first)
    landed = shown is not None and shown <= start
    # With a broken index a seek may land after `start`: then decode from the beginning.
    self._seek_to(target if landed else stream.start_time or 0)

  def _seek_to(self, ticks: int) -> None:
    self._container.seek(ticks, stream=self._stream, backward=True)
    self._codec.flush_buffers()

  def duration(self, frame: "VideoFrame") -> float:
    """Seconds for which a frame is shown, as far as the file states it."""
    if frame.duration and frame.time_base:
      return float(frame.duration * frame.time_base)
    return 1 / self.rate if self.rate else 0.0


@contextlib.contextmanager
def open_video(source: Source, *, max_pixels: int = MAX_PIXELS) -> Iterator[Video]:
  """Opens a video; errors of FFmpeg in the `with` block become `MediaError`.

  Args:
    source: a local path or the bytes of a file in one of CONTAINERS. A file is read as it is decoded.
    max_pixels: maximum height * width of a frame.

  Raises:
    MediaError: 'empty', 'not_media', 'no_video_stream', 'unknown_codec', 'truncated', 'corrupt' or 'too_large'.
  """
  import av
  from av.error import FFmpegError

  options = {
    "protocol_whitelist": "",
    "format_whitelist": CONTAINERS,
    # Applies to frames that FFmpeg decodes while it opens the file.
    "max_pixels": str(max_pixels),
  }
  with opened(source) as file:
    found = False
    try:
      with av.open(file, options=options, metadata_errors="replace") as container:
        found = True
        yield Video(container, max_pixels=max_pixels)
    except FFmpegError as error:
      known = found or has_signature(file)
      reason = "not_media" if not known else "truncated" if is_cut_off(file) else "corrupt"
      expected = "" if known else f"; containers read: {CONTAINERS}"
      raise MediaError(reason, f"{type(error).__name__}: {error.strerror}{expected}") from error


def check_intact(seconds: float, frame: "VideoFrame") -> None:
  """Raises MediaError, 'corrupt', for a frame that the decoder could only guess."""
  if frame.is_corrupt:
    raise MediaError("corrupt", f"the decoder marks the frame at {seconds:.3f} s as corrupt")


def iterate_frames(
  source: Source, *, max_pixels: int = MAX_PIXELS, only: Container[int] | None = None
) -> Iterator[tuple[float, np.ndarray]]:
  """Yields (seconds since the first frame, [H, W, 3] uint8 RGB) in the order of the decoder, upright.

  Args:
    source, max_pixels: see `open_video`.
    only: numbers of the frames to yield; all by default.

  Raises:
    MediaError: see `open_video`; also for a damaged frame.
  """
  scaler = Scaler()
  for number, (seconds, frame) in enumerate(_intact_frames(source, max_pixels)):
    if only is None or number in only:
      pixels = scaler(opaque(frame), width=frame.width, height=frame.height)
      yield seconds, upright(pixels, orientation(frame))


def frame_times(source: Source, *, max_pixels: int = MAX_PIXELS) -> list[float]:
  """Seconds of every frame since the first one; decodes, but converts no images. Arguments as in `open_video`."""
  return [seconds for seconds, _ in _intact_frames(source, max_pixels)]


def window_times(
  source: Source, start: float | None = None, end: float | None = None
) -> tuple[int, list[float]]:
  """Number of the first frame shown from `start` on, and seconds since it of all that are shown before `end`.

  Args:
    source: see `open_video`.
    start, end: seconds as the file states them, to which `decoding.decode` refers too; None for no limit.

  Raises:
    MediaError: see `iterate_frames`.
  """
  first, times = 0, []
  with open_video(source) as video:
    for seconds, frame in video.frames():
      check_intact(seconds, frame)
      if end is not None and seconds >= end - CLOCK_SLACK:
        break
      if start is None or seconds >= start - CLOCK_SLACK:
        times.append(seconds)
      else:
        first += 1
  return first, [seconds - times[0] for seconds in times]


def _intact_frames(source: Source, max_pixels: int) -> Iterator[tuple[float, "VideoFrame"]]:
  """(seconds since the first frame, frame) of an entire video."""
  with open_video(source, max_pixels=max_pixels) as video:
    first = None
    for seconds, frame in video.frames():
      check_intact(seconds, frame)
      first = seconds if first is None else first
      yield seconds - first, frame


def frames_at(source: Source, numbers: Sequence[int]) -> Iterator[np.ndarray]:
  """Yields the frames with these numbers, which do not decrease; a number that is repeated yields its frame again."""
  counts = collections.Counter(numbers)
  for number, (_, frame) in zip(counts, iterate_frames(source, only=counts)):
    yield from itertools.repeat(frame, counts[number])


def resampled(times: Sequence[float] | np.ndarray, fps: float) -> list[int]:
  """Indices of the frames shown at 0, 1 / fps, 2 / fps, ..., selected as in preprocessing.

  A clip at about that rate keeps every frame. If its rate varies, a frame with a long duration is repeated.

  Raises:
    ValueError: the clip is slower, so that its frames would have to be repeated.
  """
  times = np.asarray(times, np.float64)
  if len(times) < 2:
    return list(range(len(times)))
  steps = np.diff(times)
  step = np.median(steps)
  if step > 1.1 / fps:
    raise ValueError(f"got {1 / step:.3g} fps, expected at least {fps:g}, the model's rate")
  # Rates that differ by less than a tenth of a frame count as equal: timestamps are rounded.
  if step >= 0.9 / fps and np.all(np.abs(steps - step) < 0.5 * step):
    return list(range(len(times)))
  # The last frame is shown for as long as the others.
  wanted = np.arange(int(np.ceil((times[-1] + step - CLOCK_SLACK) * fps))) / fps
  shown = np.searchsorted(times, wanted + CLOCK_SLACK, side="right") - 1
  # Of frames with equal times, the first.
  return np.searchsorted(times, times[shown]).tolist()


def read_video(
  source: Source, *, max_frames: int | None = None, max_pixels: int = MAX_PIXELS
) -> DecodedVideo:
  """Decodes an entire short clip into memory; training data is cut by `decoding.decode` instead.

  Args:
    source, max_pixels: see `open_video`.
    max_frames: stop after this many frames.

  Raises:
    MediaError: see `iterate_frames`.
  """
  times, frames = [], []
  for time, frame in iterate_frames(source, max_pixels=max_pixels):
    if frames and frame.shape != frames[0].shape:
      first, now = ("x".join(map(str, shape[:2])) for shape in (frames[0].shape, frame.shape))
      raise MediaError("changed_size", f"got a frame of {now} pixels after frames of {first}")
    times.append(time)
    frames.append(frame)
    if len(frames) == max_frames:
      break
  # The rate is computed from the frames' times; a container's header may be wrong.
  fps = (len(times) - 1) / times[-1] if times[-1] > 0 else 1.0
  return DecodedVideo(np.stack(frames), fps)


def _alpha_decoder(stream: Any) -> Any:
  """A decoder of the alpha channel of VP8 and VP9, which FFmpeg's own ignore; None for a stream without it."""
  import av

  name: Any = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
  has_alpha = name and stream.metadata.get("alpha_mode") == "1"
  return av.CodecContext.create(name, "r") if has_alpha else None


def _video_stream(container: Any) -> Any:
  """The stream that FFmpeg's command line chooses: the one with most pixels; being the default counts 5 million."""
  from av.stream import Disposition

  def score(stream: Any) -> int:
    codec = stream.codec_context
    pixels = codec.width * codec.height if codec else 0
    return pixels + 5_000_000 * bool(stream.disposition & Disposition.default)

  # Cover art of an audio file is a video stream of one frame.
  streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
  if not streams:
    kinds = sorted({stream.type for stream in container.streams})
    raise MediaError("no_video_stream", f"the file has no video stream, only {kinds}")
  stream = max(streams, key=score)
  if stream.codec_context is None:
    raise MediaError("unknown_codec", "FFmpeg has no decoder for the video stream")
  stream.thread_type = "NONE"
  return stream
