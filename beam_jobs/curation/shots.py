"""Cuts a video into shots: which frames end one, and where long shots are divided."""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from beam_jobs.curation.scanning import Chunk


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

  A change that is taken back within a few frames is a flash, not a cut. Cuts that are close to each other are those of
  a fade: what is between them is a transition.

  Attributes:
    threshold: change, in units of 8 bits, that makes a cut.
    flash_frames: frames of a flash, at most.
    min_frames: frames between two cuts, at least.
  """

  threshold: float = 27.0
  flash_frames: int = 4
  min_frames: int = 16

  def __call__(self, thumbnails: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    from scenedetect import ContentDetector, FrameTimecode

    detector = ContentDetector(threshold=self.threshold, min_scene_len=1)
    recent: collections.deque[np.ndarray] = collections.deque(maxlen=self.flash_frames + 2)
    # The first frames of shots, of which later ones may be a flash or a fade with the last one.
    cuts: list[int] = []
    number = told = 0
    for chunk in thumbnails:
      for picture in chunk:
        recent.append(picture)
        # The detector reads blue first. Times are frame numbers: only their order counts.
        at = FrameTimecode(number, fps=1.0)
        if detector.process_frame(at, np.ascontiguousarray(picture[..., ::-1])):
          if cuts and self._taken_back(recent, number - cuts[-1]):
            cuts.pop()
          else:
            cuts.append(number)
        number += 1
      ready = max(told, number - self.min_frames - self.flash_frames)
      yield self._flags(cuts, told, ready)
      told = ready
      cuts = [cut for cut in cuts if cut >= told - self.min_frames]
    yield self._flags(cuts, told, number)

  def _taken_back(self, recent: collections.deque[np.ndarray], frames: int) -> bool:
    """Whether the picture is the one before the last cut, which is this number of frames ago."""
    if frames > self.flash_frames:
      return False
    before, now = recent[-frames - 2].astype(np.int16), recent[-1]
    return bool(np.abs(before - now).mean() < self.threshold / 2)

  def _flags(self, cuts: list[int], begin: int, end: int) -> np.ndarray:
    flags = np.zeros(end - begin, bool)
    for i, cut in enumerate(cuts):
      near = i > 0 and cut - cuts[i - 1] < self.min_frames
      first = cuts[i - 1] if near else cut - 1
      flags[max(0, first - begin) : max(0, cut - begin)] = True
    return flags


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
      yield found["cut"] > self.threshold


@functools.lru_cache(maxsize=1)
def _network(weights: str) -> Any:
  """Loaded once by each worker."""
  from walt_t5x.metrics.networks import FeatureNetwork

  return FeatureNetwork.load("transnet_v2", weights)


class Frame(NamedTuple):
  """A frame: its time in microseconds, its pixels if scores see it, and whether it ends a shot."""

  begin: int
  picture: np.ndarray | None
  flagged: bool


class ShotSegment(NamedTuple):
  """A part of a video in microseconds, with the frames that scores see; all segments cover the video without gaps."""

  start: int
  end: int
  frames: list[np.ndarray]
  transition: bool = False


class Flagged:
  """The frames of a video with their flags, in order.

  An error ends them: what was read before it is not lost.

  Attributes:
    end: when the frames so far end.
    stated_end: when the video ends as stated, or None.
    error: what ended the video early, or None.
  """

  def __init__(self, chunks: Iterable[Chunk], detector: Detector):
    self._chunks, self._detector = chunks, detector
    self._waiting: collections.deque[tuple[int, np.ndarray | None]] = collections.deque()
    self.end = 0
    self.stated_end: int | None = None
    self.error: Exception | None = None

  def __iter__(self) -> Iterator[Frame]:
    for flags in self._detector(self._thumbnails()):
      for flag in flags:
        yield Frame(*self._waiting.popleft(), bool(flag))

  def _thumbnails(self) -> Iterator[np.ndarray]:
    for chunk in self._until_error():
      pictures = dict(zip(chunk.sampled, chunk.frames, strict=True))
      self._waiting.extend((begin, pictures.get(i)) for i, begin in enumerate(chunk.begins))
      self.end, self.stated_end = chunk.end, chunk.stated_end
      yield chunk.thumbnails

  def _until_error(self) -> Iterator[Chunk]:
    try:
      yield from self._chunks
    except Exception as error:
      self.error = error


def segments(frames: Flagged, *, max_seconds: float) -> Iterator[ShotSegment]:
  """Shots, transitions, and parts of shots that are longer than `max_seconds`, in order.

  Memory is that of `max_seconds`, whatever the length of a shot.
  """
  longest = round(max_seconds * 1e6)
  shot: list[Frame] = []
  flagged: list[Frame] = []
  for frame in frames:
    if flagged and not frame.flagged:
      # One flagged frame is the last one of its shot, several are a transition.
      shot += flagged if len(flagged) == 1 else []
      middle = flagged[0].begin if len(flagged) > 1 else frame.begin
      if shot:
        yield _segment(shot, middle)
      if len(flagged) > 1:
        yield _segment(flagged, frame.begin, transition=True)
      shot, flagged = [], []
    (flagged if frame.flagged else shot).append(frame)
    if len(shot) > 1 and shot[-1].begin - shot[0].begin >= longest:
      at = _quietest(shot)
      yield _segment(shot[:at], shot[at].begin)
      shot = shot[at:]
  if len(flagged) == 1:
    shot, flagged = shot + flagged, []
  if shot:
    yield _segment(shot, flagged[0].begin if flagged else frames.end)
  if flagged:
    yield _segment(flagged, frames.end, transition=True)


def _segment(frames: list[Frame], end: int, *, transition: bool = False) -> ShotSegment:
  pictures = [frame.picture for frame in frames if frame.picture is not None]
  return ShotSegment(frames[0].begin, end, pictures, transition)


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
