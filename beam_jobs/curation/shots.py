"""Cuts a video into shots: which frames end one, and where long shots are divided."""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from beam_jobs.curation.scanning import Chunk
from beam_jobs.curation.scores import luma

# Frames of a shot, at least: fewer between two cuts are those of a fade or too short for any use.
MIN_FRAMES = 12
FLASH_FRAMES = 4
# Of 255.
_ENCODED_AGAIN = 3


class Detector(Protocol):
  """Finds the last frames of shots.

  A hard cut flags one frame, the last one of its shot; a gradual transition flags all of its frames.
  """

  def __call__(self, thumbnails: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Flags, bool [n], of all frames in order, from chunks uint8 [n, 27, 48, 3]; chunks need not correspond."""
    ...


@dataclasses.dataclass(frozen=True)
class ContentDetector:
  """PySceneDetect's `ContentDetector`: the mean change of hue, saturation and luma from frame to frame.

  Attributes:
    threshold: change, in units of 8 bits, that makes a cut.
  """

  threshold: float = 27.0

  def __call__(self, thumbnails: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    from scenedetect import ContentDetector, FrameTimecode

    detector = ContentDetector(threshold=self.threshold, min_scene_len=1)
    number = 0
    for chunk in thumbnails:
      # Whether each frame is the first of a shot, known at once.
      first = np.zeros(len(chunk), bool)
      for i, picture in enumerate(chunk):
        # The detector reads blue first. Times are frame numbers: only their order counts.
        at = FrameTimecode(number + i, fps=1.0)
        first[i] = bool(detector.process_frame(at, np.ascontiguousarray(picture[..., ::-1])))
      yield first if number else first[1:]
      number += len(chunk)
    yield np.zeros(min(number, 1), bool)


@dataclasses.dataclass(frozen=True)
class NetworkDetector:
  """TransNet V2, with the public weights as `walt_t5x.metrics.import_weights` writes them.

  Attributes:
    weights: their file.
    fingerprint: of the weights, which decide the result.
    threshold: probability that a frame ends a shot, or is part of a transition.
  """

  weights: str
  fingerprint: str
  threshold: float = 0.5

  @classmethod
  def load(cls, weights: str, threshold: float) -> "NetworkDetector":
    """Raises FileNotFoundError or ValueError for a file without such weights."""
    return cls(weights, _network(weights).fingerprint, threshold)

  def __call__(self, thumbnails: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    from walt_t5x.metrics.transnet_v2 import cut_probabilities

    for found in cut_probabilities(_network(self.weights), thumbnails):
      yield np.maximum(found["cut"], found["transition"]) > self.threshold


@functools.lru_cache(maxsize=1)
def _network(weights: str) -> Any:
  """Loaded once by each worker."""
  from walt_t5x.metrics.networks import FeatureNetwork

  return FeatureNetwork.load("transnet_v2", weights)


class Frame(NamedTuple):
  """A frame.

  Attributes:
    begin: its time in microseconds.
    picture: its pixels if scores see it.
    repeats: whether it is the frame before again.
    flagged: whether it ends a shot.
  """

  begin: int
  picture: np.ndarray | None
  repeats: bool
  flagged: bool


class ShotSegment(NamedTuple):
  """A part of a video; all segments cover the video without gaps.

  Attributes:
    start, end: microseconds.
    frames: those that scores see.
    times: when they begin, in microseconds.
    repeated: share of all frames that repeat the one before.
    transition: whether this is a transition between shots.
  """

  start: int
  end: int
  frames: list[np.ndarray]
  times: list[int]
  repeated: float
  transition: bool


class Flagged:
  """The frames of a video with their flags, in order.

  Frames at the beginning and the end of a flash of a few frames are not flagged.
  An error ends them: what was read before it is not lost.

  Attributes:
    end: when the frames so far end.
    stated_end: when the video ends as stated, or None.
    error: what ended the video early, or None.
  """

  def __init__(self, chunks: Iterable[Chunk], detector: Detector):
    self._chunks, self._detector = chunks, detector
    self._waiting: collections.deque[tuple[Frame, np.ndarray]] = collections.deque()
    self.end = 0
    self.stated_end: int | None = None
    self.error: Exception | None = None

  def __iter__(self) -> Iterator[Frame]:
    # The frames around the one that is told next.
    before: collections.deque[np.ndarray] = collections.deque(maxlen=FLASH_FRAMES)
    ahead: collections.deque[tuple[Frame, np.ndarray]] = collections.deque()

    def tell() -> Frame:
      frame, thumbnail = ahead.popleft()
      is_cut = frame.flagged and not _at_flash(before, thumbnail, [after for _, after in ahead])
      before.append(thumbnail)
      return frame._replace(flagged=is_cut)

    for flags in self._detector(self._thumbnails()):
      for flag in flags:
        frame, thumbnail = self._waiting.popleft()
        ahead.append((frame._replace(flagged=bool(flag)), thumbnail))
        if len(ahead) > FLASH_FRAMES + 1:
          yield tell()
    while ahead:
      yield tell()

  def _thumbnails(self) -> Iterator[np.ndarray]:
    last = None
    for chunk in self._until_error():
      pictures = dict(zip(chunk.sampled, chunk.frames, strict=True))
      repeats, last = _repeats(last, chunk.thumbnails)
      for number, (begin, thumbnail) in enumerate(zip(chunk.begins, chunk.thumbnails, strict=True)):
        frame = Frame(begin, pictures.get(number), bool(repeats[number]), flagged=False)
        self._waiting.append((frame, thumbnail))
      self.end, self.stated_end = chunk.end, chunk.stated_end
      yield chunk.thumbnails

  def _until_error(self) -> Iterator[Chunk]:
    try:
      yield from self._chunks
    except Exception as error:
      self.error = error


def _repeats(last: np.ndarray | None, thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Whether each frame repeats the one before, bool [n], and the last one's luma, for the next call.

  It does if no pixel of its thumbnail differs by more than what encoding a frame again changes.
  """
  values = luma(thumbnails)
  before = np.concatenate([values[:1] - 255_000 if last is None else last[None], values[:-1]])
  return np.abs(values - before).max((1, 2)) <= _ENCODED_AGAIN * 1000, values[-1]


def _at_flash(before: Iterable[np.ndarray], now: np.ndarray, after: Sequence[np.ndarray]) -> bool:
  """Whether the change after a frame is that of a flash: it is taken back soon, or takes back an earlier one.

  A picture comes back if it differs from the other one by less than half of what the change is.
  """
  if not after:
    return False

  def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(np.int16) - other).mean())

  half = difference(now, after[0]) / 2
  return any(difference(now, later) < half for later in after[1:]) or any(
    difference(earlier, after[0]) < half for earlier in before
  )


def segments(frames: Flagged, *, max_seconds: float) -> Iterator[ShotSegment]:
  """Shots, transitions, and parts of shots that are longer than `max_seconds`, in order.

  Memory is that of `max_seconds`, whatever the length of a shot.
  """
  longest = round(max_seconds * 1e6)
  shot: list[Frame] = []
  # What ends a shot, and the frames after it, which are the next shot once they are enough.
  flagged: list[Frame] = []
  after: list[Frame] = []
  for frame in frames:
    if frame.flagged:
      flagged += [*after, frame]
      after = []
      continue
    (after if flagged else shot).append(frame)
    if len(after) == MIN_FRAMES:
      yield from _ended(shot, flagged, after[0].begin)
      shot, flagged, after = after, [], []
    if len(shot) > 1 and shot[-1].begin - shot[0].begin >= longest:
      at = _quietest(shot)
      yield _segment(shot[:at], shot[at].begin)
      shot = shot[at:]
  if flagged:
    yield from _ended(shot, flagged, after[0].begin if after else frames.end)
    shot = after
  if shot:
    yield _segment(shot, frames.end)


def _ended(shot: list[Frame], flagged: list[Frame], end: int) -> Iterator[ShotSegment]:
  """A shot and what ends it at `end`: one flagged frame is the last one of the shot, several are a transition."""
  if len(flagged) == 1:
    shot, flagged = shot + flagged, []
  if shot:
    yield _segment(shot, flagged[0].begin if flagged else end)
  if flagged:
    yield _segment(flagged, end, transition=True)


def _segment(frames: list[Frame], end: int, *, transition: bool = False) -> ShotSegment:
  pictures = [frame.picture for frame in frames if frame.picture is not None]
  times = [frame.begin for frame in frames if frame.picture is not None]
  repeated = sum(frame.repeats for frame in frames) / len(frames)
  return ShotSegment(frames[0].begin, end, pictures, times, repeated, transition)


def _quietest(shot: list[Frame]) -> int:
  """Index of the frame in the second half of a shot, by time, that changes least: where to cut it."""
  half = (shot[0].begin + shot[-1].begin) // 2
  best, least, before = len(shot) - 1, None, None
  for i, frame in enumerate(shot):
    if frame.picture is None:
      continue
    if before is not None and frame.begin > half:
      change = int(np.abs(frame.picture.astype(np.int16) - before).sum(dtype=np.int64))
      if least is None or change < least:
        best, least = i, change
    before = frame.picture
  return best
