"""What a page shows of a corpus, collected one video at a time: the memory does not depend on the number of videos.

Nothing depends on the order of videos: samples are those with the smallest hashes.
"""

import bisect
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from beam_jobs.curation.ordering import random_order
from walt_t5x.media.rules import Rule

SAMPLE = 5_000
_VIDEOS = 6
_NEAR = 3
_BINS, _SHOWN_BINS = 1024, 64
# Share of the values on each side that are in one bin if they are far from the others.
_TAIL = 0.005
# Scores have six digits.
_FINEST = -20


class BinCounts:
  """Counts of values in bins whose width is a power of two that grows with the range of the values."""

  def __init__(self):
    self._exponent = _FINEST
    self._counts = Counter[float]()
    self.low, self.high = math.inf, -math.inf

  def add(self, values: Sequence[float]) -> None:
    """Adds finite values."""
    self.low, self.high = min(self.low, *values), max(self.high, *values)
    exponent = max(self._exponent, math.frexp(max(abs(self.low), abs(self.high)))[1] - 52)
    while self._bin(self.high, exponent) - self._bin(self.low, exponent) >= _BINS:
      exponent += 1
    if exponent > self._exponent:
      merged = Counter[float]()
      for number, count in self._counts.items():
        merged[number * 2.0 ** (self._exponent - exponent) // 1] += count
      self._exponent, self._counts = exponent, merged
    self._counts.update(self._bin(value, exponent) for value in values)

  @staticmethod
  def _bin(value: float, exponent: int) -> float:
    return float(math.floor(math.ldexp(value, -exponent)))

  def bins(
    self, marked: Sequence[float] = ()
  ) -> tuple[list[tuple[float, float, int]], tuple[float, float]]:
    """(from, to, count) of the bins with values in order, and the axis, on which at most 64 have room.

    The first and the last bin hold all values that are outside of the axis too. Marked values between the smallest and
    the largest one are on the axis.
    """
    numbers = sorted(self._counts)
    before = list(itertools.accumulate(self._counts[number] for number in numbers))
    spare = int(_TAIL * before[-1])
    first = numbers[bisect.bisect_right(before, spare)]
    last = numbers[bisect.bisect_left(before, before[-1] - spare)]
    on_axis = [
      self._bin(value, self._exponent) for value in marked if self.low <= value <= self.high
    ]
    first, last = min([first, *on_axis]), max([last, *on_axis])
    exponent, counts = self._exponent, Counter[float]()
    while last // 1 - first // 1 >= _SHOWN_BINS:
      exponent, first, last = exponent + 1, first / 2, last / 2
    first, last, scale = first // 1, last // 1, 2.0 ** (self._exponent - exponent)
    for number in numbers:
      counts[min(last, max(first, number * scale // 1))] += self._counts[number]
    width, finest = 2.0**exponent, 2.0**self._exponent
    found = [[n * width, (n + 1) * width, count] for n, count in sorted(counts.items())]
    found[0][0] = min(found[0][0], numbers[0] * finest)
    found[-1][1] = max(found[-1][1], (numbers[-1] + 1) * finest)
    return [(low, high, int(count)) for low, high, count in found], (
      first * width,
      (last + 1) * width,
    )


class Smallest:
  """The items with the smallest keys."""

  def __init__(self, size: int):
    self._size = size
    self._kept: list[tuple[Any, Any]] = []
    self._limit: Any = None

  def add(self, key: Any, item: Any) -> None:
    """Adds an item, which is forgotten once there are enough with smaller keys."""
    if self._limit is not None and key >= self._limit:
      return
    self._kept.append((key, item))
    if len(self._kept) >= 2 * self._size:
      self._kept = self._sorted()
      self._limit = self._kept[-1][0]

  def _sorted(self) -> list[tuple[Any, Any]]:
    return sorted(self._kept, key=lambda pair: pair[0])[: self._size]

  def items(self) -> list[Any]:
    """At most `size` items, smallest key first."""
    return [item for _, item in self._sorted()]


class Closest:
  """How many segments fail a rule, whatever the other rules, and those whose values are closest to its threshold.

  Attributes:
    failing: their number.
    sides: the closest, (below, above); a value that is equal is above, except for > and <=.
  """

  def __init__(self, rule: Rule, size: int):
    self.rule, self.failing = rule, 0
    self.sides = Smallest(size), Smallest(size)

  def add(self, order: int, found: "Judged") -> None:
    """Adds a segment that has the score."""
    value, rule = found.scores[self.rule.name], self.rule
    self.failing += not rule.holds(value)
    above = value > rule.value or (value == rule.value and rule.op not in (">", "<="))
    self.sides[above].add((abs(value - rule.value), order), found)


class Judged(NamedTuple):
  """A segment of a video, of which scores saw `crop`.

  Times are in microseconds, `reason` is "" if it is a clip, and `seconds` is among the scores.
  """

  uri: str
  path: str
  crop: Sequence[float] | None
  start: int
  end: int
  reason: str
  scores: Mapping[str, float]


class Overview:
  """Numbers, histograms and samples of the segments of all videos.

  Attributes:
    segments: how many there are by reason, "" for clips.
    histograms: of each score, over all shots.
    candidates: shots that are clips or that a rule rejects.
    thresholds: the candidates on both sides of each rule.
    sample: scores of at most SAMPLE of the candidates.
    videos: sampled videos that have segments, with the reasons of these.
  """

  def __init__(self, rules: Sequence[Rule], *, clips: int):
    self.clips = clips
    self.segments = Counter[str]()
    self.histograms = defaultdict[str, BinCounts](BinCounts)
    self.candidates = 0
    self.sample = Smallest(SAMPLE)
    each = max(1, min(_NEAR, clips // (2 * max(1, len(rules)))))
    self.thresholds = [Closest(rule, each) for rule in dict.fromkeys(rules)]
    self.videos = Smallest(_VIDEOS)
    self._reasons = {"", *(rule.reason for rule in rules)}

  def add(self, video: Mapping[str, Any], reasons: Sequence[str]) -> None:
    """Adds a video of a part, with the reasons why its segments are rejected."""
    self.segments.update(reasons)
    values = defaultdict[str, list[float]](list)
    for found, reason in zip(segments_of(video, reasons), reasons, strict=True):
      if reason == "transition":
        continue
      for name, value in found.scores.items():
        values[name].append(value)
      if reason in self._reasons:
        self._add_candidate(found)
    for name, added in values.items():
      self.histograms[name].add(added)
    if video["segments"]:
      self.videos.add(random_order(f"{video['start']}:{video['uri']}"), (video, reasons))

  def _add_candidate(self, found: Judged) -> None:
    self.candidates += 1
    order = random_order(f"{found.start}:{found.uri}")
    self.sample.add(order, found.scores)
    for threshold in self.thresholds:
      if threshold.rule.name in found.scores:
        threshold.add(order, found)


def segments_of(video: Mapping[str, Any], reasons: Sequence[str]) -> list[Judged]:
  """The segments of a video of a part."""
  return [
    Judged(
      video["uri"],
      video["path"],
      video["crop"],
      start,
      end,
      reason,
      {"seconds": (end - start) / 1e6, **scores},
    )
    for (start, end, _, scores, *_), reason in zip(video["segments"], reasons, strict=True)
  ]
