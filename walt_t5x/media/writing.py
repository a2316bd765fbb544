"""Writes clips and pictures, atomically: videos and gif through PyAV, animated webp through Pillow, lossless files.

Videos are written as BT.601 limited range and tagged so in the stream, so that players which read the tags and
decoders which ignore them agree on the colors. FFmpeg keeps the equal neighbors of a gif, which Pillow would merge.
Encoders run on one thread and muxers in bit-exact mode (no random identifiers, no library version): the same frames
give the same bytes.

Lossless files are FFV1 in Matroska. H.264 with 4:2:0 chroma is unsuitable for measurements: its loss would be
attributed to the tokenizer.
"""

import contextlib
import io
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from walt_t5x.files import storage
from walt_t5x.files.paths import AnyPath, as_path
from walt_t5x.media.geometry import upscale
from walt_t5x.media.pixels import clip_to_uint8

# FFmpeg's number for SMPTE 170M, which is BT.601: matrix, primaries and transfer alike.
_BT601 = 6
_LIMITED_RANGE = 1
# x264's AVX-512 code for the macroblock tree depends on memory outside of its arrays: in 2% of processes under tcmalloc
# the same frames gave other bytes. SSE 4.2 gives the bytes that AVX-512 usually gives.
X264_INSTRUCTIONS = (
  {"x264-params": "asm=sse4.2"} if platform.machine() in ("x86_64", "AMD64") else {}
)
# Suffix, which also names FFmpeg's muxer -> encoder and its options.
_ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
  ".mp4": ("libx264", {"preset": "veryfast", "bf": "0"} | X264_INSTRUCTIONS),
  ".webm": ("libvpx-vp9", {"b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "0"}),
  ".avi": ("mpeg4", {"bf": "0"}),
  ".gif": ("gif", {}),
}
VIDEO_SUFFIXES, ANIMATION_SUFFIXES = tuple(_ENCODERS), (".webp",)
LOSSLESS_SUFFIX = ".mkv"


def _pad_to_even(frames: np.ndarray) -> np.ndarray:
  # Chroma has half the resolution, so 4:2:0 codecs support only even sizes. The border pixel is repeated.
  odd_height, odd_width = frames.shape[1] % 2, frames.shape[2] % 2
  return np.pad(frames, ((0, 0), (0, odd_height), (0, odd_width), (0, 0)), mode="edge")


def write_video(
  path: str | os.PathLike[str], frames: np.ndarray, *, fps: float, crf: int = 12, scale: int = 1
) -> AnyPath:
  """Writes one clip atomically and returns its path; the suffix selects the format.

  Args:
    path: ends in .mp4 (H.264), .webm (VP9), .avi (MPEG-4), .gif or .webp.
    frames: [T, H, W, 3], float in [0, 1] or uint8. Odd sizes are padded by one pixel if the codec requires it.
    fps: frames per second. Readers show a gif of more than 50 at another rate, since its times are in 1/100 s.
    crf: constant rate factor of H.264, 0 (lossless) to 51; about the same for VP9. Ignored by gif and webp.
    scale: integer factor by which pixels are repeated.

  Raises:
    ValueError: another suffix, shape or dtype, or a rate that is not positive.
  """
  path = as_path(path)
  suffix = path.suffix.lower()
  rate = _rate(path, fps)
  frames = upscale(clip_to_uint8(frames), scale)
  with storage.writer(path) as stream:
    if suffix in VIDEO_SUFFIXES:
      # By name: ffmpeg reopens an mp4 to move its index to the front.
      frames = frames if suffix == ".gif" else _pad_to_even(frames)
      _mux(stream.name, frames, suffix=suffix, rate=rate, crf=crf)
    elif suffix in ANIMATION_SUFFIXES:
      stream.write(_webp(frames, fps=fps))
    else:
      raise ValueError(
        f"Cannot write a video as {suffix!r} ({path}); "
        f"expected one of {VIDEO_SUFFIXES + ANIMATION_SUFFIXES}."
      )
  return path


def encode_video(
  frames: np.ndarray, *, suffix: str, fps: float, crf: int = 12, scale: int = 1
) -> bytes:
  """Like `write_video`, but returns the bytes. Uses a file, because writing an mp4 index requires one."""
  with tempfile.TemporaryDirectory() as folder:
    path = as_path(folder) / f"clip{suffix}"
    return write_video(path, frames, fps=fps, crf=crf, scale=scale).read_bytes()


def _rate(path: AnyPath, fps: float) -> Fraction:
  if not 0 < fps <= 1000:
    raise ValueError(f"{path}: got fps={fps}, expected a rate between 0 and 1000.")
  return Fraction(fps).limit_denominator(1001)


def _mux(path: str, frames: np.ndarray, *, suffix: str, rate: Fraction, crf: int) -> None:
  import av

  options = {"fflags": "+bitexact"} | ({"movflags": "+faststart"} if suffix == ".mp4" else {})
  encoder, settings = _ENCODERS[suffix]
  if suffix == ".avi":
    # MPEG-4 part 2 has a quantizer from 1 to 31 instead of a rate factor.
    settings = settings | dict.fromkeys(("qmin", "qmax"), str(min(31, max(1, crf // 5))))
  elif suffix != ".gif":
    settings = settings | {"crf": str(crf)}
  with av.open(path, mode="w", format=suffix[1:], options=options) as container:
    stream: Any = container.add_stream(encoder, rate=rate, options=settings)
    stream.height, stream.width = frames.shape[1:3]
    context = stream.codec_context
    context.thread_count = 1
    if suffix == ".gif":
      stream.pix_fmt, to_frame = "pal8", _with_palette
    else:
      stream.pix_fmt, to_frame = "yuv420p", _with_chroma
      context.bit_rate = 0
      context.colorspace = context.color_primaries = context.color_trc = _BT601
      context.color_range = _LIMITED_RANGE
    for image in frames:
      container.mux(stream.encode(to_frame(image)))
    container.mux(stream.encode(None))


def _with_chroma(image: np.ndarray) -> Any:
  """Frame of an RGB image with 4:2:0 chroma."""
  import av

  frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
  return frame.reformat(
    format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG", interpolation="AREA"
  )


def _with_palette(image: np.ndarray) -> Any:
  """Frame of an RGB image with the 256 colors that suit it best."""
  import av
  from PIL import Image

  indexed = Image.fromarray(image).convert("P", palette=Image.Palette.ADAPTIVE)
  colors = np.array(indexed.getpalette("RGB"), np.uint8).reshape(-1, 3)
  opaque = np.full((256, 4), 255, np.uint8)
  opaque[: len(colors), 1:] = colors
  with_palette: Any = np.asarray(indexed), opaque
  return av.VideoFrame.from_ndarray(with_palette, format="pal8")


def _webp(frames: np.ndarray, *, fps: float) -> bytes:
  from PIL import Image

  images = [Image.fromarray(frame) for frame in frames]
  buffer = io.BytesIO()
  images[0].save(
    buffer,
    format="WEBP",
    save_all=True,
    append_images=images[1:],
    loop=0,
    duration=round(1000 / fps),
    quality=90,
    method=3,
    minimize_size=False,
  )
  return buffer.getvalue()


def write_picture(path: str | os.PathLike[str], picture: np.ndarray) -> None:
  """Writes uint8 [H, W, 3] as a PNG."""
  from PIL import Image

  with storage.writer(path) as stream:
    Image.fromarray(picture).save(stream, format="PNG")


@contextlib.contextmanager
def lossless_writer(
  path: str | os.PathLike[str], *, fps: float
) -> Iterator[Callable[[np.ndarray], None]]:
  """Yields a function that writes the next frames, uint8 [T, H, W, 3], so that memory does not grow with the length.

  The file appears complete when the `with` block ends, and not at all if it raises.

  Args:
    path: ends in .mkv.
    fps: frames per second.

  Raises:
    ValueError: another suffix, rate, dtype, rank or size than the first frames', or no frames.
  """
  import av

  path = as_path(path)
  if path.suffix != LOSSLESS_SUFFIX:
    raise ValueError(f"got {path}, expected a name that ends in {LOSSLESS_SUFFIX}.")
  rate = _rate(path, fps)
  stream: Any = None

  def append(frames: np.ndarray) -> None:
    nonlocal stream
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
      raise ValueError(f"{path}: got {frames.dtype} {frames.shape}, expected uint8 [T, H, W, 3].")
    if stream is None:
      stream = container.add_stream("ffv1", rate=rate)
      stream.height, stream.width = frames.shape[1:3]
      stream.pix_fmt = "bgr0"
      stream.codec_context.thread_count = 1
    size = stream.height, stream.width
    if frames.shape[1:3] != size:
      raise ValueError(f"{path}: got frames of {frames.shape[1:3]} after frames of {size}.")
    for image in frames:
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
      container.mux(stream.encode(frame.reformat(format="bgr0")))

  with storage.writer(path) as file:
    options = {"fflags": "+bitexact"}
    with av.open(file.name, mode="w", format="matroska", options=options) as container:
      yield append
      if stream is None:
        raise ValueError(f"{path}: got no frames, expected at least one.")
      container.mux(stream.encode(None))
