"""Reads and writes video files: mp4, webm, avi through PyAV; gif and animated webp through Pillow.

Everything is written as BT.601 limited range and tagged so in the stream, so that players which read
the tags and decoders which ignore them agree on the colors. Encoders run on one thread and muxers
in bit-exact mode: the same frames give the same bytes.
"""

import io
import os
import tempfile
from collections.abc import Container, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from walt_t5x.media import pixels

VIDEO_SUFFIXES = (".mp4", ".webm", ".avi")
ANIMATION_SUFFIXES = (".gif", ".webp")

# FFmpeg's number for SMPTE 170M, which is BT.601: matrix, primaries and transfer alike.
_BT601 = 6
_LIMITED_RANGE = 1
_CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4"}
_MUXERS = {".mp4": "mp4", ".webm": "webm", ".avi": "avi"}
# Containers that may be opened. Playlists and SDP files are excluded: they make FFmpeg open other
# files and sockets.
_READABLE = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,gif"


class DecodedVideo(NamedTuple):
  """Frames [T, H, W, 3] uint8 RGB and the average frame rate in frames per second."""

  frames: np.ndarray
  fps: float


def to_uint8(frames: np.ndarray) -> np.ndarray:
  """Rounds a clip in [0, 1] to bytes; uint8 is returned unchanged.

  Args:
    frames: [T, H, W, 3], float in [0, 1] (values outside are clipped) or uint8.

  Raises:
    ValueError: another rank, channel count or dtype, an empty clip, or values that are not
      finite.
  """
  frames = np.asarray(frames)
  if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
    raise ValueError(
      f"A video has shape [T, H, W, 3] with no empty axis, got {frames.shape}. "
      "Write one clip of a batch at a time."
    )
  return pixels.to_uint8(frames)


def upscale(frames: np.ndarray, scale: int) -> np.ndarray:
  """Repeats each pixel `scale` times along height and width, so that small clips stay sharp."""
  if scale < 1:
    raise ValueError(f"got scale={scale}, expected an integer factor of at least 1.")
  return frames if scale == 1 else frames.repeat(scale, axis=1).repeat(scale, axis=2)


def _pad_to_even(frames: np.ndarray) -> np.ndarray:
  # Chroma has half the resolution, so 4:2:0 codecs support only even sizes. The border pixel is
  # repeated.
  odd_height, odd_width = frames.shape[1] % 2, frames.shape[2] % 2
  if not (odd_height or odd_width):
    return frames
  return np.pad(frames, ((0, 0), (0, odd_height), (0, odd_width), (0, 0)), mode="edge")


def _encoder_options(suffix: str, crf: int) -> dict[str, str]:
  if suffix == ".mp4":
    return {"crf": str(crf), "preset": "veryfast", "bf": "0"}
  if suffix == ".webm":
    return {"crf": str(crf), "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "0"}
  if suffix == ".avi":
    # MPEG-4 part 2 has a quantizer from 1 to 31 instead of a rate factor.
    quantiser = str(min(31, max(1, crf // 5)))
    return {"qmin": quantiser, "qmax": quantiser, "bf": "0"}
  raise ValueError(f"No encoder for {suffix!r}; expected one of {VIDEO_SUFFIXES}.")


def write_video(
  path: str | os.PathLike[str], frames: np.ndarray, *, fps: float, crf: int = 12, scale: int = 1
) -> Path:
  """Writes one clip atomically; the suffix selects the format.

  Args:
    path: ends in .mp4 (H.264), .webm (VP9), .avi (MPEG-4), .gif or .webp.
    frames: [T, H, W, 3], float in [0, 1] or uint8. Odd sizes are padded by one pixel if the
      codec requires it.
    fps: frames per second.
    crf: constant rate factor of H.264, 0 (lossless) to 51; about the same scale for VP9. Ignored by
      gif and webp.
    scale: integer factor by which pixels are repeated.

  Returns:
    The path.

  Raises:
    ValueError: another suffix, shape or dtype, or a rate that is not positive.
  """
  path = Path(path)
  suffix = path.suffix.lower()
  if not 0 < fps <= 1000:
    raise ValueError(f"got fps={fps}, expected a rate between 0 and 1000.")
  frames = upscale(to_uint8(frames), scale)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    if suffix in VIDEO_SUFFIXES:
      _mux(temporary, _pad_to_even(frames), suffix=suffix, fps=fps, crf=crf)
    elif suffix in ANIMATION_SUFFIXES:
      temporary.write_bytes(_animation(frames, suffix=suffix, fps=fps))
    else:
      raise ValueError(
        f"Cannot write a video as {suffix!r} ({path}); "
        f"expected one of {VIDEO_SUFFIXES + ANIMATION_SUFFIXES}."
      )
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
  return path


def encode_video(
  frames: np.ndarray, *, suffix: str, fps: float, crf: int = 12, scale: int = 1
) -> bytes:
  """Like `write_video`, but returns the bytes. Uses a file, because writing an mp4 index requires one."""
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / f"clip{suffix}"
    return write_video(path, frames, fps=fps, crf=crf, scale=scale).read_bytes()


def _mux(path: Path, frames: np.ndarray, *, suffix: str, fps: float, crf: int) -> None:
  import av

  rate = Fraction(fps).limit_denominator(1001)
  options = {"fflags": "+bitexact"}
  if suffix == ".mp4":
    options["movflags"] = "+faststart"
  with av.open(str(path), mode="w", format=_MUXERS[suffix], options=options) as container:
    stream: Any = container.add_stream(
      _CODECS[suffix], rate=rate, options=_encoder_options(suffix, crf)
    )
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.thread_count = 1
    context.bit_rate = 0
    context.colorspace = context.color_primaries = context.color_trc = _BT601
    context.color_range = _LIMITED_RANGE
    for image in frames:
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
      frame = frame.reformat(
        format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG", interpolation="AREA"
      )
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _animation(frames: np.ndarray, *, suffix: str, fps: float) -> bytes:
  from PIL import Image

  images = [Image.fromarray(frame) for frame in frames]
  # A single frame must not be saved as an animation: Pillow would drop the duration and some
  # viewers reject it.
  options: dict[str, Any] = {"save_all": True, "append_images": images[1:], "loop": 0}
  options["duration"] = round(1000 / fps)
  if suffix == ".gif":
    options |= {"format": "GIF", "optimize": False, "disposal": 1}
  elif suffix == ".webp":
    options |= {"format": "WEBP", "quality": 90, "method": 3, "minimize_size": False}
  else:
    raise ValueError(f"No animation format {suffix!r}; expected one of {ANIMATION_SUFFIXES}.")
  buffer = io.BytesIO()
  images[0].save(buffer, **options)
  return buffer.getvalue()


def frame_times(
  source: str | os.PathLike[str] | bytes, *, max_pixels: int = 4096 * 2304
) -> list[float]:
  """Seconds of every frame since the first one; decodes, but converts no images. Arguments as in `iterate_frames`."""
  return [time for time, _ in _decoded(source, max_pixels=max_pixels)]


def iterate_frames(
  source: str | os.PathLike[str] | bytes,
  *,
  max_pixels: int = 4096 * 2304,
  only: Container[int] | None = None,
) -> Iterator[tuple[float, np.ndarray]]:
  """Yields (seconds since the first frame, [H, W, 3] uint8 RGB) in presentation order, upright.

  Args:
    source: a local path or the bytes of a file. Only local containers are opened, never a playlist
      or a URL.
    max_pixels: a larger frame is rejected before anything is decoded.
    only: numbers of the frames to yield; all by default.

  Raises:
    ValueError: the file has no video stream, or a frame is larger than `max_pixels`.
    av.error.FFmpegError: damaged or unknown media.
  """
  for number, (time, frame) in enumerate(_decoded(source, max_pixels=max_pixels)):
    if only is None or number in only:
      # Phones record sideways and store a rotation: quarter turns to the left that make the frame upright.
      turns = round(frame.rotation / 90) % 4
      yield time, np.rot90(frame.to_ndarray(format="rgb24"), turns)


def _decoded(
  source: str | os.PathLike[str] | bytes, *, max_pixels: int
) -> Iterator[tuple[float, Any]]:
  """(seconds since the first frame, PyAV's frame)."""
  import av

  data = source if isinstance(source, bytes) else Path(source).read_bytes()
  options = {"protocol_whitelist": "", "format_whitelist": _READABLE}
  with av.open(io.BytesIO(data), mode="r", options=options) as container:
    if not container.streams.video:
      raise ValueError("The file has no video stream.")
    stream = container.streams.video[0]
    if stream.width * stream.height > max_pixels:
      raise ValueError(
        f"A frame has {stream.width}x{stream.height} pixels, more than {max_pixels=}."
      )
    stream.thread_type = "NONE"
    step = 1 / float(stream.average_rate or stream.guessed_rate or 25)
    first, count = None, 0
    for frame in container.decode(stream):
      time = frame.time if frame.time is not None else count * step
      first = time if first is None else first
      count += 1
      yield time - first, frame


def read_video(
  source: str | os.PathLike[str] | bytes,
  *,
  max_frames: int | None = None,
  max_pixels: int = 4096 * 2304,
) -> DecodedVideo:
  """Decodes an entire short clip into memory; training data is decoded by `beam_jobs` instead.

  Args:
    source: a local path or the bytes of a file.
    max_frames: stop after this many frames.
    max_pixels: a larger frame is rejected.

  Raises:
    ValueError: the file has no video stream or no frames, or a frame is larger than `max_pixels`.
  """
  times, frames = [], []
  for time, frame in iterate_frames(source, max_pixels=max_pixels):
    if max_frames is not None and len(frames) >= max_frames:
      break
    times.append(time)
    frames.append(frame)
  if not frames:
    raise ValueError("The file decodes to no frames: it is empty or damaged.")
  # The rate is computed from the frames' times; a container's header may be wrong.
  fps = (len(times) - 1) / times[-1] if len(times) > 1 and times[-1] > 0 else 1.0
  return DecodedVideo(np.stack(frames), fps)
