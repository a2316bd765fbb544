"""Reads a video once: times of all frames, thumbnails for the detection of cuts, and sampled frames for scores.

Runs in a decoding process and yields chunks, so that a video of hours needs the memory of one chunk.
"""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from walt_t5x.media.frames import opaque, orientation, stored_box, upright
from walt_t5x.media.geometry import Box, Crop
from walt_t5x.media.reading import MAX_PIXELS, Source, check_intact, open_video
from walt_t5x.media.scaling import Scaler

if TYPE_CHECKING:
  from av import VideoFrame

# Of TransNetV2's input, (height, width).
THUMBNAIL = (27, 48)
_CHUNK = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanSpec:
  """What is kept of a video.

  Attributes:
    fps: frames per second that scores see; fewer if the video has fewer.
    side: shorter side of those frames in pixels; the aspect is kept.
    max_pixels: maximum height * width of a frame.
  """

  fps: float = 4.0
  side: int = 128
  max_pixels: int = MAX_PIXELS


class Chunk(NamedTuple):
  """Consecutive frames of a video.

  Attributes:
    begins: time of each frame in microseconds since the beginning of the container.
    end: when the last one ends, if the video ends there, else its time.
    stated_end: when the video ends as stated, or None.
    thumbnails: [n, 27, 48, 3] uint8.
    sampled: numbers in the chunk of the frames that scores see.
    frames: [len(sampled), H, W, 3] uint8.
  """

  begins: list[int]
  end: int
  stated_end: int | None
  thumbnails: np.ndarray
  sampled: list[int]
  frames: np.ndarray


def microseconds(seconds: float) -> int:
  """The unit of the ledger: integers add up exactly."""
  return round(seconds * 1e6)


def scan(
  source: Source,
  spec: ScanSpec,
  *,
  start: float | None = None,
  end: float | None = None,
  crop: Crop | None = None,
) -> Iterator[Chunk]:
  """Yields a crop of the frames of a video that are displayed from `start` to `end` seconds, by default all.

  Raises:
    MediaError: if the video is damaged (`reading.open_video`), after the chunks before the damage.
  """
  with open_video(source, max_pixels=spec.max_pixels) as video:
    stated = None if video.end is None else microseconds(min(video.end, end or video.end))
    chunk = _Builder(spec, video.aspect, crop)
    last, ends, error = -1.0, 0.0, None
    frames = video.frames(start or 0.0)
    try:
      for seconds, frame in frames:
        check_intact(seconds, frame)
        if seconds <= last or seconds < (start or 0.0):  # It would be shown for no time.
          continue
        if end is not None and seconds >= end:
          ends = end
          break
        if len(chunk.begins) == _CHUNK:
          yield chunk.take(microseconds(seconds), stated)
        chunk.add(seconds, frame)
        last, ends = seconds, seconds + video.duration(frame)
    except Exception as found:
      error = found
    if chunk.begins:
      yield chunk.take(microseconds(ends), stated)
    if error is not None:
      raise error


class _Builder:
  """Collects the frames of a chunk."""

  def __init__(self, spec: ScanSpec, aspect: float, crop: Crop | None):
    self._spec, self._aspect, self._crop = spec, aspect, crop
    self._small, self._large = Scaler(), Scaler()
    self._size: tuple[int, int] | None = None
    self._due = -1
    self._clear()

  def _clear(self) -> None:
    self.begins: list[int] = []
    self._thumbnails: list[np.ndarray] = []
    self._sampled: list[int] = []
    self._frames: list[np.ndarray] = []

  def add(self, seconds: float, frame: "VideoFrame") -> None:
    box = stored_box(frame, self._crop)
    turned, frame = orientation(frame), opaque(frame)
    self._thumbnails.append(scaled(self._small, frame, THUMBNAIL, turned, box))
    number = int(seconds * self._spec.fps + 1e-6)
    if number > self._due:
      self._due = number
      self._size = self._size or self._sampled_size(box, turned)
      self._sampled.append(len(self.begins))
      self._frames.append(scaled(self._large, frame, self._size, turned, box))
    self.begins.append(microseconds(seconds))

  def _sampled_size(self, box: Box, turned: tuple[int, bool]) -> tuple[int, int]:
    """(height, width) of sampled frames, upright, with square pixels; that of the first frame, for the entire video."""
    height, width = shown_size(box, self._aspect, turned)
    scale = self._spec.side / min(width, height)
    return max(1, round(height * scale)), max(1, round(width * scale))

  def take(self, end: int, stated_end: int | None) -> Chunk:
    """The frames so far, which are forgotten."""
    empty = np.zeros((0, *(self._size or (1, 1)), 3), np.uint8)
    frames = np.stack(self._frames) if self._frames else empty
    chunk = Chunk(self.begins, end, stated_end, np.stack(self._thumbnails), self._sampled, frames)
    self._clear()
    return chunk


def shown_size(box: Box, aspect: float, turned: tuple[int, bool]) -> tuple[float, float]:
  """(height, width) of a box of a frame as stored, upright, with square pixels."""
  height, width = float(box[1] - box[0]), (box[3] - box[2]) * aspect
  return (width, height) if turned[0] % 2 else (height, width)


def scaled(
  scaler: Scaler,
  frame: "VideoFrame",
  size: tuple[int, int],
  turned: tuple[int, bool],
  box: Box,
) -> np.ndarray:
  """Pixels of a box of a frame as stored [*size, 3], upright."""
  height, width = size[::-1] if turned[0] % 2 else size
  return upright(scaler(frame, width=width, height=height, box=box), turned)
