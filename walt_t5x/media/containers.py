"""Files of media by their names; containers of videos: when their picture ends, and whether they are complete."""

import contextlib
import itertools
import os
import statistics
import struct
from typing import Any, BinaryIO

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegvideo,mpegts,gif"
# Of the images, HEIC and JPEG XL have no decoder here: they are errors instead of short videos.
IMAGE_SUFFIXES = tuple(".jpg .jpeg .png .webp .bmp .tif .tiff .avif .heic .heif .jxl".split())
VIDEO_SUFFIXES = tuple(".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .ts .3gp .gif".split())
# Of an AVI: enough for the usual distance of its frames.
_FIRST_PACKETS = 8
_BOX_TYPES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"styp", b"moof", b"pnot")


def is_hidden(path: str) -> bool:
  """Whether a file, or a folder of its relative path, is hidden: its name begins with a dot."""
  return any(name.startswith(".") and name not in (".", "..") for name in path.split("/"))


def stated_end(container: Any, stream: Any, *, origin: float, begin: float) -> float | None:
  """When the picture ends, in seconds since the beginning of the container, or None."""
  # MPEG streams have no header; FFmpeg takes the longest stream's duration.
  estimated = container.format.name in ("mpegts", "mpeg")
  if stream.duration and not (estimated and len(container.streams) > 1):
    ticks = stream.duration - (_late_ticks(container, stream) if is_avi(container) else 0)
    return begin + float(ticks * stream.time_base)
  matroska, stated = "matroska" in container.format.name, None
  if container.duration:
    # Matroska's duration starts at zero, that of other containers at the first frame.
    stated = container.duration / 1e6 - (max(0.0, origin) if matroska else 0.0)
    if len(container.streams) == 1:
      return stated
  if not matroska and not estimated:
    return stated
  # The sound may be longer than the picture, and a live recording states no duration.
  ends = _packet_ends(container)
  complete = stated is None or max(ends.values(), default=0.0) - origin > stated - slack(stated)
  return ends[stream.index] - origin if complete and stream.index in ends else stated


def is_avi(container: Any) -> bool:
  """Whether frames have no times, but numbers in the order in which they are stored."""
  return container.format.name == "avi"


def _late_ticks(container: Any, stream: Any) -> int:
  """Ticks that an AVI with B-frames leaves empty after its first frame, whose time is zero for the encoder's delay."""
  if not stream.codec_context.has_b_frames:
    return 0
  first = itertools.islice(container.demux(stream), _FIRST_PACKETS)
  stored = [packet.dts for packet in first if packet.dts is not None]
  container.seek(0)
  steps = [after - before for before, after in itertools.pairwise(stored)]
  return max(0, steps[0] - int(statistics.median_low(steps[1:]))) if len(steps) > 1 else 0


def slack(seconds: float) -> float:
  """Seconds by which a file may end before its stated end without being called truncated."""
  return max(0.25, 0.1 * seconds)


def _packet_ends(container: Any) -> dict[int, float]:
  """Stream -> time in seconds at which its last packet ends. Reads the file once; decodes nothing."""
  from av.error import FFmpegError

  ends: dict[int, float] = {}
  with contextlib.suppress(FFmpegError):
    for packet in container.demux():
      if packet.pts is not None:
        end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
        ends[packet.stream_index] = max(end, ends.get(packet.stream_index, end))
  container.seek(0)
  return ends


def has_signature(file: BinaryIO) -> bool:
  """Whether the first bytes are those of a supported video container."""
  file.seek(0)
  head = file.read(189)
  return (
    head[4:8] in _BOX_TYPES
    or head.startswith((b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"GIF8"))
    or (head.startswith(b"RIFF") and head[8:12] == b"AVI ")
    or (head[:1] == b"G" and head[188:189] == b"G")
  )


def is_cut_off(file: BinaryIO) -> bool:
  """Whether a container is truncated according to its own sizes; detected only for MP4 and AVI."""
  length = file.seek(0, os.SEEK_END)
  file.seek(0)
  head = file.read(8)
  if head.startswith(b"RIFF"):
    return struct.unpack("<I", head[4:8].ljust(4, b"\0"))[0] + 8 > length
  if head[4:8] not in _BOX_TYPES:
    return False
  position, seen = 0, set()
  while position + 8 <= length:
    file.seek(position)
    size, kind = struct.unpack(">I4s", file.read(8))
    seen.add(kind)
    if size == 1:
      size = int.from_bytes(file.read(8), "big")
    elif size == 0:
      size = length - position
    if size < 8 or position + size > length:
      return True
    position += size
  return position != length or b"moov" not in seen
